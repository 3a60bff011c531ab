"""results.json is read as it was written, and only `evaluation/results.py` knows its keys."""

from __future__ import annotations

import ast
import dataclasses
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from toy_root import toy_outputs, toy_records, toy_split

from kacl_jax.data.records import Records
from kacl_jax.evaluation import result_files, terminal_table
from kacl_jax.evaluation.evaluate import evaluate_outputs
from kacl_jax.evaluation.localization import Reading
from kacl_jax.evaluation.results import FeedbackSummary, Results, Throughput, read_results
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError

REPO = Path(__file__).resolve().parents[2]


def results_of(records: Records, **more: Any) -> Results:
    split = toy_split(records)
    val, test = (toy_outputs(records, ids) for ids in (split.val, split.test))
    evaluation = evaluate_outputs(
        val, test, records, split, Reading(64, relu=True, threshold=0.5), resamples=20
    )
    return result_files.build_results(
        evaluation,
        records,
        split,
        **{"seed": 3, "feedback": FeedbackSummary(), "throughput": Throughput()}
        | {"best_step": 6, "trained_steps": 9, **more},
    )


@pytest.fixture(scope="module")
def plain() -> Results:
    return results_of(toy_records())


@pytest.fixture(scope="module")
def full(plain: Results) -> Results:
    """A finding without positives, and everything else that a run may have or not have."""
    records = toy_records()
    labels, has_box = records.labels.copy(), records.has_box.copy()
    labels[:, 3], has_box[:, 3] = 0, False
    return results_of(
        dataclasses.replace(records, labels=labels, has_box=has_box),
        feedback=FeedbackSummary(0.5, None, {"time-out": 1}, {"cam": 2}, 0, 3),
        throughput=Throughput(7.0, 8.0, {"radiomics_s": 0.5}),
        pixel_probe=plain.classification.auroc,
        best_step_reason="because",
        best_step_lost=3,
        weights_note="they saw the test images",
    )


@pytest.mark.parametrize("case", ["plain", "full"])
def test_what_is_read_is_what_was_written(
    case: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    results = request.getfixturevalue(case)
    path, again = tmp_path / "results.json", tmp_path / "again.json"
    files.write_json(path, results.to_json())
    read = read_results(path)
    files.write_json(again, read.to_json())
    assert again.read_bytes() == path.read_bytes()
    # As text, so that NaN equals NaN.
    assert repr(read) == repr(results)
    assert terminal_table.format_table(read) == terminal_table.format_table(results)


def test_results_of_earlier_versions_are_read() -> None:
    """The first runs did not count where their regions came from, and have no digests of their tables."""
    counted = []
    with tarfile.open(REPO / "docs/evidence/nih/guided_focal.tar.xz") as archive:
        for member in archive:
            if member.name.endswith("results.json"):
                content = json.load(archive.extractfile(member))  # type: ignore[arg-type]
                read = Results.from_json(content).to_json()
                counted.append("regions" in content["feedback"])
                content["feedback"] = {**read["feedback"], **content["feedback"]}
                assert json.dumps(read) == json.dumps({**content, "digests": None})
    assert not all(counted)


def without(content: Any, *keys: str) -> Any:
    *path, last = keys
    part = content
    for key in path:
        part = part[key]
    del part[last]
    return content


@pytest.mark.parametrize(
    "change",
    [
        lambda content: [],
        lambda content: {},
        lambda content: "text",
        lambda content: without(content, "split"),
        lambda content: {**content, "seed": "1"},
        lambda content: {**content, "findings": "Mass"},
        lambda content: {**content, "throughput": {"images_per_s": {}}},
        lambda content: without(content, "localization", "iou"),
        lambda content: without(content, "evaluation", "images", "val"),
        lambda content: without(content, "classification", "auroc", "Mass"),
        lambda content: without(content, "classification", "auprc", "mean", "ci95"),
        lambda content: {**content, "findings": ["Elsewhere"]},
        lambda content: {**content, "subgroups": None},
    ],
)
def test_a_foreign_file_is_refused_by_name(change: Any, plain: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(change(plain.to_json())))
    with pytest.raises(UserError, match=r"results\.json does not hold .* --mode=eval"):
        read_results(path)


@pytest.mark.parametrize("content", [None, "{"])
def test_a_file_that_cannot_be_read_is_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"results\.json cannot be read"):
        read_results(path)


def test_nobody_else_reads_results_by_key(plain: Results) -> None:
    sections = {key for key, value in plain.to_json().items() if isinstance(value, dict)}
    assert "localization" in sections
    for path in (REPO / "kacl_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                assert path.name == "results.py" or node.slice.value not in sections, path
