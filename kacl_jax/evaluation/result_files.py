"""The files that evaluation writes.

Every file is written completely or not at all. Floats are written with all their digits and rows in a fixed order:
equal results give equal bytes.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.data.nih import Records, to_nih_pixels
from kacl_jax.data.splits import Split
from kacl_jax.evaluation.evaluate import Evaluation
from kacl_jax.evaluation.localization import (
    AFP_IOU,
    FLOORS,
    OVERLAP_THRESHOLDS,
    PredictedBoxes,
    Tables,
)
from kacl_jax.evaluation.metrics import DECISION_METRICS, N_BINS, Calibration, Estimate, Table
from kacl_jax.evaluation.outputs import Outputs, probabilities
from kacl_jax.evaluation.subgroups import Subgroup
from kacl_jax.runtime import files

FEEDBACK_KEYS = ("hit_rate", "mean_age_steps", "failures", "regions", "late", "dropped")
THROUGHPUT_KEYS = ("images_per_s", "rois_per_s", "waits")


def write_predictions(
    path: Path, records: Records, split: Split, *, val: Outputs, test: Outputs
) -> None:
    """predictions.csv: image,patient,split,prob_<Finding> …,label_<Finding> …, val then test."""
    header = ["image", "patient", "split"]
    header += [f"{kind}_{name}" for kind in ("prob", "label") for name in records.findings]

    def make_rows() -> Iterable[list[Any]]:
        for part, ids, outputs in (("val", split.val, val), ("test", split.test, test)):
            output_rows = outputs.rows(ids)
            scores = probabilities(outputs, output_rows, records).tolist()
            for image, probability in zip(
                outputs.image_id[output_rows].tolist(), scores, strict=True
            ):
                labels = records.labels[image].tolist()
                yield [records.names[image], records.patients[image], part, *probability, *labels]

    files.write_text(path, _csv_text(header, make_rows()))


def write_boxes(
    path: Path, records: Records, predicted_boxes: PredictedBoxes, prior_map_iou: np.ndarray
) -> None:
    """boxes.csv: image,finding,x,y,w,h,score,iou,iobb,prior_map_iou; rule single.

    There is one row per (image, finding) that has a scored truth box or is predicted positive. The box is the
    predicted one, in NIH's 1024-pixel frame; score is the probability. iou, iobb and prior_map_iou (float64 [k], from
    `localization.measure_prior_overlaps`) are empty without a scored truth box, the last also where no other patient
    has a box of the finding.
    """
    pixels = to_nih_pixels(predicted_boxes.box).tolist()
    overlaps = np.stack([predicted_boxes.iou, predicted_boxes.iobb], axis=1).tolist()

    def make_rows() -> Iterable[list[Any]]:
        for k, (image, finding) in enumerate(
            zip(predicted_boxes.image_id, predicted_boxes.finding, strict=True)
        ):
            overlap = overlaps[k] if predicted_boxes.scored[k] else [""] * 2
            prior_iou = float(prior_map_iou[k])
            name = records.findings[finding]
            yield [
                records.names[image],
                name,
                *pixels[k],
                float(predicted_boxes.score[k]),
                *overlap,
                "" if math.isnan(prior_iou) else prior_iou,
            ]

    header = ["image", "finding", *"xywh", "score", "iou", "iobb", "prior_map_iou"]
    files.write_text(path, _csv_text(header, make_rows()))


def build_results(
    evaluation: Evaluation,
    records: Records,
    split: Split,
    *,
    seed: int,
    feedback: Mapping[str, Any] | None,
    throughput: Mapping[str, Any] | None,
    pixel_probe: Table | None = None,
) -> dict[str, Any]:
    """results.json as a dict of plain values; an undefined value is None, with a `reason` beside it.

    feedback, throughput: plain dicts with the keys of FEEDBACK_KEYS and THROUGHPUT_KEYS; None if no region was
    measured or nothing was timed. pixel_probe: AUROC of `pixel_probe.score_pixel_probe`, if it was run.
    """
    names, predicted_boxes = records.findings, evaluation.predicted_boxes
    localization: dict[str, Any] = _overlap_leaves(evaluation.accuracy["single"], names)
    localization["best_of"] = _overlap_leaves(evaluation.accuracy["best_of"], names)
    localization["afp"] = _table_leaves(evaluation.afp, names)
    localization["pointing_game"] = _table_leaves(evaluation.pointing["single"], names)
    localization |= {
        name: _overlap_leaves(evaluation.floor_accuracy[name], names) for name in FLOORS
    }
    localization["above_prior_map"] = _overlap_leaves(evaluation.above_prior_map, names)
    for name in ("random_map", "prior_map"):
        localization[name]["pointing_game"] = _table_leaves(evaluation.pointing[name], names)
    n_images = {
        part: len(outputs.rows(ids))
        for part, ids, outputs in (
            ("val", split.val, evaluation.val),
            ("test", split.test, evaluation.test),
        )
    }
    return {
        "protocol": split.protocol,
        "fold": split.fold,
        "seed": seed,
        "split": split.name,
        "split_hash": split.hash,
        "findings": list(names),
        "classification": {
            "auroc": _table_leaves(evaluation.auroc, names),
            "auprc": _auprc_leaves(evaluation.auprc, names),
            **({"pixel_probe": _table_leaves(pixel_probe, names)} if pixel_probe else {}),
            "operating_point": _operating_point_leaves(evaluation, names),
            "calibration": _calibration_leaves(evaluation.calibration, names),
        },
        "localization": localization,
        "subgroups": {
            attribute: {name: _subgroup_leaves(group, names) for name, group in groups.items()}
            for attribute, groups in evaluation.subgroups.items()
        },
        "evaluation": {
            "images": n_images,
            "skipped": {
                "val": len(split.val) - n_images["val"],
                "test": len(split.test) - n_images["test"],
                "boxes": int(split.scored.sum() - predicted_boxes.scored.sum()),
            },
            "grid": list(evaluation.test.class_maps().shape[2:]),
            "predicted_boxes": len(predicted_boxes.box),
            "whole_image_boxes": int(predicted_boxes.fallback.sum()),
            "afp_iou": AFP_IOU,
            "resamples": evaluation.resamples,
        },
        "feedback": dict.fromkeys(FEEDBACK_KEYS) if feedback is None else dict(feedback),
        "throughput": dict.fromkeys(THROUGHPUT_KEYS) if throughput is None else dict(throughput),
    }


def _overlap_leaves(tables: Tables, names: Sequence[str]) -> dict[str, Any]:
    return {
        measure: {
            str(threshold): _table_leaves(table, names)
            for threshold, table in zip(OVERLAP_THRESHOLDS[measure], tables_of_measure, strict=True)
        }
        for measure, tables_of_measure in tables.items()
    }


def _table_leaves(table: Table, names: Sequence[str]) -> dict[str, Any]:
    leaves = {name: _estimate_leaf(e) for name, e in zip(names, table.findings, strict=True)}
    mean = _estimate_leaf(table.mean)
    undefined = [name for name, leaf in leaves.items() if leaf["value"] is None]
    return {**leaves, "mean": {**mean, "left_out": undefined} if undefined else mean}


def _estimate_leaf(estimate: Estimate) -> dict[str, Any]:
    leaf: dict[str, Any] = {
        "value": None if math.isnan(estimate.value) else estimate.value,
        "ci95": None if estimate.ci95 is None else list(estimate.ci95),
        **estimate.counts,
    }
    if estimate.reason:
        leaf["reason"] = estimate.reason
    if estimate.ci_reason:
        leaf["ci_reason"] = estimate.ci_reason
    if estimate.left_out:
        leaf["resamples_left_out"] = estimate.left_out
    return leaf


def _auprc_leaves(table: Table, names: Sequence[str]) -> dict[str, Any]:
    """AUPRC leaves, each with the prevalence, which is the AUPRC of random scores."""
    leaves = _table_leaves(table, names)
    prevalences = []
    for name in names:
        leaf = leaves[name]
        n_images = leaf["n_pos"] + leaf["n_neg"]
        leaf["prevalence"] = leaf["n_pos"] / n_images if n_images else None
        if leaf["value"] is not None:
            prevalences.append(leaf["prevalence"])
    leaves["mean"]["prevalence"] = float(np.mean(prevalences)) if prevalences else None
    return leaves


def _operating_point_leaves(evaluation: Evaluation, names: Sequence[str]) -> dict[str, Any]:
    """For each finding the threshold chosen on the validation part, and its metrics on the test part."""

    def leaf(i: int) -> dict[str, Any]:
        point = evaluation.operating_points[i]
        metric_leaves = {
            name: _estimate_leaf(evaluation.operating_point_tables[name].findings[i])
            for name in DECISION_METRICS
        }
        if point.reason:
            return {"value": None, "youden_j": None, "reason": point.reason, **metric_leaves}
        return {"value": point.threshold, "youden_j": point.youden_j, **metric_leaves}

    return {name: leaf(i) for i, name in enumerate(names)}


def _calibration_leaves(calibration: Calibration, names: Sequence[str]) -> dict[str, Any]:
    curves = ([dataclasses.asdict(b) for b in curve] for curve in calibration.reliability)
    return {
        "brier": _table_leaves(calibration.brier, names),
        "ece": _table_leaves(calibration.ece, names),
        "bins": N_BINS,
        "binning": "equal mass: by rank of the probability, equal probabilities together",
        "reliability": dict(zip(names, curves, strict=True)),
    }


def _subgroup_leaves(group: Subgroup, names: Sequence[str]) -> dict[str, Any]:
    auroc = _table_leaves(group.auroc, names)
    return {"images": group.images, "patients": group.patients, "auroc": auroc}


def _csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
