"""The fusion of a whole run: on a finished one, beside the network's own numbers, and from the training part alone."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from same_run import config

from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.predict.model import load
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.sealed_json import write_sealed
from kacl_jax.train import experiment, fusing, job


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def evaluate(root: Path, workdir: Path, **changes: Any) -> Any:
    settings = {"cam__center": "mean", "train__epochs": 2, **changes}
    job.evaluate_only(config(root, **settings), workdir)
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def fused(run: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, tested again with both regressions."""
    workdir = tmp_path_factory.mktemp("fused") / "w"
    shutil.copytree(run, workdir)
    evaluate(root, workdir, fusion__kind="both", fusion__grid=2)
    return workdir


def test_the_networks_own_numbers_stay(run: Path, fused: Path) -> None:
    before, after = (json.loads((w / "results.json").read_text()) for w in (run, fused))
    part = after.pop("fused")
    assert after["digests"].pop("predictions_fused.csv")
    assert json.dumps(before) == json.dumps(after)
    for name in ("predictions.csv", "boxes.csv", "calibration.json"):
        assert (run / name).read_bytes() == (fused / name).read_bytes()
    own = before["classification"]["auroc"]["mean"]["value"]
    scores, pair = part["scores"], part["image_pair"]
    for one in (scores, pair):
        value = one["classification"]["auroc"]["mean"]["value"]
        assert one["minus_network"]["auroc"]["mean"]["value"] == pytest.approx(value - own)
    difference = part["minus_image_pair"]["auroc"]["mean"]
    assert difference["value"] == pytest.approx(
        scores["classification"]["auroc"]["mean"]["value"]
        - pair["classification"]["auroc"]["mean"]["value"]
    )


def test_without_fusion_nothing_changes_and_an_old_fusion_goes(
    run: Path, root: Path, fused: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "w"
    shutil.copytree(fused, workdir)
    evaluate(root, workdir)
    for name in ("results.json", "predictions.csv", "boxes.csv", "calibration.json"):
        assert (run / name).read_bytes() == (workdir / name).read_bytes()
    assert not (workdir / "fusion.json").exists()
    assert not (workdir / "predictions_fused.csv").exists()


def test_the_same_fusion_to_the_bit(root: Path, fused: Path, tmp_path: Path) -> None:
    """Also where a kill left half of the memo."""
    workdir = tmp_path / "w"
    shutil.copytree(fused, workdir)
    with sqlite3.connect(workdir / "grid.sqlite") as memo:
        memo.execute("DELETE FROM memo WHERE substr(key, 1, 1) < x'20'")
        assert memo.total_changes > 20
    memo.close()
    evaluate(root, workdir, fusion__kind="both", fusion__grid=2)
    for name in ("results.json", "predictions_fused.csv", "fusion.json"):
        assert (fused / name).read_bytes() == (workdir / name).read_bytes()


def test_the_table_has_the_fused_scores(run: Path, fused: Path) -> None:
    """The network's logit, moved; where a finding has no regression, the network's own score to the bit."""
    own, moved = rows(run / "predictions.csv"), rows(fused / "predictions_fused.csv")
    told = json.loads((fused / "results.json").read_text())["fused"]
    alone = [f for f, why in told["own_scores"].items() if set(why) == {"radiomics", "image"}]
    assert [row["image"] for row in own] == [row["image"] for row in moved]
    for one, other in zip(own, moved, strict=True):
        assert other["own_score"].split() == alone
        assert int(other["missing_cells"]) == 0
        assert all(one[f"prob_{f}"] == other[f"prob_{f}"] for f in alone)
    assert any(one[k] != other[k] for one, other in zip(own, moved, strict=True) for k in one)


def test_a_test_patient_moves_nothing_that_is_fitted(root: Path, tmp_path: Path) -> None:
    """Other features, labels and logits of the test part: the same coefficients, penalties, moments and weight."""
    built = experiment.build_experiment(config(root, fusion__kind="both"), tmp_path)
    rng = np.random.default_rng(0)
    n, c = built.records.labels.shape
    columns = {"image": rng.normal(size=(n, 5)), "radiomics": rng.normal(size=(n, 102))}
    columns = {source: values.astype(np.float32) for source, values in columns.items()}
    logits = rng.normal(size=(n, c)).astype(np.float32)
    test = built.split.test

    def fitted() -> Any:
        collected = fusing.Collected(columns, {}, True, "")
        parts = {
            p: Outputs(ids, logits[ids])
            for p, ids in (("train", built.split.train), ("val", built.split.val))
        }
        ridges = fusing.fit_ridges(built, collected, parts["train"])
        return fusing.combine(built, collected, ridges, parts["train"], parts["val"])

    before = fitted()
    for values in (*columns.values(), logits):
        values[test] += 7 * rng.normal(size=values[test].shape).astype(np.float32)
    records = built.records
    labels = records.labels.copy()
    labels[test] = 1 - np.abs(labels[test])
    built = dataclasses.replace(built, records=dataclasses.replace(records, labels=labels))
    after = fitted()
    assert before.weight == after.weight
    for source in ("image", "radiomics"):
        for name in ("mean", "scale", "coef", "intercept", "penalty", "reasons"):
            one, other = (getattr(fusion.ridges[source], name) for fusion in (before, after))
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(before.moments[source].mean, after.moments[source].mean)
    columns["radiomics"][built.split.train[0]] += 1
    assert (fitted().ridges["radiomics"].coef != before.ridges["radiomics"].coef).any()


def test_another_program_gives_the_run_s_fused_scores_to_the_bit(fused: Path, root: Path) -> None:
    """`kacl_jax.load`, from the workdir alone: scores, thresholds, and an explanation that adds up."""
    model = load(fused)
    points = json.loads((fused / "results.json").read_text())["fused"]["scores"]
    expected = [row for row in rows(fused / "predictions_fused.csv") if row["split"] == "test"]
    found = model([root / "images" / row["image"] for row in expected[:9]])
    found.append(model(root / "images" / expected[9]["image"]))
    for prediction, row in zip(found, expected, strict=False):
        assert prediction.scores == {f: float(row[f"prob_{f}"]) for f in model.findings}
        for finding, told in prediction.explanations.items():
            assert told.cells.shape == (2, 2)
            assert told.network_logit + sum(told.moved.values()) == pytest.approx(told.fused_logit)
            threshold = points["classification"]["operating_point"][finding]["value"]
            reaches = threshold is not None and prediction.scores[finding] >= threshold
            assert prediction.positive[finding] is reaches
    moved = [told for told in found[0].explanations.values() if "radiomics" in told.moved]
    assert moved
    assert all(told.features for told in moved)


def test_a_fusion_without_its_files_is_told(fused: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "w"
    shutil.copytree(fused, workdir)
    path = workdir / "fusion.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"weight": 9.0}))
    with pytest.raises(UserError, match=r"fusion\.json is damaged.*--mode=eval"):
        load(workdir)
    path.unlink()
    with pytest.raises(UserError, match=r"fusion\.json is missing.*--mode=eval"):
        load(workdir)
    del content["digest"]
    write_sealed(path, content | {"start": "0" * 32})
    with pytest.raises(UserError, match=r"the image encoder that .* started from is another one"):
        load(workdir)
