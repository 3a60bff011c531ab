"""Mutations of features.sqlite. The oracle is the results as they were kept: the memo gives them, or nothing."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.finished import ask, content, made_once, row
from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.scene import Kind, Random, take, write
from benchmarks.fuzz.table_lines import damage

_NAME = "features.sqlite"
_COUNT = 40
_FORGETS = ("what was put is not there",)
_ALL, _SOME = ("all come back",), ("some come back, the others are measured again",)


def _stored() -> Iterator[tuple[bytes, Any]]:
    from kacl_jax.feedback.result import Result
    from kacl_jax.radiomics import FEATURE_NAMES

    random = np.random.default_rng(0)
    for number in range(_COUNT):
        features = random.normal(size=len(FEATURE_NAMES)).astype(np.float32)
        result = Result(None, f"no region {number}") if number % 5 == 0 else Result(features, None)
        yield random.bytes(16), result


def _make(folder: Path, part: str = "") -> None:
    from kacl_jax.feedback.feature_cache import FeatureCache

    folder.mkdir()
    cache = FeatureCache(folder / _NAME, settings="s")
    for pair in _stored():
        cache.put([pair])
    if part == "with its journal":  # as a kill leaves it
        shutil.copytree(folder, folder / "copy")
        cache.close()
        for name, data in content(folder / "copy").items():
            (folder / name).write_bytes(data)
        shutil.rmtree(folder / "copy")
    cache.close()


_closed = made_once(_make)
_killed = made_once(lambda folder: _make(folder, "with its journal"))


def _go_on(path: Path) -> tuple[str]:
    """Read all, keep all, read all again in a new process' place."""
    from kacl_jax.feedback.feature_cache import FeatureCache

    cache = FeatureCache(path, settings="s")
    with contextlib.closing(cache):
        hits = [_is_right(cache.get(key), result) for key, result in _stored()]
        cache.put(_stored())
        cache.put(_stored())  # the first one may have shown that the file is of no use
        kept = [_is_right(cache.get(key), result) for key, result in _stored()]
    with contextlib.closing(FeatureCache(path, settings="s")) as cache:
        reread = [_is_right(cache.get(key), result) for key, result in _stored()]
    if False in hits + kept + reread:
        return ("other features than those that were kept",)
    if not all(kept + reread):
        return _FORGETS
    return _ALL if all(hits) else _SOME


def _is_right(answer: Any, kept: Any) -> bool | None:
    """None: the memo does not know it."""
    if answer is None:
        return None
    return answer.reason == kept.reason and np.array_equal(answer.features, kept.features) \
        if kept.features is not None else answer.features is None and answer.reason == kept.reason  # fmt: skip


def _case(what: str, path: Path, *truths: tuple[str], may_refuse: bool = False) -> Case:
    return Case(
        what, lambda: ask(lambda: _go_on(path), names=_NAME), [row(*truths, may_refuse=may_refuse)]
    )


def _byte(random: Random, folder: Path, turn: int) -> Case:
    files = dict(take([_closed, _killed], turn)())  # type: ignore[type-var]
    name = str(random.choice([name for name in files if files[name]]))
    end = 200 if random.random() < 0.3 else None  # the header decides most
    what, files[name] = damage(random, files[name], int(random.integers(4)), end)
    write(folder, files)
    # SQLite may take a damaged tree for a whole one, in which it does not find all keys. Only time is lost.
    return _case(f"{name}: {what}", folder / _NAME, _ALL, _SOME, _FORGETS)


def _harmless(random: Random, folder: Path, turn: int) -> Case:
    """The same content in another form."""
    way = take(["unchanged", "killed", "vacuum", "page size", "no journal", "a link"], turn)
    write(folder, _killed() if way == "killed" else _closed())
    path = folder / _NAME
    if way == "a link":
        path = path.rename(folder / "other")
        (folder / _NAME).symlink_to("other")
    no_journal = "PRAGMA journal_mode = DELETE"
    statements = {
        "vacuum": ["VACUUM"],
        "page size": [no_journal, "PRAGMA page_size = 1024", "VACUUM"],
        "no journal": [no_journal],
    }
    _execute(path, *statements.get(way, []))
    return _case(way, folder / _NAME, _ALL)


def _execute(path: Path, *statements: str) -> None:
    if statements:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
            for statement in statements:
                file.execute(statement)


def _layout(random: Random, folder: Path, turn: int) -> Case:
    """Another version's file, another program's, or rows that are not what this version writes."""
    write(folder, _closed())
    number = int(random.integers(-(2**31), 2**31))
    statements = (
        f"PRAGMA user_version = {number}",
        f"PRAGMA application_id = {number}",
        "PRAGMA application_id = 0",
        "DROP TABLE memo",
        "ALTER TABLE memo DROP COLUMN crc",
        "ALTER TABLE memo ADD COLUMN more TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE memo RENAME TO other",
        "UPDATE memo SET value = 'text'",
        "UPDATE memo SET value = 1.5",
        "UPDATE memo SET reason = 'text' WHERE reason = x''",
        "UPDATE memo SET reason = 7",
        "UPDATE memo SET crc = 'text'",
        "UPDATE memo SET crc = crc + 4294967296",
        "UPDATE memo SET value = x'00', reason = x'ff'",
        "DELETE FROM memo",
        "CREATE TRIGGER no BEFORE INSERT ON memo BEGIN SELECT RAISE(ABORT, 'no'); END",
        "CREATE UNIQUE INDEX one ON memo (length(key))",
        "CREATE VIEW v AS SELECT * FROM memo",
    )
    statement = take(statements, turn)
    with contextlib.suppress(sqlite3.Error):
        _execute(folder / _NAME, statement)
    return _case(statement, folder / _NAME, _ALL, _SOME)


def _other(random: Random, folder: Path, turn: int) -> Case:
    """Something else has the memo's name or the name of a part of it."""
    path = folder / _NAME
    journal = f"{_NAME}{random.choice(['-wal', '-shm', '-journal'])}"
    noise = random.bytes(int(random.integers(1, 9000)))
    ways: dict[str, Callable[[], object]] = {
        "missing": lambda: path.unlink(),
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_bytes(b"{}\n"),
        "noise": lambda: path.write_bytes(noise),
        "half": lambda: path.write_bytes(_closed()[_NAME][: int(random.integers(1, 12_000))]),
        "a folder": lambda: (path.unlink(), path.mkdir()),
        "a folder with a file": lambda: (path.unlink(), write(folder, {f"{_NAME}/inside": b"x"})),
        "a link to nothing": lambda: (path.unlink(), path.symlink_to("nowhere")),
        "a link to a folder": lambda: (path.unlink(), path.symlink_to(".")),
        f"noise in {journal}": lambda: (folder / journal).write_bytes(noise),
        f"{journal} is a folder": lambda: (folder / journal).mkdir(),
        "an older one was put aside": lambda: write(
            folder, {f"{_NAME}.unusable-1": b"x", _NAME: noise}
        ),
    }
    write(folder, _closed())
    way = take(ways, turn)
    ways[way]()
    # SQLite cannot open its own file beside such a folder, and nothing says what the folder is.
    return _case(way, path, _ALL, _SOME, may_refuse=way.endswith("is a folder"))


KINDS: dict[str, Kind] = {
    "memo_harmless": _harmless,
    "memo_byte": _byte,
    "memo_layout": _layout,
    "memo_other": _other,
}
