"""The names of image files: which are allowed, and which name another spelling means."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from kacl_jax.images import file_names


def objection(name: str) -> tuple[str, str] | None:
    """(what is wrong with an image name, the fix), or None. The files of results hold these names."""
    if not name or "/" in name or "\\" in name or name.startswith("."):
        return "is no plain file name", "give the file name without its folder"
    wrong = file_names.objection(name)
    return None if wrong is None else (wrong, "rename the file, and its rows in all tables")


class Spellings:
    """Finds the known name that another spelling means."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_key: dict[str, list[str]] = {}
        for name in names:
            self._by_key.setdefault(_key(name), []).append(name)

    def meant(self, name: str) -> str | None:
        """The one known name that differs from `name` only by folder, ending, case or Unicode form."""
        known = self._by_key.get(_key(name), [])
        return known[0] if len(known) == 1 and known[0] != name else None


def difference(name: str, meant: str) -> str:
    """How `name` differs from the name that it means, as one clause."""
    base = _base(name)
    if base == meant:
        return "with a folder"
    if unicodedata.normalize("NFC", base) == unicodedata.normalize("NFC", meant):
        return "in another Unicode form (NFC or NFD)"
    if base.casefold() == meant.casefold():
        return "in other upper and lower case"
    return "with another ending"


def _base(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", PurePosixPath(_base(name)).stem.casefold())
