"""The files that evaluation leaves behind.

Every file is written whole or not at all. Floats are written with all their digits, rows in a
fixed order: two runs that computed the same leave the same bytes.
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
from kacl_jax.evaluation.localization import AFP_IOU, FLOORS, MEASURES, Located, Tables
from kacl_jax.evaluation.metrics import BINS, DECISIONS, Calibration, Estimate, Table
from kacl_jax.evaluation.outputs import Outputs, probabilities
from kacl_jax.evaluation.subgroups import Subgroup
from kacl_jax.runtime import files

FEEDBACK = ("hit_rate", "mean_age_steps", "failures", "regions", "late", "dropped")
THROUGHPUT = ("images_per_s", "rois_per_s", "waits")


def write_predictions(
    path: Path, records: Records, split: Split, *, val: Outputs, test: Outputs
) -> None:
    """predictions.csv: image,patient,split,prob_<Finding> …,label_<Finding> …, val then test."""
    header = ["image", "patient", "split"]
    header += [f"{kind}_{name}" for kind in ("prob", "label") for name in records.findings]

    def rows() -> Iterable[list[Any]]:
        for part, ids, outputs in (("val", split.val, val), ("test", split.test, test)):
            at = outputs.rows(ids)
            scores = probabilities(outputs, at, records).tolist()
            for image, scored in zip(outputs.image_id[at].tolist(), scores, strict=True):
                labels = records.labels[image].tolist()
                yield [records.names[image], records.patients[image], part, *scored, *labels]

    files.write_text(path, _csv(header, rows()))


def write_boxes(path: Path, records: Records, located: Located, prior_map_iou: np.ndarray) -> None:
    """boxes.csv: image,finding,x,y,w,h,score,iou,iobb,prior_map_iou; rule single, one row per scored
    truth box and per predicted-positive (image, finding), a pair that is both once. The box is the
    predicted one, in NIH's 1024-pixel frame; score is the probability. iou, iobb and the IoU of the
    box that looks at no image (float64 [k], `locate.prior_overlaps`) are empty without truth,
    the last also where no other patient has a box of the finding.
    """
    pixels = to_nih_pixels(located.box).tolist()
    overlaps = np.stack([located.iou, located.iobb], axis=1).tolist()

    def rows() -> Iterable[list[Any]]:
        for k, (image, finding) in enumerate(zip(located.image_id, located.finding, strict=True)):
            overlap = overlaps[k] if located.scored[k] else [""] * 2
            blind = float(prior_map_iou[k])
            name = records.findings[finding]
            yield [
                records.names[image],
                name,
                *pixels[k],
                float(located.score[k]),
                *overlap,
                "" if math.isnan(blind) else blind,
            ]

    header = ["image", "finding", *"xywh", "score", "iou", "iobb", "prior_map_iou"]
    files.write_text(path, _csv(header, rows()))


def results(
    evaluation: Evaluation,
    records: Records,
    split: Split,
    *,
    seed: int,
    feedback: Mapping[str, Any] | None,
    throughput: Mapping[str, Any] | None,
    pixel_probe: Table | None = None,
) -> dict[str, Any]:
    """results.json as a dict of plain values; what is undefined is None beside a `reason`.

    feedback and throughput are plain dicts with the keys of FEEDBACK and THROUGHPUT, None where
    no region was measured or nothing timed. pixel_probe: AUROC of `probe.pixel_probe`, if it was run.
    """
    names, located = records.findings, evaluation.located
    localization: dict[str, Any] = _measures(evaluation.accuracy["single"], names)
    localization["best_of"] = _measures(evaluation.accuracy["best_of"], names)
    localization["afp"] = _leaves(evaluation.afp, names)
    localization["pointing_game"] = _leaves(evaluation.pointing["single"], names)
    localization |= {name: _measures(evaluation.floors[name], names) for name in FLOORS}
    localization["above_prior_map"] = _measures(evaluation.above_prior_map, names)
    for name in ("random_map", "prior_map"):
        localization[name]["pointing_game"] = _leaves(evaluation.pointing[name], names)
    seen = {
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
            "auroc": _leaves(evaluation.auroc, names),
            "auprc": _auprc(evaluation.auprc, names),
            **({"pixel_probe": _leaves(pixel_probe, names)} if pixel_probe else {}),
            "operating_point": _operating_points(evaluation, names),
            "calibration": _calibration(evaluation.calibration, names),
        },
        "localization": localization,
        "subgroups": {
            attribute: {name: _subgroup(group, names) for name, group in groups.items()}
            for attribute, groups in evaluation.subgroups.items()
        },
        "evaluation": {
            "images": seen,
            "skipped": {
                "val": len(split.val) - seen["val"],
                "test": len(split.test) - seen["test"],
                "boxes": int(split.scored.sum() - located.scored.sum()),
            },
            "grid": list(evaluation.test.class_maps().shape[2:]),
            "predicted_boxes": len(located.box),
            "whole_image_boxes": int(located.fallback.sum()),
            "afp_iou": AFP_IOU,
            "resamples": evaluation.resamples,
        },
        "feedback": dict.fromkeys(FEEDBACK) if feedback is None else dict(feedback),
        "throughput": dict.fromkeys(THROUGHPUT) if throughput is None else dict(throughput),
    }


def _measures(tables: Tables, names: Sequence[str]) -> dict[str, Any]:
    return {
        measure: {
            str(threshold): _leaves(table, names)
            for threshold, table in zip(MEASURES[measure], of_measure, strict=True)
        }
        for measure, of_measure in tables.items()
    }


def _leaves(table: Table, names: Sequence[str]) -> dict[str, Any]:
    leaves = {name: _leaf(e) for name, e in zip(names, table.findings, strict=True)}
    mean = _leaf(table.mean)
    absent = [name for name, leaf in leaves.items() if leaf["value"] is None]
    return {**leaves, "mean": {**mean, "left_out": absent} if absent else mean}


def _leaf(estimate: Estimate) -> dict[str, Any]:
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


def _auprc(table: Table, names: Sequence[str]) -> dict[str, Any]:
    """Beside each figure the prevalence, which is what random scores reach."""
    leaves = _leaves(table, names)
    defined = []
    for name in names:
        leaf = leaves[name]
        images = leaf["n_pos"] + leaf["n_neg"]
        leaf["prevalence"] = leaf["n_pos"] / images if images else None
        if leaf["value"] is not None:
            defined.append(leaf["prevalence"])
    leaves["mean"]["prevalence"] = float(np.mean(defined)) if defined else None
    return leaves


def _operating_points(evaluation: Evaluation, names: Sequence[str]) -> dict[str, Any]:
    """The threshold chosen on the validation part, and what it does on the test part."""

    def leaf(i: int) -> dict[str, Any]:
        point = evaluation.points[i]
        worth = {name: _leaf(evaluation.decisions[name].findings[i]) for name in DECISIONS}
        if point.reason:
            return {"value": None, "youden_j": None, "reason": point.reason, **worth}
        return {"value": point.threshold, "youden_j": point.youden_j, **worth}

    return {name: leaf(i) for i, name in enumerate(names)}


def _calibration(calibration: Calibration, names: Sequence[str]) -> dict[str, Any]:
    curves = ([dataclasses.asdict(b) for b in curve] for curve in calibration.reliability)
    return {
        "brier": _leaves(calibration.brier, names),
        "ece": _leaves(calibration.ece, names),
        "bins": BINS,
        "binning": "equal mass: by rank of the probability, equal probabilities together",
        "reliability": dict(zip(names, curves, strict=True)),
    }


def _subgroup(group: Subgroup, names: Sequence[str]) -> dict[str, Any]:
    auroc = _leaves(group.auroc, names)
    return {"images": group.images, "patients": group.patients, "auroc": auroc}


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
