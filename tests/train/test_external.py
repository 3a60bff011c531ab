"""A finished run is tested on another data set: with its own thresholds, and never on what it was trained on."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from same_run import config
from sklearn.metrics import roc_auc_score

from kacl_jax.data.phantom import demo
from kacl_jax.data.records import read_records
from kacl_jax.evaluation.results import read_results
from kacl_jax.predict.model import Model
from kacl_jax.runtime.errors import UserError
from kacl_jax.train import external_test
from kacl_jax.train.external_test import evaluate_elsewhere


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other drawn X-rays in the simple layout: Mass, Effusion, and a finding that no run knows."""
    folder = tmp_path_factory.mktemp("elsewhere")
    drawn = demo.write_phantom(folder / "nih", patients=20, size=64, seed=9) or folder / "nih"
    records = read_records(drawn)
    root = folder / "own"
    (root / "images").mkdir(parents=True)
    rows, boxes = [["image", "patient", "Mass", "Lump", "Effusion"]], []
    mass, effusion = (records.findings.index(name) for name in ("Mass", "Effusion"))
    for i, name in enumerate(records.names):
        new = f"x{name}"
        shutil.copy(drawn / "images" / name, root / "images" / new)
        rows.append(
            [
                new,
                f"p{records.patients[i]}",
                records.labels[i, mass],
                i % 2,
                records.labels[i, effusion],
            ]
        )
        if records.has_box[i, mass]:
            x0, y0, x1, y1 = (64 * records.boxes[i, mass, 0]).tolist()
            boxes.append([new, "Mass", x0, y0, x1 - x0, y1 - y0])
    for file, table in (
        ("images.csv", rows),
        ("annotations.csv", [["image", "finding", *"xywh"], *boxes]),
    ):
        with (root / file).open("w", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows(table)
    return root


def test_the_numbers_are_those_of_the_network_and_its_own_thresholds(
    run: Path, root: Path, elsewhere: Path, model: Model
) -> None:
    results, folder = evaluate_elsewhere(config(root), run, elsewhere)
    assert folder == run / "test_own"
    assert json.loads((folder / "results.json").read_text()) == results.to_json()
    assert (folder / "report.html").stat().st_size > 10_000
    trained = read_results(run / "results.json")
    assert results.findings == trained.findings
    assert results.split == "E-external"
    own = read_records(elsewhere, findings="all")
    for name in results.findings:
        point, before = (r.classification.operating_point[name] for r in (results, trained))
        np.testing.assert_equal((point.value, point.youden_j), (before.value, before.youden_j))
    c = results.findings.index("Mass")
    with (folder / "predictions.csv").open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert rows.keys() == set(own.names.tolist())
    images = [
        cv2.imread(str(elsewhere / "images" / name), cv2.IMREAD_GRAYSCALE) for name in own.names
    ]
    expected = [prediction.scores["Mass"] for prediction in model(images)]
    scores = np.array([float(rows[name]["prob_Mass"]) for name in own.names])
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    labels = own.labels[:, own.findings.index("Mass")]
    auroc = results.classification.auroc.findings[c]
    assert auroc.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    # A finding that the data set does not have is unknown, so that it has no number.
    nodule = results.classification.auroc.findings[results.findings.index("Nodule")]
    assert np.isnan(nodule.value)
    assert rows[own.names[0]]["label_Nodule"] == ""
    assert results.localization.iou[0.1].findings[c].counts["n"] == own.is_box.sum()


def test_images_and_patients_of_the_training_are_refused(
    run: Path, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=r"trained or tuned on \d+ patient\(s\)"):
        evaluate_elsewhere(config(root), run, root)
    assert not (run / "test_root").exists()
    # The same pixels under other names. Patients of two hospitals may have the same number.
    own = tmp_path / "renamed"
    (own / "images").mkdir(parents=True)
    names = sorted(path.name for path in (root / "images").iterdir())
    for name in names:
        shutil.copy(root / "images" / name, own / "images" / f"x{name}")
    table = "".join(f"x{name},{int(name[:8])},{k % 2}\n" for k, name in enumerate(names))
    (own / "images.csv").write_text(f"image,patient,Mass\n{table}")
    with pytest.raises(UserError, match=r"trained or tuned on \d+ image\(s\)"):
        evaluate_elsewhere(config(root), run, own)
    assert "patients of the run's training have names that occur in" in caplog.text


def test_a_drawn_patient_is_no_patient_of_nih(
    run: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo set has NIH's file names. Its patient 1 is not NIH's patient 1."""
    nih = elsewhere.parent / "nih"  # drawn from another seed, so that no picture is known
    trained = external_test.read_network(run)
    with pytest.raises(UserError, match="patient"):
        evaluate_elsewhere(config(nih), run, nih)
    drawn = dataclasses.replace(trained, drawn=True)
    monkeypatch.setattr(external_test, "read_network", lambda _: drawn)
    _, folder = evaluate_elsewhere(config(nih), run, nih)
    shutil.rmtree(folder)


def test_a_data_set_without_a_common_finding_is_refused(
    run: Path, root: Path, elsewhere: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(elsewhere, other)
    (other / "annotations.csv").unlink()
    text = (other / "images.csv").read_text().replace("Mass", "Bone").replace("Effusion", "Wire")
    (other / "images.csv").write_text(text)
    with pytest.raises(
        UserError, match=r"has none of the run's findings .*; it has Bone, Lump, Wire"
    ):
        evaluate_elsewhere(config(root), run, other)
