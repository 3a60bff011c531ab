"""The parts of the fuzz that judge how a data root is read: its parser, its doors and a few cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fuzz import __main__ as fuzz
from benchmarks.fuzz import own, own_roots, own_strict, prepared, strict, tables
from benchmarks.fuzz.judge import RIGHT, SENTENCE, WRONG, judge
from benchmarks.fuzz.roots import BOXES, LABELS, NAMES, TEST, TRAIN_VAL, doors, small_tables
from kacl_jax.data import png_folder, verify
from kacl_jax.data import records as records_module
from kacl_jax.runtime.errors import UserError

Files = dict[str, bytes]


def test_a_few_cases_have_the_verdict_that_is_due() -> None:
    right = [
        "table_harmless:0",
        "table_harmless:1",
        "prepared_harmless:0",
        "prepared_harmless:2",
        "prepared_manifest:0",
        "own_harmless:0",
        "own_harmless:14",
        "own_harmless:18",
        "own_uncertain:1",
    ]
    sentences = [
        "table_layout:4",
        "table_list:0",
        "table_list:2",
        "table_box_cell:1",
        "prepared_missing:9",
        "own_label_cell:0",
        "own_box_cell:1",
        "own_box_cell:2",
        "own_uncertain:3",
    ]
    reports = fuzz.run([*right, *sentences])
    verdicts = {f"{report['kind']}:{report['seed']}": report["verdict"] for report in reports}
    assert verdicts == dict.fromkeys(right, RIGHT) | dict.fromkeys(sentences, SENTENCE)


@pytest.fixture
def files() -> Files:
    return small_tables(np.random.default_rng(3)).files()


CHANGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a quotation mark": (LABELS, lambda data: data.replace(b",No", b',"No', 1)),
    "a zero byte": (TEST, lambda data: data + b"\0\n"),
    "not UTF-8": (LABELS, lambda data: data.replace(b"Patient Age", b"\xfc,Patient Age")),
    "no line break": (BOXES, lambda data: data[:-1]),
    "a short row": (BOXES, lambda data: data[:-5] + b"\n"),
    "a long row": (LABELS, lambda data: data[:-1] + b",7\n"),
    "a box twice": (BOXES, lambda data: data + data.splitlines(keepends=True)[-1]),
    "an image in no list": (TRAIN_VAL, lambda data: data[data.index(b"\n") + 1 :]),
    "an image without a row": (TEST, lambda data: data + b"1.png\n"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_strict_parser_refuses(what: str, files: Files) -> None:
    strict.read(files, NAMES)
    name, change = CHANGES[what]
    with pytest.raises(strict.Refused):
        strict.read(files | {name: change(files[name])}, NAMES)


OWN_CHANGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a quotation mark": (own_roots.LABELS, lambda data: data.replace(b"P-1", b'"P-1', 1)),
    "no line break": (own_roots.BOXES, lambda data: data[:-1]),
    "a box twice": (own_roots.BOXES, lambda data: data + data.splitlines(keepends=True)[-1]),
    "a box outside its image": (own_roots.BOXES, lambda data: data[:-1] + b"99\n"),
    "an image without a file": (own_roots.LABELS, lambda data: data.replace(b"02", b"03", 1)),
    "a label": (own_roots.LABELS, lambda data: data[:-1] + b"2\n"),
    "a split": (own_roots.LABELS, lambda data: data.replace(b"train", b"", 1)),
}


@pytest.mark.parametrize("what", OWN_CHANGES)
def test_the_strict_parser_of_the_simple_layout_refuses(what: str) -> None:
    files = own_roots.own_tables(np.random.default_rng(3)).files()
    own_strict.read(files, own_roots.SIZES, "ignore")
    name, change = OWN_CHANGES[what]
    with pytest.raises(strict.Refused):
        own_strict.read(files | {name: change(files[name])}, own_roots.SIZES, "ignore")


def _case(folder: Path, kind: str = "table_harmless", turn: int = 0):
    kinds = tables.KINDS | prepared.KINDS | own.KINDS
    return kinds[kind](np.random.default_rng(turn), folder, turn)


@pytest.mark.parametrize(
    "field, value",
    [("has_box", False), ("age", 7), ("sex", "M"), ("boxes", 0.5), ("patients", 1), ("labels", 0)],
)
@pytest.mark.parametrize("kind", ["table_harmless", "own_harmless"])
def test_other_values_are_wrong(kind: str, field: str, value, tmp_path: Path, monkeypatch) -> None:
    read_records = records_module.read_records

    def other(root: Path, **options) -> records_module.Records:
        records = read_records(root, **options)
        array = getattr(records, field).copy()
        array[:] = value
        return dataclasses.replace(records, **{field: array})

    case = _case(tmp_path, kind)
    assert judge(case, case.call()) == (RIGHT, "")
    monkeypatch.setattr(records_module, "read_records", other)
    assert judge(case, case.call())[0] == WRONG


def test_the_size_of_a_file_that_is_not_turned_gives_wrong_boxes(
    tmp_path: Path, monkeypatch
) -> None:
    case = _case(tmp_path, "own_harmless")
    assert judge(case, case.call()) == (RIGHT, "")
    size = png_folder.PngFolder.size
    monkeypatch.setattr(png_folder.PngFolder, "size", lambda *args: size(*args)[::-1])
    monkeypatch.setattr(records_module, "check_own_boxes", lambda *_: None)
    assert judge(case, case.call())[0] == WRONG


def test_verify_must_see_what_training_refuses(tmp_path: Path, monkeypatch) -> None:
    case = _case(tmp_path, "table_list", 0)
    assert judge(case, case.call())[0] == SENTENCE
    monkeypatch.setattr(verify, "check", lambda root, **_: verify.Report([], [], {}, None))
    assert judge(case, case.call())[0] == WRONG


def test_a_traceback_is_no_sentence(tmp_path: Path, monkeypatch) -> None:
    def fail(root: Path, **_) -> None:
        raise UserError("Traceback (most recent call last): …")

    case = _case(tmp_path, "table_list", 0)
    monkeypatch.setattr(records_module, "read_records", fail)
    assert doors(tmp_path / "root").rows[1] == (None, "")
    assert judge(case, case.call())[0] == WRONG
