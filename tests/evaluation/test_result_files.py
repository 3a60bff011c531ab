"""The files can be read back, agree with each other, and are never half written."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from toy_root import toy_outputs, toy_records, toy_split

from kacl_jax.data.records import Records, from_nih_pixels
from kacl_jax.data.splits import Split
from kacl_jax.evaluation import metrics, number_format, result_files, terminal_table
from kacl_jax.evaluation.evaluate import Evaluation, evaluate_outputs
from kacl_jax.evaluation.localization import Reading
from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.evaluation.results import FeedbackSummary, Results, Skipped, Throughput
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError

READING = Reading(size=64, relu=True, threshold=0.5)


@dataclasses.dataclass(frozen=True)
class Run:
    records: Records
    split: Split
    evaluation: Evaluation

    def results(self, **more) -> Results:
        of_run = {"feedback": FeedbackSummary(), "throughput": Throughput()}
        of_run |= {"seed": 3, "best_step": 6, "trained_steps": 9, **more}
        return result_files.build_results(self.evaluation, self.records, self.split, **of_run)


def evaluate_toy(records: Records, split: Split, order: int | None = None) -> Run:
    val, test = (toy_outputs(records, ids) for ids in (split.val, split.test))
    if order is not None:
        at = np.random.default_rng(order).permutation(len(test.image_id))
        test = Outputs(test.image_id[at], test.logits[at], test.class_maps()[at])
    return Run(records, split, evaluate_outputs(val, test, records, split, READING, resamples=50))


@pytest.fixture(scope="module")
def done() -> Run:
    records = toy_records()
    return evaluate_toy(records, toy_split(records))


@pytest.fixture(scope="module")
def without_positives() -> Run:
    """Infiltration is never positive."""
    records = toy_records()
    labels, has_box = records.labels.copy(), records.has_box.copy()
    labels[:, 3], has_box[:, 3] = 0, False
    records = dataclasses.replace(records, labels=labels, has_box=has_box)
    return evaluate_toy(records, toy_split(records))


def write_all(folder: Path, done: Run) -> None:
    records, split, evaluation = done.records, done.split, done.evaluation
    folder.mkdir(exist_ok=True)
    result_files.write_predictions(
        folder / "predictions.csv", records, split, val=evaluation.val, test=evaluation.test
    )
    result_files.write_boxes(
        folder / "boxes.csv", records, evaluation.predicted_boxes, evaluation.prior_map_iou
    )
    files.write_json(folder / "results.json", done.results().to_json())


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_bytes_do_not_depend_on_the_order_of_the_rows(tmp_path, done) -> None:
    write_all(tmp_path / "one", done)
    write_all(tmp_path / "other", evaluate_toy(done.records, done.split, order=1))
    for name in ("predictions.csv", "boxes.csv", "results.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_the_results_follow_from_the_predictions(tmp_path, done) -> None:
    write_all(tmp_path, done)
    rows, split, records = read_csv(tmp_path / "predictions.csv"), done.split, done.records
    assert list(rows[0]) == ["image", "patient", "split"] + [
        f"{kind}_{name}" for kind in ("prob", "label") for name in records.findings
    ]
    parts = {"val": split.val, "test": split.test}
    for part, ids in parts.items():
        assert [r["image"] for r in rows if r["split"] == part] == records.names[ids].tolist()
    assert len(rows) == len(split.val) + len(split.test)
    test = [r for r in rows if r["split"] == "test"]
    assert [int(r["patient"]) for r in test] == records.patients[split.test].tolist()
    auroc = read_json(tmp_path / "results.json")["classification"]["auroc"]
    for name in records.findings:
        labels = [int(r[f"label_{name}"]) for r in test]
        scores = [float(r[f"prob_{name}"]) for r in test]
        assert auroc[name]["value"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert auroc[name]["n_pos"] == sum(labels)


def test_the_results_follow_from_the_boxes(tmp_path, done) -> None:
    write_all(tmp_path, done)
    records, split = done.records, done.split
    rows, written = read_csv(tmp_path / "boxes.csv"), read_json(tmp_path / "results.json")
    assert list(rows[0]) == [
        "image",
        "finding",
        "x",
        "y",
        "w",
        "h",
        "score",
        "iou",
        "iobb",
        "prior_map_iou",
    ]
    assert len({(r["image"], r["finding"]) for r in rows}) == len(rows)
    hits: dict[str, list[bool]] = {name: [] for name in records.findings}
    prior_hits: dict[str, list[bool]] = {name: [] for name in records.findings}
    for row in rows:
        image = int(np.flatnonzero(records.names == row["image"])[0])
        c = records.findings.index(row["finding"])
        if not split.scored[image, c]:
            threshold = written["classification"]["operating_point"][row["finding"]]["value"]
            assert (row["iou"], row["iobb"], row["prior_map_iou"]) == ("", "", "")
            assert float(row["score"]) >= threshold
            continue
        box = from_nih_pixels(np.array([float(row[key]) for key in "xywh"]))
        (truth,) = records.boxes[image, c]
        iou = metrics.iou(box, truth)
        assert float(row["iou"]) == pytest.approx(iou, abs=1e-5)
        assert float(row["iobb"]) == pytest.approx(metrics.iobb(box, truth), abs=1e-5)
        hits[row["finding"]].append(float(row["iou"]) > 0.4)
        prior_hits[row["finding"]].append(float(row["prior_map_iou"]) > 0.4)
    assert sum(map(len, hits.values())) == split.scored.sum()
    for name, hit in hits.items():
        leaf = written["localization"]["iou"]["0.4"][name]
        assert (leaf["value"], leaf["n"]) == (pytest.approx(np.mean(hit)), len(hit))
        leaf = written["localization"]["prior_map"]["iou"]["0.4"][name]
        assert leaf["value"] == pytest.approx(np.mean(prior_hits[name]))


def test_each_truth_box_has_a_row_and_so_has_a_prediction_without_one(tmp_path) -> None:
    records = toy_records(most_boxes=3)
    done = evaluate_toy(records, toy_split(records))
    write_all(tmp_path, done)
    rows = read_csv(tmp_path / "boxes.csv")
    seen = []
    for (name, finding), group in itertools.groupby(rows, key=lambda r: (r["image"], r["finding"])):
        of_pair, c = list(group), records.findings.index(finding)
        (image,) = np.flatnonzero(records.names == name)
        (place,) = {tuple(float(row[key]) for key in "xywh") for row in of_pair}
        ious = [float(row["iou"]) for row in of_pair if row["iou"]]
        truth = records.boxes[image, c][records.is_box[image, c]]
        expected = metrics.iou(from_nih_pixels(np.array(place)), truth)
        assert ious == pytest.approx(expected, abs=1e-5)
        assert len(of_pair) == max(len(ious), 1)
        seen.append((name, finding, len(ious)))
    assert len({pair[:2] for pair in seen}) == len(seen)
    assert {n for *_, n in seen} == {0, 1, 2, 3}
    n = read_json(tmp_path / "results.json")["localization"]["iou"]["0.1"]["mean"]["n"]
    assert n == sum(n for *_, n in seen) == records.is_box[done.split.scored].sum()


def test_every_predicted_positive_of_the_test_part_has_its_box(done) -> None:
    evaluation = done.evaluation
    pairs = set(
        zip(evaluation.predicted_boxes.image_id, evaluation.predicted_boxes.finding, strict=True)
    )
    probability = 1 / (1 + np.exp(-evaluation.test.logits.astype(np.float64)))
    for row, c in np.argwhere(
        probability >= [d.value + 1e-12 for d in evaluation.classification.operating_point.values()]
    ):
        assert (evaluation.test.image_id[row], c) in pairs


def test_a_truth_box_as_prediction_is_written_as_nih_wrote_it(tmp_path, done) -> None:
    predicted_boxes, records = done.evaluation.predicted_boxes, done.records
    box, truth = predicted_boxes.box.copy(), predicted_boxes.truth
    box[predicted_boxes.truth_pair] = truth
    perfect = dataclasses.replace(
        predicted_boxes, box=box, iou=metrics.iou(truth, truth), iobb=metrics.iobb(truth, truth)
    )
    result_files.write_boxes(tmp_path / "boxes.csv", records, perfect, perfect.iou)
    rows = [row for row in read_csv(tmp_path / "boxes.csv") if row["iou"]]
    for row, box in zip(rows, truth, strict=True):
        x, y, w, h = (float(row[key]) for key in "xywh")
        assert (x, y, x + w, y + h) == pytest.approx(box * 1024, abs=1e-9)
        assert (float(row["iou"]), float(row["iobb"])) == (1, 1)


def test_results_json_has_the_documented_shape(tmp_path, done) -> None:
    files.write_json(tmp_path / "results.json", done.results().to_json())
    written, names = read_json(tmp_path / "results.json"), {*done.records.findings, "mean"}
    assert (written["protocol"], written["fold"], written["seed"]) == ("A", None, 3)
    assert written["split_hash"] == done.split.hash
    classification, localization = written["classification"], written["localization"]
    leaves = [classification["auroc"], classification["auprc"], localization["afp"]]
    leaves += [classification["calibration"]["brier"], classification["calibration"]["ece"]]
    leaves += [way["pointing_game"] for way in
               (localization, localization["prior_map"], localization["random_map"])]  # fmt: skip
    leaves += [group["auroc"] for groups in written["subgroups"].values()
               for group in groups.values() if group["images"]]  # fmt: skip
    for way in (localization, *(localization[k] for k in
                ("best_of", "random_map", "prior_box", "prior_map", "grid_ceiling"))):  # fmt: skip
        assert list(way["iou"]) == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"]
        assert list(way["iobb"]) == ["0.1", "0.25", "0.5", "0.75", "0.9"]
        leaves += [*way["iou"].values(), *way["iobb"].values()]
    assert set(written["subgroups"]) == {"sex", "age", "view"}
    for leaf in leaves:
        assert set(leaf) == names
        for name, estimate in leaf.items():
            assert {"value", "ci95"} < set(estimate)
            assert ("n_findings" in estimate) == (name == "mean")
            if estimate["ci95"] is None:
                assert estimate["ci_reason"]
            else:
                assert estimate["ci95"][0] < estimate["ci95"][1]
    assert {"n_pos", "n_neg"} < set(written["classification"]["auroc"]["Mass"])
    assert written["feedback"] == dict.fromkeys(
        ("hit_rate", "mean_age_steps", "failures", "regions", "late", "dropped")
    )
    assert written["throughput"] == {"images_per_s": None, "rois_per_s": None, "waits": None}


def test_auprc_stands_beside_the_prevalence(done) -> None:
    auprc, ids = done.results().classification.auprc, done.split.test
    for c in range(len(done.records.findings)):
        expected = average_precision_score(
            done.records.labels[ids, c], done.evaluation.test.logits[:, c]
        )
        assert auprc.findings[c].value == pytest.approx(expected, abs=1e-12)
        assert auprc.findings[c].prevalence == done.records.labels[ids, c].mean()
    assert auprc.mean.prevalence == pytest.approx(done.records.labels[ids].mean())


def test_operating_points_say_what_they_are_worth(done) -> None:
    written = done.results().to_json()["classification"]["operating_point"]
    for name, decision in done.evaluation.classification.operating_point.items():
        assert written[name]["value"] == decision.value
        for metric in metrics.DECISION_METRICS:
            leaf, estimate = written[name][metric], getattr(decision, metric)
            assert (leaf["value"], leaf["n"]) == (estimate.value, estimate.counts["n"])


def test_reliability_curves_hold_every_test_image_and_give_the_ece(done) -> None:
    written = done.results().to_json()["classification"]["calibration"]
    for name in done.records.findings:
        curve = written["reliability"][name]
        n = sum(b["n"] for b in curve)
        gap = sum(b["n"] * abs(b["observed"] - b["predicted"]) for b in curve) / n
        assert n == len(done.split.test)
        assert written["ece"][name]["value"] == pytest.approx(gap)


def test_feedback_and_throughput_are_passed_on(done) -> None:
    feedback = FeedbackSummary(0.5, 9.0, {"time-out": 1}, {"cam": 2}, 0, 3)
    throughput = Throughput(7.0, 8.0, {"radiomics_s": 0.5})
    written = done.results(feedback=feedback, throughput=throughput).to_json()
    assert written["feedback"] == {
        "hit_rate": 0.5,
        "mean_age_steps": 9.0,
        "failures": {"time-out": 1},
        "regions": {"cam": 2},
        "late": 0,
        "dropped": 3,
    }
    assert written["throughput"] == {
        "images_per_s": 7.0,
        "rois_per_s": 8.0,
        "waits": {"radiomics_s": 0.5},
    }


def test_what_is_undefined_is_null_with_a_reason(without_positives) -> None:
    written = without_positives.results().to_json()
    localization = written["localization"]
    for leaves in (written["classification"]["auroc"], written["classification"]["auprc"],
                   localization["afp"], localization["pointing_game"],
                   localization["iou"]["0.1"], localization["prior_map"]["iobb"]["0.5"]):  # fmt: skip
        assert leaves["Infiltration"]["value"] is None
        assert leaves["Infiltration"]["ci95"] is None
        assert leaves["Infiltration"]["reason"]
        assert leaves["mean"]["n_findings"] == 7
        assert leaves["mean"]["left_out"] == ["Infiltration"]
    assert written["classification"]["auprc"]["Infiltration"]["prevalence"] == 0
    point = written["classification"]["operating_point"]["Infiltration"]
    assert point["value"] is None
    assert point["sensitivity"] == {"value": None, "ci95": None, "n": 0, "reason": point["reason"]}
    nobody = written["subgroups"]["sex"]["M"]["auroc"]
    assert nobody["Mass"]["reason"] == "no image"
    assert nobody["mean"]["value"] is None


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch, done) -> None:
    boxes = done.evaluation.predicted_boxes, done.evaluation.prior_map_iou
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "gone" / "boxes.csv", tmp_path / "file" / "boxes.csv"):
        with pytest.raises(UserError, match=str(path)):
            result_files.write_boxes(path, done.records, *boxes)
    (tmp_path / "file").unlink()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "boxes.csv"
    result_files.write_boxes(path, done.records, *boxes)
    before = path.read_bytes()
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=r"boxes\.csv cannot be written .*No space left"):
        result_files.write_boxes(path, done.records, *boxes)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_terminal_table_says_what_the_json_says(done) -> None:
    text, written = terminal_table.format_table(done.results()), done.results().to_json()
    lines = text.splitlines()
    assert done.split.name in lines[0]
    assert done.split.hash in lines[0]
    assert max(map(len, lines)) <= 112
    for name in done.records.findings:
        leaf = written["classification"]["auroc"][name]
        line = next(line for line in lines if line.startswith(name))
        assert f"{leaf['value']:.3f}" in line
        precision = written["classification"]["auprc"][name]["value"]
        assert f"{precision:.3f}" in line
        assert line.split()[-2:] == [str(leaf["n_pos"]), str(leaf["n_neg"])]
    above = written["localization"]["above_prior_map"]["iou"]["0.1"]["mean"]
    low, high = (number_format.signed(end) for end in above["ci95"])
    assert (
        f"minus prior_map, IoU >: 0.1 {number_format.signed(above['value'])} [{low}, {high}]"
        in text
    )
    game = written["localization"]["pointing_game"]["mean"]["value"]
    assert f"(pointing game): {game:.3f}" in text
    for way in ("best_of", "random_map", "prior_box", "prior_map", "grid_ceiling"):
        cells = next(line for line in lines if line.startswith(way + " ")).split()[1:]
        means = [written["localization"][way][m][t]["mean"]["value"]
                 for m in ("iou", "iobb") for t in written["localization"][way][m]]  # fmt: skip
        assert [float(cell) for cell in cells] == pytest.approx(means, abs=0.00051)


def test_the_terminal_table_explains_every_dash(without_positives) -> None:
    text = terminal_table.format_table(without_positives.results())
    assert "mean of 7" in text
    assert "AUROC of Infiltration: no positive" in text
    assert "localization of Infiltration: no truth box of this finding is scored" in text


def test_the_terminal_table_of_a_set_without_boxes_has_no_dashes() -> None:
    records = toy_records()
    split = toy_split(records)
    split = dataclasses.replace(split, scored=np.zeros_like(split.scored), floors=())
    text = terminal_table.format_table(evaluate_toy(records, split).results())
    assert "localization: no test image has a truth box" in text
    assert not re.search("prior_map|–|truth box of", text)


@pytest.mark.parametrize("most_boxes", [1, 2])
def test_the_terminal_table_counts_what_could_not_be_read(most_boxes: int) -> None:
    records = toy_records(most_boxes=most_boxes)
    done = evaluate_toy(records, toy_split(records))
    test = done.evaluation.test
    gone = np.flatnonzero(done.split.scored.any(1))[0]
    kept = test.image_id != gone
    fewer = Outputs(test.image_id[kept], test.logits[kept], test.class_maps()[kept])
    evaluation = evaluate_outputs(
        done.evaluation.val, fewer, done.records, done.split, READING, resamples=5
    )
    results = dataclasses.replace(done, evaluation=evaluation).results()
    boxes = int(records.boxes[gone][done.split.scored[gone]].any(-1).sum())
    assert results.evaluation.skipped == Skipped(val=0, test=1, boxes=boxes)
    assert f"1 test images, {boxes} truth boxes" in terminal_table.format_table(results)
