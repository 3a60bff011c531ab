"""A part of the fuzz of all that reads images, masks, boxes, arrays and arguments."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fuzz import __main__ as fuzz
from benchmarks.fuzz.child import KINDS
from benchmarks.fuzz.judge import (
    CRASH,
    FAULTS,
    LOST,
    REFUSED,
    RIGHT,
    SENTENCE,
    TRACEBACK,
    WRONG,
    Answer,
    Bins,
    Case,
    Region,
    either,
    judge,
    same,
)

HARMLESS = (
    *("png_harmless", "tiff_harmless", "jpeg_harmless", "dicom_harmless"),
    *("oriented", "extract_plain", "memo_harmless", "points_whole", "flag_default"),
    "weights_harmless",
)


def test_a_case_of_each_kind_has_no_fault() -> None:
    """`python -m benchmarks.fuzz` runs 1,000 cases."""
    reports = fuzz.run(fuzz.case_names(len(KINDS), seed=7))
    faults = [report for report in reports if report["verdict"] in FAULTS]
    assert not faults, "\n".join(map(str, faults))
    verdicts = defaultdict(set)
    for report in reports:
        verdicts[report["kind"]].add(report["verdict"])
    assert verdicts.keys() == set(KINDS)
    assert all(RIGHT in verdicts[kind] for kind in HARMLESS)


def _case(*rows, **more) -> Case:
    return Case("", lambda: Answer(None, ""), list(rows), Bins(10.0), **more)


@pytest.fixture
def truth() -> Region:
    pixels = np.random.default_rng(0).integers(0, 200, (12, 12)).astype(np.uint8)
    return Region(pixels, np.ones((12, 12), bool))


def test_the_judge_tells_right_values_from_wrong_ones(truth: Region) -> None:
    from kacl_jax.radiomics import FEATURE_NAMES
    from kacl_jax.radiomics.host import Extractor

    values = Extractor(10.0).extract(*truth)
    case = _case(same(*truth))
    assert judge(case, Answer([(values, "")], "")) == (RIGHT, "")
    for column in range(0, len(values), 9):
        changed = values.copy()
        changed[column] = changed[column] * 1.01 + 0.01
        verdict, text = judge(case, Answer([(changed, "")], ""))
        assert verdict == WRONG
        assert FEATURE_NAMES[column].removeprefix("original_") in text
    assert judge(_case(REFUSED), Answer([(values, "")], ""))[0] == WRONG
    assert judge(_case(same(*truth), same(*truth)), Answer([(values, "")], ""))[0] == WRONG
    assert judge(_case(same(*truth), must_say="warn"), Answer([(values, "")], ""))[0] == WRONG


def test_the_judge_tells_a_due_sentence_from_a_lost_value(truth: Region) -> None:
    row, whole = Answer([(None, "is damaged")], ""), Answer(None, "Error: no")
    for answer in (row, whole):
        assert judge(_case(same(*truth)), answer)[0] == LOST
        assert judge(_case(REFUSED), answer)[0] == SENTENCE
        assert judge(_case(either(truth)), answer)[0] == SENTENCE
    assert judge(_case(REFUSED), Answer([(None, "")], ""))[0] == WRONG
    assert judge(_case(REFUSED), Answer(None, ""))[0] == WRONG


def test_a_child_that_dies_or_hangs_costs_no_other_case(tmp_path: Path, monkeypatch) -> None:
    """Kinds of another module stand in for the program under test."""
    (tmp_path / "dying.py").write_text(
        "import os, signal, sys, time\n"
        "from benchmarks.fuzz import child\n"
        "from benchmarks.fuzz.judge import Answer, Case\n"
        "def case(call): return lambda random, folder, turn: Case('', call, [])\n"
        "child.KINDS = {\n"
        "    'good': case(lambda: Answer([], '')),\n"
        "    'abort': case(os.abort),\n"
        "    'hang': case(lambda: time.sleep(99)),\n"
        "    'memory': case(lambda: (b'1' * (1 << 29), time.sleep(5))),\n"
        "    'error': case(lambda: 1 / 0),\n"
        "}\n"
        "child.main()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{fuzz.REPO}")
    monkeypatch.setattr(fuzz, "CHILD", "dying")
    monkeypatch.setattr(fuzz, "IDLE_SECONDS", 2)
    monkeypatch.setattr(fuzz, "MEMORY", 1 << 28)
    names = [f"{kind}:1" for kind in ("good", "abort", "hang", "good", "memory", "error", "good")]
    verdicts = [report["verdict"] for report in fuzz.run(names)]
    assert verdicts == [RIGHT, CRASH, CRASH, RIGHT, CRASH, TRACEBACK, RIGHT]
