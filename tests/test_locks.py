"""requirements.lock and requirements-test.lock hold what the ranges ask for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parents[1]
RENEW = "run `bash .ci/lock` and commit the .lock files"
EXTRAS = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]


class Entry(NamedTuple):
    version: str
    hashes: list[str]
    asked_for_by: str  # packages and files


def ranges(name: str) -> list[Requirement]:
    return [Requirement(line) for line in (REPO / name).read_text().splitlines()]


def lock(name: str) -> dict[str, Entry]:
    """Package → entry. An entry is a line `package==version`, its hashes and comments, all of these indented."""
    entries = {}
    for text in re.split(r"^(?=\w)", (REPO / name).read_text(), flags=re.MULTILINE)[1:]:
        requirement = Requirement(re.split(r" \\$|\n", text, maxsplit=1, flags=re.MULTILINE)[0])
        (pin,) = requirement.specifier
        assert pin.operator == "==", f"{name}: {requirement} is a range; {RENEW}"
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", text)
        comments = " ".join(re.findall(r"# (.*)", text))
        entries[canonicalize_name(requirement.name)] = Entry(pin.version, hashes, comments)
    return entries


RUN, TEST = lock("requirements.lock"), lock("requirements-test.lock")


@pytest.mark.parametrize(
    "source, wanted, locked",
    [
        (
            "pyproject.toml",
            ranges("requirements.txt") + [Requirement(x) for e in EXTRAS.values() for x in e],
            RUN,
        ),
        ("requirements-test.txt", ranges("requirements-test.txt"), TEST),
    ],
)
def test_a_lock_holds_what_the_ranges_ask_for(
    source: str, wanted: list[Requirement], locked: dict[str, Entry]
) -> None:
    """No less, no more, and each version inside its range."""
    asked_for = {canonicalize_name(requirement.name) for requirement in wanted}
    there = {name for name, entry in locked.items() if source in entry.asked_for_by}
    assert there == asked_for, f"{there ^ asked_for} stand in one of lock and ranges only; {RENEW}"
    for requirement in wanted:
        version = locked[canonicalize_name(requirement.name)].version
        assert version in requirement.specifier, f"{requirement}, but {version} is locked; {RENEW}"


def test_a_package_in_both_locks_is_the_same() -> None:
    shared = RUN.keys() & TEST.keys()
    assert "numpy" in shared
    differing = {name for name in shared if RUN[name][:2] != TEST[name][:2]}
    assert not differing, f"the two locks differ in {differing}; {RENEW}"


def test_every_locked_package_has_hashes() -> None:
    """pip then refuses every file that is not one of those, and every package that is not locked."""
    bare = [name for entries in (RUN, TEST) for name, entry in entries.items() if not entry.hashes]
    assert not bare, f"{bare} have no hash; {RENEW}"
