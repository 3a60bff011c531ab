"""Mutations of the files of a finished run. What is read must be what the run wrote, or a sentence names the file."""

from __future__ import annotations

import copy
import csv
import dataclasses
import functools
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.finished import (
    FINDINGS,
    IMAGE_FEATURES,
    STEP,
    Files,
    ask,
    made_once,
    make_tables,
    row,
    run_files,
    small_network,
)
from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.scene import Kind, Random, take, write
from benchmarks.fuzz.table_lines import damage

_FUSION = "fusion.json"
_FACTS = ("calibration.json", "familiarity.json", "map_center.json", "training_images.csv")
_SCORES = ("predictions.csv", "predictions_fused.csv", "predictions_control.csv")
_RESAMPLES = 20
ANY = "read without a traceback"
_other_run = made_once(lambda folder: make_tables(folder, seed=1))


# ---- the doors -------------------------------------------------------------------------------------------------


def _measured(workdir: Path) -> Any:
    """What a sweep takes from the run, and what the page of a run draws of its text files."""
    from kacl_jax.report import figures
    from kacl_jax.sweep import measure

    run = measure.read_files(workdir)
    measured = measure.measure_run(run, resamples=_RESAMPLES)
    drawn = [figures.key_values(run.results), figures.finding_rows(run.results)]
    # The checksums are compared between points, and the rest of run.json is only shown.
    settings = {key: value for key, value in measured.settings.items() if "checksums" not in key}
    measured = dataclasses.replace(measured, origin={}, commit="", settings=settings)
    return run.steps_per_epoch, run.contrast, measured, drawn


def _facts(workdir: Path) -> Any:
    from kacl_jax.evaluation.trained_facts import read_trained_facts

    return read_trained_facts(workdir, step=STEP, findings=FINDINGS, centred=True)


def _fusion(workdir: Path) -> Any:
    """The fusion, and what it makes of three images."""
    from kacl_jax.evaluation.platt import calibrate
    from kacl_jax.fusion import fused_file, grid
    from kacl_jax.fusion.shares import explain
    from kacl_jax.images.resizing import shrink
    from kacl_jax.radiomics import FEATURE_NAMES

    saved = fused_file.read(workdir, step=STEP, findings=FINDINGS)
    random = np.random.default_rng(0)
    logits, side = random.normal(size=(3, len(FINDINGS))), saved.grid
    sizes = {"radiomics": side**2 * len(FEATURE_NAMES), "image": IMAGE_FEATURES}
    fused = []
    for applied in (saved.fused, saved.control):
        if applied is None:
            continue
        features = {
            source: random.normal(size=(3, sizes[source])) for source in applied.fusion.ridges
        }
        scores = applied.fusion.fuse(logits, features)
        of_first = {source: values[0] for source, values in features.items()}
        told = explain(applied.fusion, side, logits[0], of_first)
        thresholds = [point.threshold + 0.0 for point in applied.points]
        fused.append((scores, told, thresholds, calibrate(scores, applied.scalings)))
    cells = grid.cut_cells(shrink(np.zeros((40, 30), np.uint8), saved.longest), side)
    return saved, fused, len(cells), saved.bin_width + 0.0, f"{saved.kind:s}{saved.start:s}"


def _network(workdir: Path) -> Any:
    from kacl_jax.train.trained_network import read_network

    with small_network():
        n = read_network(workdir)
    return (
        n.identity,
        n.findings,
        n.thresholds,
        n.facts,
        n.rule,
        n.moments,
        n.bin_width,
        n.batch_size,
    )


def _resumed(workdir: Path) -> Any:
    """The config check with which the same command begins, and whether the run is over."""
    from kacl_jax.config.stored import check_config
    from kacl_jax.evaluation.results import read_results

    stored = json.loads(run_files()["config.json"])
    check_config(workdir, stored["config"], stored["data"])
    return read_results(workdir / "results.json").trained_steps


@functools.cache
def _truth(door: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), run_files())
        return door(Path(folder))


def _case(
    what: str,
    folder: Path,
    files: Files,
    name: str,
    door: Callable[[Path], Any],
    lenient: bool = False,
) -> Case:
    """lenient: any value is right, because the file has nothing by which a change could be seen."""
    write(folder / "run", files)
    if name == "training_images.csv":  # which has no digest
        lenient = lenient or _is_table(files.get(name, b""))
    truth = ANY if lenient else _truth(door)

    def question() -> Any:
        value = door(folder / "run")
        return ANY if lenient else value

    # The config check names the folder and the keys.
    named = str(folder / "run") if door is _resumed else name.rpartition("/")[2] or name
    return Case(what, lambda: ask(question, names=named), [row(truth)])


def _is_table(data: bytes) -> bool:
    """Whether a strict parser reads training_images.csv."""
    try:
        rows = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error):
        return False
    header = ["image", "patient", "part", "pixels"]
    return rows[:1] == [header] and all(len(row) == len(header) for row in rows)


# ---- the kinds -------------------------------------------------------------------------------------------------


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in items:
        yield from _places(part, (*path, key))


def sort_of(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if number else type(value).__name__


def changed_value(random: Random, content: Any) -> tuple[str, Any]:
    """One value of another sort, or a key less."""
    content = copy.deepcopy(content)
    places = list(_places(content))
    path = () if random.random() < 0.05 else places[int(random.integers(len(places)))]
    old, owner = _at(content, path), _at(content, path[:-1]) if path else None
    if isinstance(owner, dict) and random.random() < 0.2:
        del owner[path[-1]]
        return f"{path} is missing", content
    values = [
        True,
        -5,
        1.5,
        float("nan"),
        10**400,
        "",
        "x",
        "\ud800",
        {},
        [],
        [[]],
        {"a": {}},
        ["1"] * 4,
    ]
    values = [value for value in values if sort_of(value) != sort_of(old)]
    value = values[int(random.integers(len(values)))]
    if owner is None:
        return f"all is {value!r}", value
    owner[path[-1]] = value
    return f"{path}: {str(old)[:20]} → {str(value)[:20]!a}", content


def _changed_number(random: Random, content: Any) -> tuple[str, Any]:
    """Another number."""
    content = copy.deepcopy(content)
    places = [path for path in _places(content) if path and sort_of(_at(content, path)) == "number"]
    path = places[int(random.integers(len(places)))] if places else ()
    values = [-5, -1, 0, 1.5, 2**31, 10**30, 10**400, 1e-300, float("nan"), float("inf")]
    value = values[int(random.integers(len(values)))]
    if path:
        _at(content, path[:-1])[path[-1]] = value
    return f"{path} → {value!r:.20}", content


def _at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def _json_value(name: str, door: Callable[[Path], Any]) -> Kind:
    def kind(random: Random, folder: Path, turn: int) -> Case:
        files = dict(run_files())
        content = json.loads(files[name])
        other_number = random.random() < 0.3
        change = _changed_number if other_number else changed_value
        what, content = change(random, content)
        files[name] = json.dumps(content).encode()
        lenient = other_number and door is not _resumed
        return _case(f"{name} {what}", folder, files, name, door, lenient)

    return kind


def _json_byte(random: Random, folder: Path, turn: int) -> Case:
    """Bytes of a JSON file that has no digest: a strict parser says whether anything is left to read."""
    files = dict(run_files())
    doors = {
        _measured: ("results.json", "run.json"),
        _resumed: ("config.json",),
        _network: ("config.json",),
    }
    name, door = take([(name, door) for door, names in doors.items() for name in names], turn)
    what, data = damage(random, files[name], int(random.integers(4)))
    try:
        lenient = json.loads(data) != json.loads(files[name])
    except ValueError:
        lenient = False
    files[name] = data
    return _case(f"{name}: {what}", folder, files, name, door, lenient)


def _sealed_byte(random: Random, folder: Path, turn: int) -> Case:
    files = dict(run_files())
    name = take((*_FACTS, _FUSION), turn)
    what, files[name] = damage(random, files[name], int(random.integers(4)))
    door = _fusion if name == _FUSION else _facts
    return _case(f"{name}: {what}", folder, files, name, door)


def _fusion_value(random: Random, folder: Path, turn: int) -> Case:
    """A value of another sort, or a key less, under a digest that fits: as another version may write the file."""
    from kacl_jax.runtime.sealed_json import write_sealed

    files = dict(run_files())
    content = json.loads(files[_FUSION])
    del content["digest"]
    what, content = changed_value(random, content)
    with tempfile.TemporaryDirectory() as sealed:
        try:
            write_sealed(Path(sealed) / _FUSION, content)
        except (ValueError, TypeError):  # NaN, or no dict: no version writes it
            content = {}
            write_sealed(Path(sealed) / _FUSION, content)
        files[_FUSION] = (Path(sealed) / _FUSION).read_bytes()
    return _case(f"{_FUSION}: {what}", folder, files, _FUSION, _fusion, lenient=True)


def _missing(random: Random, folder: Path, turn: int) -> Case:
    """A file is not there, is empty, a folder, of another run, or has the content of another file."""
    files = dict(run_files())
    names = [name for name in files if not name.startswith("checkpoints/")]
    name = take(names, turn)
    doors = {"config.json": [_measured, _network, _resumed], "results.json": [_measured, _network]}
    doors |= {_FUSION: [_fusion], **{fact: [_facts, _network] for fact in _FACTS}}
    options = doors.get(name, [_measured])
    door = options[int(random.integers(len(options)))]
    way = str(random.choice(["missing", "empty", "a folder", "another file", "[]", "noise"]))
    data = files.pop(name)
    if way == "a folder":
        files[f"{name}/inside"] = data
    elif way == "another file":
        files[name] = files[str(random.choice([other for other in files if other in names]))]
    elif way != "missing":
        files[name] = {"empty": b"", "[]": b"[]\n", "noise": random.bytes(50)}[way]
    # A log without a line is that of a run without an epoch, and the sweep does not call it finished.
    lenient = name == "metrics.jsonl" or (
        name == "config.json" and way == "missing" and door is _resumed
    )
    return _case(f"{name} is {way}", folder, files, name, door, lenient)


def _cell(random: Random, folder: Path, turn: int) -> Case:
    """A cell of a table of scores or of boxes.csv, a row less, twice or of another run."""
    files = dict(run_files())
    name = take([*_SCORES, "boxes.csv", "training_images.csv"], turn)
    rows = list(csv.reader(io.StringIO(files[name].decode())))
    used = range(2 if name in _SCORES else 1, len(rows))  # the first row of scores is of val
    number = int(random.choice(used))
    if name == "boxes.csv":  # a row without a truth box has no effect on what is read
        number = int(random.choice([i for i in used if rows[i][7]]))
    way = str(random.choice(["cell", "cell", "cell", "row less", "row twice", "cut", "other row"]))
    what = f"{name} row {number}: {way}"
    if way == "cell":
        columns = {"boxes.csv": (0, 1, 7, 9), "training_images.csv": range(4)}.get(name, range(6))
        column = int(random.choice(columns))
        old = rows[number][column]
        others = [line[column] for line in rows[1:] if line[column] != old]
        values = ["", "x", "nan", "inf", "-1", "1e400", "0.123456", "1_0", "２", "\0", *others[:4]]
        rows[number][column] = value = str(random.choice(values))
        what += f" column {column} {old} → {value!a}"
    elif way == "row less":
        del rows[number]
    elif way == "row twice":
        rows.append(rows[number])
    elif way == "cut":
        rows[number] = rows[number][: int(random.integers(1, len(rows[number])))]
    else:
        other = rows[int(random.choice(used))][1:]
        what += "" if other != rows[number][1:] else ", equal"
        rows[number] = [rows[number][0], *other]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    files[name] = text.getvalue().encode()
    return _case(what, folder, files, name, _facts if name in _FACTS else _measured)


def _network_byte(random: Random, folder: Path, turn: int) -> Case:
    """Bytes of the checkpoint or of a file beside it, read as kacl_jax.predict reads them."""
    files = dict(run_files())
    place = "checkpoints/"
    name = take([name for name in files if name.startswith(place) or name in _FACTS], turn)
    way = int(random.integers(5))
    if way == 4:
        what = "missing"
        del files[name]
    else:
        what, files[name] = damage(random, files[name], way)
    named = place if name.startswith(place) else name
    return _case(f"{name}: {what}", folder, files, named, _network)


def _of_another_run(random: Random, folder: Path, turn: int) -> Case:
    """One of the tables is that of the same arm with another seed."""
    names = [*_SCORES, "boxes.csv", "results.json", "config.json"]
    name = take(names, turn)
    files = {**run_files(), name: _other_run()[name]}
    return _case(
        f"{name} of another run",
        folder,
        files,
        name,
        _resumed if name == "config.json" else _measured,
    )


KINDS: dict[str, Kind] = {
    "run_results": _json_value("results.json", _measured),
    "run_results_predict": _json_value("results.json", _network),
    "run_config": _json_value("config.json", _resumed),
    "run_config_predict": _json_value("config.json", _network),
    "run_origin": _json_value("run.json", _measured),
    "run_json_byte": _json_byte,
    "run_sealed_byte": _sealed_byte,
    "run_fusion": _fusion_value,
    "run_missing": _missing,
    "run_cell": _cell,
    "run_network_byte": _network_byte,
    "run_of_another": _of_another_run,
}
