"""A sweep of four points with one whose files are broken: it is named, and the others are in the table."""

from __future__ import annotations

import csv
import functools
import io
import json
import sys
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from benchmarks.fuzz.finished import Files, ask, made_once, make_tables, row
from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.run_files import changed_value
from benchmarks.fuzz.scene import Kind, Random, take, write

_ARMS, _FOLDS = ("a", "b"), (0, 1)
_BROKEN = "b/fold1-seed0"


def _make(folder: Path) -> None:
    for arm in _ARMS:
        for fold in _FOLDS:
            make_tables(folder / arm / f"fold{fold}-seed0", fold=fold, seed=0)


_files = made_once(_make)


def _rows_of_a(folder: Path) -> list[dict[str, str]]:
    """The lines of arm a in sweep.csv. The table of people goes to stderr."""
    from kacl_jax import config as config_keys
    from kacl_jax.sweep.finished import FinishedPoints
    from kacl_jax.sweep.hyper import Arm, Sweep, points
    from kacl_jax.sweep.plan import Plan

    arms = [Arm(name) for name in _ARMS]
    config = config_keys.default()
    config.protocol, config.train.epochs = "C", 2
    plan = Plan("x", config, {}, Sweep(arms, points(arms, folds=_FOLDS, seeds=(0,))), folder)
    print(FinishedPoints(plan).write_table(), file=sys.stderr)
    text = (folder / "sweep.csv").read_text(encoding="utf-8")
    columns = ("metric", "value", "ci_low", "ci_high", "n_folds")
    rows = csv.DictReader(io.StringIO(text))
    return [{name: line[name] for name in columns} for line in rows if line["arm"] == "a"]


def _case(
    what: str, folder: Path, files: Files, pending: bool = False, may_refuse: bool = False
) -> Case:
    """pending: nothing is wrong, or the point only seems not to be finished."""
    must_say = "" if pending else _BROKEN

    def call() -> Any:
        return ask(lambda: _rows_of_a(folder / "sweep"), names=_BROKEN)

    write(folder / "sweep", files)
    return Case(what, call, [row(_truth(), may_refuse=may_refuse)], must_say=must_say)


@functools.cache
def _truth() -> list[dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        write(Path(folder), _files())
        return _rows_of_a(Path(folder))


def _broken(random: Random, folder: Path, turn: int) -> Case:
    files = dict(_files())
    name = take(
        [
            "results.json",
            "metrics.jsonl",
            "run.json",
            "config.json",
            "predictions.csv",
            "boxes.csv",
        ],
        turn,
    )
    path = f"{_BROKEN}/{name}"
    way = str(random.choice(["empty", "[]", "3", "cut", "missing", "no findings", "a folder"]))
    data = files.pop(path)
    if way == "cut":
        files[path] = data[: int(random.integers(1, len(data) - 2))]
    elif way == "a folder":
        files[f"{path}/inside"] = data
    elif way == "no findings" and name == "results.json":
        results = json.loads(data)
        del results["findings"]
        files[path] = json.dumps(results).encode()
    elif way != "missing":
        files[path] = {"empty": b"", "[]": b"[]\n"}.get(way, b"3\n")
    pending = (name, way) in [
        ("results.json", "missing"),
        *(("metrics.jsonl", w) for w in ("missing", "empty", "cut")),
    ]
    return _case(f"{name} is {way}", folder, files, pending)


def _value(random: Random, folder: Path, turn: int) -> Case:
    """A value of another sort in a JSON file: without effect, left out, or points that cannot be compared."""
    files = dict(_files())
    name = take(["results.json", "run.json", "config.json"], turn)
    path = f"{_BROKEN}/{name}"
    what, value = changed_value(random, json.loads(files[path]))
    files[path] = json.dumps(value).encode()
    return _case(f"{name} {what}", folder, files, pending=True, may_refuse=True)


def _whole(random: Random, folder: Path, turn: int) -> Case:
    return _case("unchanged", folder, _files(), pending=True)


KINDS: dict[str, Kind] = {"points_whole": _whole, "points_broken": _broken, "points_value": _value}
