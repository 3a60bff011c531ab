"""Huge pages for what a CPU computes on: EfficientNet-Lite0's train step in two thirds of the time.

XLA gets its buffers from glibc, which asks the kernel for huge pages only if it was told so before the process began:
so the process begins once more. Nothing else changes, no result either.
"""

from __future__ import annotations

import os
import platform
import sys

TUNABLE = "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
    """Start this very command again, in this process, with TUNABLE=1 in GLIBC_TUNABLES.

    Returns where that is done already, where TUNABLE was given another value, and where there is no glibc.
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    if TUNABLE in given or platform.libc_ver()[0] != "glibc":
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [given, f"{TUNABLE}=1"]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
