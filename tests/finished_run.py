"""Writes the files of a finished run, with values that a test chooses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax import config as config_keys
from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.results import (
    Accuracy,
    CalibrationByFinding,
    Classification,
    Extent,
    FeedbackSummary,
    Images,
    Localization,
    MapAccuracy,
    Results,
    Skipped,
    Throughput,
)

CHECKSUMS = {"Data_Entry_2017.csv": "0" * 64}
STEPS_PER_EPOCH = 3


def write_run(
    workdir: Path,
    *,
    scores: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    truth: Sequence[tuple[int, int, float]] = (),
    prior: Callable[[float], float | str] = lambda iou: 1 - iou,
    fold: int = 0,
    seed: int = 0,
    findings: Sequence[str] = ("Mass", "Nodule"),
    split_hash: str = "abc",
    checksums: dict[str, str] = CHECKSUMS,
    **changed: Any,
) -> Path:
    """Write the files into workdir and return it.

    scores, labels: [n c]. truth: (image, finding, IoU of the predicted box). prior: that IoU → the IoU of prior_map's
    box. changed: dotted config keys.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    names = [f"{i:08d}_000.png" for i in range(len(scores))]
    with (workdir / "predictions.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        kinds = [f"{kind}_{name}" for kind in ("prob", "label") for name in findings]
        lines.writerow(["image", "patient", "split", *kinds])
        lines.writerow(["val.png", 999999, "val", *[0.5] * len(findings), *[1] * len(findings)])
        for i, name in enumerate(names):
            lines.writerow([name, patients[i], "test", *scores[i].tolist(), *labels[i].tolist()])
    with (workdir / "boxes.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(
            ["image", "finding", "x", "y", "w", "h", "score", "iou", "iobb", "prior_map_iou"]
        )
        lines.writerow([names[0], findings[0], 1, 1, 9, 9, 0.5, "", "", ""])  # no truth box
        for image, finding, iou in truth:
            lines.writerow([names[image], findings[finding], 1, 1, 9, 9, 0.5, iou, iou, prior(iou)])
    config = {**config_keys.flatten(config_keys.default()), "protocol": "C"}
    config |= {"fold": fold, "seed": seed, "train.epochs": 2, **changed}
    _json(workdir / "config.json", {"config": config, "data": {}})
    origin = {"command": "python", "python": "3", "packages": {}, "git": None, "devices": []}
    _json(workdir / "run.json", {**origin, "checksums": checksums})
    lines_ = [{"step": (e + 1) * STEPS_PER_EPOCH, "kind": "val", "auroc": 0.5} for e in range(2)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines_))
    auroc, auprc = metrics.ranking_tables(scores, labels, patients, resamples=0)
    boxes = metrics.TruthBoxes(
        np.array([finding for _, finding, _ in truth], int),
        patients[[image for image, *_ in truth]],
        n_findings=len(findings),
        resamples=0,
    )
    overlap = np.array([iou for *_, iou in truth])
    table = _table(0.5, len(findings))
    floor_iou = {t: _table(0.5 - t / 2, len(findings)) for t in metrics.IOU_THRESHOLDS}
    floor, map_floor = Accuracy(floor_iou, {}), MapAccuracy(floor_iou, {}, table)
    results = Results(
        protocol="C",
        fold=fold,
        seed=seed,
        split=f"C-pooled-fold{fold}of5",
        split_hash=split_hash,
        findings=tuple(findings),
        classification=Classification(
            auroc=auroc,
            auprc=auprc,
            operating_point={},
            calibration=CalibrationByFinding(brier=table, ece=table, reliability={}),
        ),
        localization=Localization(
            iou=metrics.localization_tables(overlap, boxes, metrics.IOU_THRESHOLDS),
            iobb={},
            best_of=floor,
            afp=table,
            pointing_game=table,
            random_map=map_floor,
            prior_box=floor,
            prior_map=map_floor,
            grid_ceiling=floor,
            above_prior_map=floor,
        ),
        subgroups={},
        evaluation=Extent(Images(1, len(scores)), Skipped(0, 0, 0), (4, 4), len(truth), 0, 0.1, 0),
        feedback=FeedbackSummary(),
        throughput=Throughput(),
        best_step=STEPS_PER_EPOCH,
        trained_steps=2 * STEPS_PER_EPOCH,
    )
    _json(workdir / "results.json", results.to_json())
    return workdir


def _table(value: float, n_findings: int) -> metrics.Table:
    estimate = metrics.Estimate(value, None, {"n": 1})
    return metrics.Table((estimate,) * n_findings, estimate)


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))
