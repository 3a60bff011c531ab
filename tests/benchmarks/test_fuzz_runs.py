"""The part of the fuzz that judges checkpoints, the memo, a run's files and flags: it sees what it must see."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.fuzz import checkpoints, flags, hostile_weights, memo, run_files, run_log, weights
from benchmarks.fuzz.finished import ask, picture
from benchmarks.fuzz.judge import FAULTS, judge
from kacl_jax.config import rules
from kacl_jax.feedback.feature_cache import FeatureCache
from kacl_jax.models import torch_file, weight_file
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError
from kacl_jax.sweep import measure
from kacl_jax.train import checkpoint

_KINDS = {
    **checkpoints.KINDS,
    **memo.KINDS,
    **run_files.KINDS,
    **run_log.KINDS,
    **flags.KINDS,
    **weights.KINDS,
    **hostile_weights.KINDS,
}


def _verdict(kind: str, turn: int, folder: Path) -> str:
    case = _KINDS[kind](np.random.default_rng(turn), folder, turn)
    return judge(case, case.call())[0]


# A kind and its turn, and what takes the place of a check of the program.
BROKEN: dict[str, tuple[str, int, Any, str, Callable[..., Any]]] = {
    "a digest": ("checkpoint_copied", 3, checkpoint, "_digest", lambda *_: "same"),
    "a step": ("checkpoint_copied", 0, checkpoint, "_digest", lambda arrays, meta, step: "same"),
    "numbers that are not finite": ("checkpoint_not_finite", 0, checkpoint, "_non_finite", lambda _: ""),
    "a memo that forgets": ("memo_harmless", 0, FeatureCache, "get", lambda *_: None),
    "the digests of the tables": ("run_cell", 8, measure, "check_digests", lambda *_: None),
    "the lines of the log": ("run_metrics", 0, files, "_metric_line", json.loads),
    "the names that a pickle may call": (
        "weights_pickle", 0, torch_file._TensorUnpickler, "find_class", pickle.Unpickler.find_class
    ),
    "the shapes of layers": ("weights_layers", 6, weight_file, "_fits", lambda *_: True),
    "the range of a key": ("flag_value", 6, rules, "_wrong_value", lambda *_: ""),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_program_without_this_check_has_a_fault(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, turn, owner, name, replacement = BROKEN[what]
    assert _verdict(kind, turn, tmp_path / "intact") not in FAULTS
    monkeypatch.setattr(owner, name, replacement)
    try:
        verdict = _verdict(kind, turn, tmp_path / "broken")
    except (AttributeError, KeyError, TypeError, ValueError):  # which the fuzz calls a traceback
        return
    assert verdict in FAULTS


def test_a_sentence_names_the_file_and_holds_no_traceback() -> None:
    def fail(text: str) -> Any:
        raise UserError(text)

    for text, reason in (
        ("a.json is damaged", "a.json is damaged"),
        ("it is damaged", ""),
        ("a.json: Traceback (most recent call last)", ""),
    ):
        assert ask(lambda text=text: fail(text), names="a.json").rows == [(None, reason)]


def test_equal_values_have_equal_pictures() -> None:
    values = ({"a": np.arange(3)}, {"a": np.arange(3.0)}, {"b": np.arange(3)}, [1, 2], [[1], 2])
    pictures = [picture(value).tobytes() for value in values]
    assert len(set(pictures)) == len(values)
    assert pictures[0] == picture({"a": np.arange(3)}).tobytes()
    assert picture((1, 2)).tobytes() == pictures[3]
