"""A trained network in Python: it says of an image what the run said of it."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import kacl_jax
from kacl_jax.data.records import to_nih_pixels
from kacl_jax.evaluation import metrics
from kacl_jax.predict.model import Model, load
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.radiomics.host import Extractor
from kacl_jax.runtime.errors import UserError


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def held_out_rows(run: Path) -> list[dict[str, str]]:
    return [row for row in rows(run / "predictions.csv") if row["split"] == "test"]


def test_the_scores_are_those_of_the_run_to_the_bit(run: Path, root: Path, model: Model) -> None:
    expected = held_out_rows(run)
    found = model([root / "images" / row["image"] for row in expected])
    assert len(found) > 20
    for prediction, row in zip(found, expected, strict=True):
        assert prediction.scores == {f: float(row[f"prob_{f}"]) for f in model.findings}


def test_the_boxes_are_those_of_the_run(run: Path, root: Path, model: Model) -> None:
    boxes = rows(run / "boxes.csv")
    found = {
        row["image"]: model(root / "images" / row["image"]) for row in boxes[:: len(boxes) // 5]
    }
    compared = 0
    for row in boxes:
        if row["image"] not in found:
            continue
        prediction = found[row["image"]]
        height, width = prediction.pixels.shape
        x, y, w, h = prediction.boxes[row["finding"]]
        fractions = np.array([x / width, y / height, (x + w) / width, (y + h) / height])
        expected = [float(row[key]) for key in "xywh"]
        np.testing.assert_allclose(to_nih_pixels(fractions[None])[0], expected, atol=1e-3)
        compared += 1
    assert compared >= 5


def test_positive_is_what_the_run_decided(run: Path, root: Path, model: Model) -> None:
    results = json.loads((run / "results.json").read_text())
    points = results["classification"]["operating_point"]
    for row in held_out_rows(run)[:8]:
        prediction = model(root / "images" / row["image"])
        for finding in model.findings:
            threshold = points[finding]["value"]
            expected = threshold is not None and float(row[f"prob_{finding}"]) >= threshold
            assert prediction.positive[finding] is expected
            if threshold is not None:  # calibration keeps the order
                reaches = prediction.probabilities[finding] >= prediction.thresholds[finding]
                assert reaches is expected


def test_a_path_and_its_pixels_give_the_same(run: Path, root: Path, model: Model) -> None:
    path = root / "images" / held_out_rows(run)[0]["image"]
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    wide = pixels.astype(np.uint16) * 257
    from_path, from_pixels, from_wide = model([path, pixels, wide])
    assert from_path.scores == from_pixels.scores == from_wide.scores
    np.testing.assert_array_equal(model.embed([path, pixels])[1], from_path.embedding)


def test_the_mirror_image_gives_the_same_with_flip(run: Path, root: Path, model: Model) -> None:
    path = root / "images" / held_out_rows(run)[0]["image"]
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    one, mirrored = model([pixels, pixels[:, ::-1].copy()], flip=True)
    assert one.scores == pytest.approx(mirrored.scores, abs=1e-6)
    center = model.network.facts.map_center
    assert center is not None
    raw = [prediction.maps + center for prediction in (one, mirrored)]
    np.testing.assert_allclose(raw[0], raw[1][..., ::-1], atol=1e-5)
    assert one.scores != model(pixels).scores


def test_maps_are_centred_as_the_run_centred_them(run: Path, root: Path, model: Model) -> None:
    """The mean raw map over the training images is the centre."""
    names = [row["image"] for row in rows(run / "training_images.csv") if row["part"] == "train"]
    maps = [prediction.maps for prediction in model([root / "images" / name for name in names])]
    assert np.abs(np.mean(maps, axis=0)).max() < 1e-5 * np.abs(maps).max()


def test_radiomics_are_those_of_the_networks_image(run: Path, root: Path, model: Model) -> None:
    prediction = model(root / "images" / held_out_rows(run)[0]["image"])
    extractor = Extractor(model.network.bin_width)
    for finding, features in prediction.radiomics.items():
        mask, _ = prediction.region(finding)
        expected = extractor.features_or_reason(prediction.network_pixels, mask)
        np.testing.assert_array_equal([features[name] for name in FEATURE_NAMES], expected)


def test_an_image_of_the_training_is_told(run: Path, root: Path, model: Model, tmp_path) -> None:
    trained = next(row for row in rows(run / "training_images.csv") if row["part"] == "train")
    renamed = tmp_path / "new.png"
    shutil.copy(root / "images" / trained["image"], renamed)
    held_out = root / "images" / held_out_rows(run)[0]["image"]
    same_name = tmp_path / trained["image"]
    shutil.copy(held_out, same_name)
    by_pixels, by_name, none = model([renamed, same_name, held_out])
    assert by_pixels.notes == (f"the run was trained or tuned on this image ({trained['image']})",)
    assert "of this name, with other pixels" in by_name.notes[0]
    assert none.notes == ()


def test_noise_is_told_and_held_out_images_are_not(run: Path, root: Path, model: Model) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64), dtype=np.uint8)
    assert all(prediction.unfamiliar for prediction in model(list(noise)))
    held_out = model([root / "images" / row["image"] for row in held_out_rows(run)])
    assert np.mean([prediction.unfamiliar for prediction in held_out]) <= 0.15  # of about 50


def test_a_heat_map_and_its_box_lie_on_the_image_as_given(run: Path, root: Path, model) -> None:
    pixels = cv2.imread(str(root / "images" / held_out_rows(run)[0]["image"]), cv2.IMREAD_GRAYSCALE)
    prediction = model(cv2.resize(pixels, (200, 120)))
    finding = prediction.shown_findings[0]
    heat = prediction.heat_map(finding)
    assert heat.shape == (120, 200)
    assert (heat.min(), heat.max()) == (0, 1)
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    box = prediction.boxes[finding]
    assert box.x - 4 <= x <= box.x + box.w + 4
    assert box.y - 4 <= y <= box.y + box.h + 4
    assert prediction.show().size[0] / prediction.show().size[1] == pytest.approx(200 / 120, 0.02)


def test_what_is_no_image_is_one_sentence(model: Model, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    for image, message in (
        (tmp_path / "gone.png", "gone.png: cannot be opened"),
        (tmp_path / "a.txt", "a.txt: is not a PNG"),
        (np.zeros((4, 4), np.float32), "image 0: is float32; give uint8"),
        (np.zeros((4, 4, 3), np.uint8), r"image 0: is \(4, 4, 3\); give a path, or an array"),
        (7, "image 0: is int; give a path"),
    ):
        with pytest.raises(UserError, match=message):
            model([image])
    with pytest.raises(KeyError, match="'Hernia' is not a finding"):
        model(np.zeros((64, 64), np.uint8)).heat_map("Hernia")


def test_a_run_that_cannot_be_applied_is_one_sentence(run: Path, tmp_path) -> None:
    damaged = tmp_path / "w"
    for name, content, message in (
        ("config.json", None, "is not the folder of a run"),
        ("results.json", None, "is not finished"),
        ("calibration.json", None, r"calibration\.json is missing; write it again .*--mode=eval"),
        ("calibration.json", b"{}", "cannot be read"),
        ("familiarity.json", b'{"step": 1, "digest": "x"}', "is damaged"),
        ("training_images.csv", b"a,b\n1,2\n", "cannot be read"),
        ("map_center.json", None, "is missing"),
        ("checkpoints", None, "is damaged|cannot be read"),
    ):
        shutil.copytree(run, damaged)
        path = damaged / name
        if path.is_dir():
            shutil.rmtree(path)
        elif content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            load(damaged)
        shutil.rmtree(damaged)


def test_facts_of_another_checkpoint_are_refused(run: Path, tmp_path) -> None:
    shutil.copytree(run, tmp_path / "w")
    results = json.loads((tmp_path / "w" / "results.json").read_text())
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    results["best_step"] = next(step for step in steps if step != results["best_step"])
    (tmp_path / "w" / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match="belongs to the checkpoint of step"):
        load(tmp_path / "w")


def test_loading_writes_nothing_into_the_run(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    load(run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_the_package_imports_no_jax_before_it_is_used() -> None:
    code = "import sys, kacl_jax; kacl_jax.load; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert kacl_jax.load.__doc__


def test_a_raw_probability_says_so(run: Path, model: Model) -> None:
    scalings = json.loads((run / "calibration.json").read_text())["findings"]
    prediction = model(np.zeros((64, 64), np.uint8))
    for finding in model.findings:
        assert prediction.calibrated[finding] is (scalings[finding]["reason"] == "")
        if not prediction.calibrated[finding]:
            assert prediction.probabilities[finding] == prediction.scores[finding]


def test_calibration_is_measured_before_and_after(run: Path) -> None:
    classification = json.loads((run / "results.json").read_text())["classification"]
    assert classification["calibrated"].keys() == classification["calibration"].keys()


def test_the_calibrated_values_are_those_of_the_probabilities(
    run: Path, root: Path, model: Model
) -> None:
    """results.json's Brier score after calibration, from what the model says."""
    expected = held_out_rows(run)
    found = model([root / "images" / row["image"] for row in expected])
    probability = np.array([list(p.probabilities.values()) for p in found])
    labels = np.array([[int(row[f"label_{f}"]) for f in model.findings] for row in expected])
    patients = np.array([int(row["patient"]) for row in expected])
    brier = metrics.measure_calibration(probability, labels, patients, resamples=0).brier
    told = json.loads((run / "results.json").read_text())["classification"]["calibrated"]["brier"]
    assert told["mean"]["value"] == pytest.approx(brier.mean.value, abs=1e-12)
    assert dataclasses.is_dataclass(brier)
