"""A command that starts itself once more: the same words, the same process, and pages of 2 MiB."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from kacl_jax.runtime.huge_pages import TUNABLE

CODE = """
import os, sys
from pathlib import Path
print("started", os.getpid(), flush=True)
from kacl_jax.runtime import huge_pages
huge_pages.restart_with_huge_pages()
import numpy as np
array = np.ones(1 << 24)  # 128 MiB
lines = Path("/proc/self/smaps").read_text().splitlines()
kib = sum(int(l.split()[1]) for l in lines if l.startswith("AnonHugePages"))
print(sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), kib)
"""
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")


def told(tunables: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables:
        environment["GLIBC_TUNABLES"] = tunables
    words = [sys.executable, "-W", "error", "-c", CODE, "--a=b c", "--d"]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("other", ["", "glibc.malloc.arena_max=8"])
def test_it_starts_once_more_in_the_same_process_with_the_same_words(other: str) -> None:
    *starts, last = told(other)
    assert len(starts) == 2
    assert starts[0] == starts[1]
    tunables = f"{other}:{TUNABLE}=1".lstrip(":")
    assert last.startswith(f"['--a=b c', '--d'] {tunables} ")
    if ENABLED.exists() and "[never]" not in ENABLED.read_text():
        assert int(last.split()[-1]) >= 100 * 1024


def test_who_has_chosen_is_left_alone() -> None:
    start, last = told(f"{TUNABLE}=0")
    assert start.startswith("started")
    assert f" {TUNABLE}=0 " in last
