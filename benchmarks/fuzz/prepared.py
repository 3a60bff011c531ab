"""Mutations of prepared data sets, and of sets that are not finished yet.

The Records and the pixels of the untouched set, or a sentence, are right. Of a changed text table the values that
`strict.read` gives are right, too, as long as verify says that the table has changed.
"""

from __future__ import annotations

import atexit
import functools
import gzip
import json
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

from benchmarks.fuzz.judge import Answer, Case
from benchmarks.fuzz.roots import (
    doors,
    either_case,
    images,
    same_case,
    seen_case,
    small_tables,
    write_root,
)
from benchmarks.fuzz.scene import Kind, Random, take, write
from benchmarks.fuzz.table_cases import ALL_FILES, Files, readable
from benchmarks.fuzz.table_lines import damage

_SIDE = 16  # pixels of a prepared image
_RECORDS_END = 6_000  # an ArrayRecord file is mostly padding; its records lie before this byte
_SETTINGS = {"size": _SIDE, "workers": 1, "shard_bytes": 10 * _SIDE * _SIDE}  # three shards


class _Sets(NamedTuple):
    """root: the original root. complete, unfinished: path → file of a set. truth: [n k], numbers and pixels."""

    root: Path
    complete: Files
    unfinished: Files
    truth: np.ndarray


@functools.cache
def _sets() -> _Sets:
    """Made once in a process, because each case copies them."""
    from kacl_jax import prepare
    from kacl_jax.data.prepared import builder
    from kacl_jax.runtime.errors import UserError

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = write_root(folder, small_tables(np.random.default_rng(0)).files(), images())
    prepare.prepare_root(root=root, out=folder / "complete", **_SETTINGS)
    full_disk = mock.patch.object(builder, "build_dataset", side_effect=OSError("no space left"))
    with full_disk:
        try:
            prepare.prepare_root(root=root, out=folder / "unfinished", **_SETTINGS)
        except UserError:
            pass
        else:
            raise AssertionError("prepare_root has finished on a full disk")
    values = doors(folder / "complete", picture_side=_SIDE).rows[1][0]
    original = doors(root, picture_side=_SIDE).rows[1][0]
    if not np.array_equal(values, original):
        raise AssertionError("the prepared set has other values than its root")
    return _Sets(root, _content(folder / "complete"), _content(folder / "unfinished"), values)


def _content(folder: Path) -> Files:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _ask(folder: Path, truth: np.ndarray) -> Answer:
    return doors(folder / "set", truth, _SIDE)


def _case(what: str, folder: Path, files: Files, changed: str) -> Case:
    """The set with the file `changed`."""
    write(folder / "set", files)
    truth = _sets().truth
    if changed not in ALL_FILES:
        return either_case(what, lambda: _ask(folder, truth), truth)
    numbers = readable({name: files[name] for name in ALL_FILES if name in files})
    if numbers is None:
        return seen_case(what, lambda: _ask(folder, truth), None)
    edited = np.hstack([numbers, truth[:, numbers.shape[1] :]])
    if np.array_equal(edited, truth):
        return either_case(what, lambda: _ask(folder, truth), truth)
    return seen_case(what, lambda: _ask(folder, edited), edited)


def _byte(random: Random, folder: Path, turn: int) -> Case:
    files = dict(_sets().complete)
    name = take(files, turn)
    end = _RECORDS_END if "array_record" in name and random.random() < 0.8 else None
    what, files[name] = damage(random, files[name], int(random.integers(4)), end)
    return _case(f"{name}: {what}", folder, files, name)


def _missing(random: Random, folder: Path, turn: int) -> Case:
    """A file is not there, is empty, is a folder, or has the content of another one."""
    files = dict(_sets().complete)
    name = take(files, turn)
    data = files.pop(name)
    way = str(random.choice(["missing", "empty", "a folder", "another file"]))
    if way == "empty":
        files[name] = b""
    elif way == "a folder":
        files[f"{name}/inside"] = data
    elif way == "another file":
        kind = Path(name).suffix[:6]
        others = [other for other in files if Path(other).suffix[:6] == kind]
        other = str(random.choice(others or list(files)))
        files[name] = files[other]
    return _case(f"{name} is {way}", folder, files, name)


def _harmless(random: Random, folder: Path, turn: int) -> Case:
    files = dict(_sets().complete)
    way = take(("unchanged", "gz", "more files"), turn)
    if way == "gz":
        for name in random.choice(ALL_FILES, int(random.integers(1, 5)), replace=False):
            files[f"{name}.gz"] = gzip.compress(files.pop(str(name)))
    elif way == "more files":
        files |= {"README.txt": b"ours", ".DS_Store": b"\0"}
    write(folder / "set", files)
    truth = _sets().truth
    return same_case(way, lambda: _ask(folder, truth), truth)


def _manifest(random: Random, folder: Path, turn: int) -> Case:
    """The manifest says the same in another form, or names other versions: the same values, or a sentence."""
    files = dict(_sets().complete)
    content = json.loads(files["manifest.json"])
    way = take(("another form", "other versions"), turn)
    if way == "other versions":
        content["made_by"] = dict.fromkeys(content["made_by"], "9.9.9")
    files["manifest.json"] = json.dumps(content, indent=int(random.integers(5))).encode()
    return _case(f"manifest.json: {way}", folder, files, "manifest.json")


def _unfinished(random: Random, folder: Path, turn: int) -> Case:
    """The same command goes on with a damaged, missing or empty file."""
    files = dict(_sets().unfinished)
    name = take(files, turn)
    way = str(random.choice(["damage", "damage", "damage", "missing", "empty"]))
    data = files.pop(name)
    if way == "damage":
        end = _RECORDS_END if name.endswith("array_record") else None
        way, files[name] = damage(random, data, int(random.integers(4)), end)
    elif way == "empty":
        files[name] = b""
    write(folder / "set", files)
    return either_case(f"{name}: {way}", lambda: _go_on(folder), _sets().truth)


def _go_on(folder: Path) -> Answer:
    from kacl_jax.prepare import prepare_root
    from kacl_jax.runtime.errors import UserError

    try:
        prepare_root(root=_sets().root, out=folder / "set", **_SETTINGS)
    except UserError as error:
        return Answer([(None, str(error)), (None, str(error))], str(error))
    return _ask(folder, _sets().truth)


KINDS: dict[str, Kind] = {
    "prepared_harmless": _harmless,
    "prepared_byte": _byte,
    "prepared_missing": _missing,
    "prepared_manifest": _manifest,
    "prepared_unfinished": _unfinished,
}
