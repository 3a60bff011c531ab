"""The fusion of a whole run: on a finished one, beside the network's own numbers, and from the training part alone."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from same_run import config
from sklearn.metrics import roc_auc_score

from kacl_jax.data.phantom import demo
from kacl_jax.data.records import read_records
from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.evaluation.results import read_results
from kacl_jax.fusion import fused_file
from kacl_jax.predict.model import Model
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.sealed_json import write_sealed
from kacl_jax.train import experiment, fusing, fusion_features, job
from kacl_jax.train.external_test import evaluate_elsewhere

CHANGES = {"fusion__kind": "both", "fusion__grid": 2}  # of the module's run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def evaluate(root: Path, workdir: Path, **changes: Any) -> Any:
    settings = {"cam__center": "mean", "train__epochs": 2, **changes}
    job.evaluate_only(config(root, **settings), workdir)
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def plain(run: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, tested again without fusion."""
    workdir = tmp_path_factory.mktemp("plain") / "w"
    shutil.copytree(run, workdir)
    evaluate(root, workdir)
    return workdir


def test_the_networks_own_numbers_stay(run: Path, plain: Path) -> None:
    before, after = (json.loads((w / "results.json").read_text()) for w in (plain, run))
    part = after.pop("fused")
    for name in ("predictions_fused.csv", "predictions_control.csv"):
        assert after["digests"].pop(name)
        assert not (plain / name).exists()
    assert json.dumps(before) == json.dumps(after)
    for name in ("predictions.csv", "boxes.csv", "calibration.json"):
        assert (plain / name).read_bytes() == (run / name).read_bytes()
    assert not (plain / "fusion.json").exists()
    own = before["classification"]["auroc"]["mean"]["value"]
    scores, pair = part["scores"], part["image_pair"]
    values = [one["classification"]["auroc"]["mean"]["value"] for one in (scores, pair)]
    for one, value in zip((scores, pair), values, strict=True):
        assert one["minus_network"]["auroc"]["mean"]["value"] == pytest.approx(value - own)
    difference = part["minus_image_pair"]["auroc"]["mean"]["value"]
    assert difference == pytest.approx(values[0] - values[1])
    assert "image features + radiomics" in (run / "report.html").read_text()
    assert 'id="fusion"' not in (plain / "report.html").read_text()


def test_a_finished_run_is_fused_to_the_bit_as_one_that_trained_with_it(
    run: Path, plain: Path, root: Path, tmp_path: Path
) -> None:
    """Also where a kill left half of the memo."""
    workdir = tmp_path / "w"
    shutil.copytree(plain, workdir)
    with sqlite3.connect(workdir / "grid.sqlite") as memo:
        memo.execute("DELETE FROM memo WHERE substr(key, 1, 1) < x'20'")
        assert memo.total_changes > 20
    memo.close()
    evaluate(root, workdir, **CHANGES)
    tables = ("predictions_fused.csv", "predictions_control.csv")
    for name in ("results.json", "fusion.json", *tables):
        assert (run / name).read_bytes() == (workdir / name).read_bytes()


def test_the_table_has_the_fused_scores(run: Path) -> None:
    """The network's logit, moved; where a finding has no regression, the network's own score to the bit."""
    own, moved = rows(run / "predictions.csv"), rows(run / "predictions_fused.csv")
    told = json.loads((run / "results.json").read_text())["fused"]
    alone = [f for f, why in told["own_scores"].items() if set(why) == {"radiomics", "image"}]
    assert alone
    assert [row["image"] for row in own] == [row["image"] for row in moved]
    for one, other in zip(own, moved, strict=True):
        assert other["own_score"].split() == alone
        assert int(other["missing_cells"]) == 0
        assert all(one[f"prob_{f}"] == other[f"prob_{f}"] for f in alone)
    assert any(one[k] != other[k] for one, other in zip(own, moved, strict=True) for k in one)


def test_subgroups_are_scored_by_the_fused_scores(run: Path, root: Path) -> None:
    fused = json.loads((run / "results.json").read_text())["fused"]
    records = read_records(root)
    women = set(records.names[records.sex == "F"].tolist())
    for table, scores in (("fused", fused["scores"]), ("control", fused["image_pair"])):
        group = scores["subgroups"]["sex"]["F"]
        members = [row for row in rows(run / f"predictions_{table}.csv") if row["image"] in women]
        members = [row for row in members if row["split"] == "test"]
        assert group["images"] == len(members) > 5
        labels = [int(row["label_Infiltration"]) for row in members]
        own = [float(row["prob_Infiltration"]) for row in members]
        found = group["auroc"]["Infiltration"]["value"]
        assert found == pytest.approx(roc_auc_score(labels, own))


def test_another_data_set_is_fused_as_the_run_was(
    run: Path, root: Path, tmp_path: Path, model: Model
) -> None:
    """--test_root: thresholds, weight and regressions are the run's, the control stands beside it."""
    drawn, other = tmp_path / "drawn", tmp_path / "other"
    demo.write_phantom(drawn, patients=3, size=64, seed=9)
    records = read_records(drawn)
    (other / "images").mkdir(parents=True)
    lines = [",".join(("image", "patient", *records.findings))]
    for name, patient, labels in zip(records.names, records.patients, records.labels, strict=True):
        shutil.copy(drawn / "images" / name, other / "images" / f"x{name}")
        lines.append(",".join((f"x{name}", f"p{patient}", *map(str, labels))))
    (other / "images.csv").write_text("\n".join(lines) + "\n")
    results, folder = evaluate_elsewhere(config(root), run, other)
    trained = read_results(run / "results.json")
    assert results.fused
    assert trained.fused
    assert results.fused.image_pair
    assert results.fused.scores.weight == trained.fused.scores.weight
    for finding in results.findings:
        found, before = (
            one.fused.scores.classification.operating_point[finding].value
            for one in (results, trained)
        )
        np.testing.assert_equal(found, before)
    assert "predictions_fused.csv" in (results.digests or {})
    row = rows(folder / "predictions_fused.csv")[0]
    prediction = model(other / "images" / row["image"])
    expected = {finding: float(row[f"prob_{finding}"]) for finding in model.findings}
    assert prediction.scores == pytest.approx(expected, rel=1e-5)


def test_a_test_patient_moves_nothing_that_is_fitted(root: Path, tmp_path: Path) -> None:
    """Other features, labels and logits of the test part: the same coefficients, penalties, moments and weight."""
    built = experiment.build_experiment(config(root, fusion__kind="both"), tmp_path)
    rng = np.random.default_rng(0)
    n, c = built.records.labels.shape
    columns = {"image": rng.normal(size=(n, 5)), "radiomics": rng.normal(size=(n, 102))}
    columns = {source: values.astype(np.float32) for source, values in columns.items()}
    logits = rng.normal(size=(n, c)).astype(np.float32)
    test = built.split.test

    def fitted() -> fused_file.SavedFusion:
        collected = fusion_features.Collected(columns, Counter(), 64, True, "")
        parts = {"training": built.split.train, "val": built.split.val}
        outputs = {part: Outputs(ids, logits[ids]) for part, ids in parts.items()}
        return fusing.fit(built, collected, **outputs)

    before = fitted()
    for values in (*columns.values(), logits):
        values[test] += 7 * rng.normal(size=values[test].shape).astype(np.float32)
    records = built.records
    labels = records.labels.copy()
    labels[test] = 1 - np.abs(labels[test])
    built = dataclasses.replace(built, records=dataclasses.replace(records, labels=labels))
    after = fitted()

    def file(saved: fused_file.SavedFusion) -> bytes:
        fused_file.write(tmp_path, saved, step=1, findings=records.findings)
        return (tmp_path / fused_file.NAME).read_bytes()

    assert file(before) == file(after)
    columns["radiomics"][built.split.train[0]] += 1
    assert file(before) != file(fitted())


def test_another_program_gives_the_fused_scores_to_the_bit(
    run: Path, root: Path, model: Model
) -> None:
    """`kacl_jax.load`, from the workdir alone: scores, thresholds, and an explanation that adds up."""
    points = json.loads((run / "results.json").read_text())["fused"]["scores"]
    expected = [row for row in rows(run / "predictions_fused.csv") if row["split"] == "test"]
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


def test_a_fusion_without_its_files_is_told(run: Path, tmp_path: Path, model: Model) -> None:
    content = json.loads((run / "fusion.json").read_text())
    step, findings = content["step"], model.findings
    path = tmp_path / "fusion.json"
    path.write_text(json.dumps(content | {"bin_width": 9.0}))
    with pytest.raises(UserError, match=r"fusion\.json is damaged.*--mode=eval"):
        fused_file.read(tmp_path, step=step, findings=findings)
    path.unlink()
    with pytest.raises(UserError, match=r"fusion\.json is missing.*--mode=eval"):
        fused_file.read(tmp_path, step=step, findings=findings)
    del content["digest"]
    write_sealed(path, content)
    with pytest.raises(UserError, match=r"fusion\.json belongs to the checkpoint of step"):
        fused_file.read(tmp_path, step=step + 1, findings=findings)
    for key, other in (("weight", "1"), ("logit_spread", [1.0]), ("ridges", {})):
        write_sealed(path, content | {"fused": content["fused"] | {key: other}})
        with pytest.raises(UserError, match=r"fusion\.json was written by another version"):
            fused_file.read(tmp_path, step=step, findings=findings)


def test_another_starting_encoder_is_told(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_features, "encoder_digest", lambda state: "0" * 32)
    with pytest.raises(UserError, match=r"the image encoder that .* started from is another one"):
        model.network.start()
