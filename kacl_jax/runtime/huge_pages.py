"""Huge pages for XLA's buffers on a CPU: EfficientNet-Lite0's train step then takes two thirds of the time.

XLA takes its buffers from glibc. glibc asks the kernel for huge pages only if the environment says so before the
process starts, so the command starts itself again. No result changes.
"""

from __future__ import annotations

import os
import platform
import sys

from kacl_jax.runtime import signals

TUNABLE = "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
    """Start this command again, in this process, with TUNABLE=1 in GLIBC_TUNABLES.

    Returns if TUNABLE has a value already, or if there is no glibc.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if TUNABLE in tunables or platform.libc_ver()[0] != "glibc":
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))
    signals.block()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
