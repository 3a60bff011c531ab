"""One finished run → its metrics, each with its values over many resamples of the test patients.

Pure numpy. Reads results.json, predictions.csv, boxes.csv, metrics.jsonl, config.json and run.json of a workdir. All
runs of a fold use the same resamples of patients, so that compare.py can pair the runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.config.stored import read_config
from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.contrastive_summary import ContrastiveSummary, summarise_last_epoch
from kacl_jax.evaluation.metrics.bootstrap import divide, index_patients
from kacl_jax.evaluation.metrics.ranking import Ranking
from kacl_jax.evaluation.predictions import (
    CONTROL,
    FUSED,
    SavedPredictions,
    check_digests,
    read_predictions,
)
from kacl_jax.evaluation.results import Results, read_results
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError

TABLE_IOU_THRESHOLDS = (0.1, 0.3, 0.5)
METRICS = ("auroc", "auprc", *(f"iou_{t}" for t in TABLE_IOU_THRESHOLDS))
FLOORS = ("prior_map", "prior_box")
_SPLIT_KEYS = (
    "protocol",
    "folds",
    "data.split_seed",
    "data.split_version",
    "data.val_fraction",
    "data.findings",
)
_RESAMPLES_AT_ONCE = 250  # few enough for a processor's cache
AGREEMENT_TOLERANCE = 1e-9  # between results.json and the values from predictions.csv and boxes.csv


@dataclass(frozen=True, eq=False)
class ResampledValue:
    """One metric of one run: its mean over the findings for which it is defined, and the same of each resample."""

    value: float  # NaN: it is defined for no finding
    draws: np.ndarray  # float64 [B], one value per resample
    n_findings: int  # for which it is defined
    undefined: dict[str, str]  # finding → reason


@dataclass(frozen=True, eq=False)
class RunFiles:
    """What a run's JSON files say; of metrics.jsonl, which is long, only what a sweep needs."""

    workdir: Path
    config: dict[str, Any]  # dotted keys
    results: Results
    origin: dict[str, Any]  # run.json
    steps_per_epoch: int  # 0: no epoch is over
    contrast: ContrastiveSummary | None  # None: no contrastive loss


@dataclass(frozen=True, eq=False)
class RunMeasurements:
    """One finished run. `settings` must be equal in all runs of a sweep, `test_set` in all runs of a fold."""

    settings: dict[str, Any]
    split: str
    split_hash: str
    box_share: float
    test_set: tuple[Any, ...]  # images, patients, labels and truth boxes
    counts: dict[str, int]  # images, patients, boxes
    metric_values: dict[str, ResampledValue]  # by metric
    # By metric: T(IoU) of prior_map's box, paired with `metric_values`.
    prior_map: dict[str, ResampledValue]
    floors: dict[str, dict[str, float]]  # by floor, then by metric; NaN: undefined
    commit: str = ""  # of the code that tested the run; "": unknown
    contrast: ContrastiveSummary | None = None  # None: no contrastive loss
    results: Results | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)  # run.json
    # By what was added to the network's scores, as config.fusion.kind: AUROC and AUPRC. Empty without fusion.
    fused: Mapping[str, dict[str, ResampledValue]] = field(default_factory=dict)


class BrokenRunError(UserError):
    """A file of a run is missing, damaged, or does not belong to the others."""


def read_files(workdir: Path) -> RunFiles:
    """Read a run that was tested. Raises BrokenRunError if a file is missing or incomplete."""
    try:
        return _read_files(workdir)
    except UserError as error:
        raise BrokenRunError(str(error)) from error


def _read_files(workdir: Path) -> RunFiles:
    results = read_results(workdir / "results.json")
    origin = files.read_json(workdir / "run.json")
    if not isinstance(origin, dict) or not {"git", "checksums"} <= origin.keys():
        raise UserError(
            f"{workdir / 'run.json'} does not say where the run comes from; write it again with the point's own "
            "command and --mode=eval"
        )
    config = read_config(workdir)
    log = files.read_json_lines(workdir / "metrics.jsonl")
    # The first validation ends the first epoch.
    steps_per_epoch = next((line["step"] for line in log if line["kind"] == "val"), 0)
    contrast = summarise_last_epoch(log, config)
    return RunFiles(workdir, config, results, origin, steps_per_epoch, contrast)


def measure_run(run: RunFiles, *, resamples: int = metrics.RESAMPLES) -> RunMeasurements:
    """Read the predictions and boxes of a run and resample its patients.

    Raises:
      BrokenRunError: a file is missing or incomplete, or comes from another evaluation than the others.
    """
    try:
        check_digests(run.workdir, run.results.digests)
        predictions = read_predictions(run.workdir, run.results.findings)
        return _measure(run, predictions, resamples)
    except UserError as error:
        raise BrokenRunError(str(error)) from error


def _measure(run: RunFiles, predictions: SavedPredictions, resamples: int) -> RunMeasurements:
    config, results, origin = run.config, run.results, run.origin
    weights = patient_weights(config["fold"], index_patients(predictions.patients)[1], resamples)
    metric_values = {
        **resampled_ranking(predictions, weights),
        **resampled_localization(predictions, predictions.iou, weights),
    }
    _check_files_agree(run.workdir, results, metric_values)
    fused = _measure_fused(run, predictions, weights)
    floors = {name: results.localization.rules_and_floors()[name].iou for name in FLOORS}
    boxes = zip(predictions.box_image.tolist(), predictions.box_finding.tolist(), strict=True)
    return RunMeasurements(
        settings={
            "data checksums": origin["checksums"],
            **{key: config[key] for key in _SPLIT_KEYS},
        },
        split=results.split,
        split_hash=results.split_hash,
        box_share=config["data.box_share"],
        test_set=(
            predictions.images,
            predictions.patients.tobytes(),
            predictions.labels.tobytes(),
            sorted(boxes),
        ),
        counts={
            "images": len(predictions.images),
            "patients": weights.shape[0],
            "boxes": len(predictions.iou),
        },
        metric_values=metric_values,
        prior_map=resampled_localization(predictions, predictions.prior_map_iou, weights),
        fused=fused,
        floors={
            name: {f"iou_{t}": tables[t].mean.value for t in TABLE_IOU_THRESHOLDS}
            for name, tables in floors.items()
        },
        commit=origin["git"] or "",
        contrast=run.contrast,
        results=results,
        origin=origin,
    )


def _measure_fused(
    run: RunFiles, network: SavedPredictions, weights: np.ndarray
) -> dict[str, dict[str, ResampledValue]]:
    """See `RunMeasurements.fused`."""
    fused = run.results.fused
    if fused is None:
        return {}
    tables = {"image": (CONTROL, fused.image_pair), fused.kind: (FUSED, fused.scores)}
    measured = {}
    for kind, (table, told) in tables.items():
        if told is None:
            continue
        predictions = read_predictions(run.workdir, run.results.findings, table)
        if predictions.images != network.images:
            raise UserError(
                f"{run.workdir / table} has other images than predictions.csv; write them again with the point's own "
                "command and --mode=eval"
            )
        measured[kind] = resampled_ranking(predictions, weights)
        _check_agrees(run.workdir, table, "auroc", told.classification.auroc, measured[kind])
    return measured


def _check_files_agree(
    workdir: Path, results: Results, metric_values: Mapping[str, ResampledValue]
) -> None:
    tables = "predictions.csv and boxes.csv"
    _check_agrees(workdir, tables, "auroc", results.classification.auroc, metric_values)
    for t in TABLE_IOU_THRESHOLDS:
        _check_agrees(workdir, tables, f"iou_{t}", results.localization.iou[t], metric_values)


def _check_agrees(
    workdir: Path,
    tables: str,
    metric: str,
    told: metrics.Table,
    metric_values: Mapping[str, ResampledValue],
) -> None:
    """Raises UserError if the mean that results.json tells is not the one that the tables give."""
    from_json, from_csv = told.mean.value, metric_values[metric].value
    if not np.isclose(from_csv, from_json, rtol=0, atol=AGREEMENT_TOLERANCE, equal_nan=True):
        say = "say" if " and " in tables else "says"
        raise UserError(
            f"{workdir}: results.json says {metric} {from_json:.6f}, but {tables} {say} {from_csv:.6f}; write them "
            "again with the point's own command and --mode=eval"
        )


@lru_cache(maxsize=8)
def patient_weights(fold: int, n_patients: int, resamples: int) -> np.ndarray:
    """How often each resample draws each patient, the same for all runs of a fold: float64 [patients 1+B].

    Column 0 is the sample itself: each patient once.
    """
    rng = np.random.default_rng((fold, n_patients))
    even = np.full(n_patients, 1 / n_patients)
    weights = np.ones((n_patients, 1 + resamples))
    weights[:, 1:] = rng.multinomial(n_patients, even, size=resamples).T
    weights.flags.writeable = False
    return weights


def resampled_ranking(
    predictions: SavedPredictions, weights: np.ndarray
) -> dict[str, ResampledValue]:
    """AUROC and AUPRC, means over findings. AUPRC is average precision. Resampling biases its resamples upwards, which
    matters to no interval here: they take the spread of the resamples only.

    weights: from `patient_weights`.
    """
    cluster, n_clusters = index_patients(predictions.patients)
    areas = np.full((2, len(predictions.findings), weights.shape[1]), math.nan)
    undefined = {}
    for c, name in enumerate(predictions.findings):
        ranked = Ranking(predictions.scores[:, c], predictions.labels[:, c], cluster, n_clusters)
        reason = metrics.missing_class_reason(ranked.n_pos, ranked.n_neg)
        if reason:
            undefined[name] = reason
            continue
        for start in range(0, weights.shape[1], _RESAMPLES_AT_ONCE):
            chunk = slice(start, start + _RESAMPLES_AT_ONCE)
            areas[:, c, chunk] = ranked.areas(weights[:, chunk], precision=True).T
    return {
        "auroc": _mean_over_findings(areas[0], undefined),
        "auprc": _mean_over_findings(areas[1], undefined),
    }


def resampled_localization(
    predictions: SavedPredictions, iou: np.ndarray, weights: np.ndarray
) -> dict[str, ResampledValue]:
    """Share of a finding's truth boxes with `iou` > T, mean over findings, as `metrics.localization_tables`.

    iou: float64 [m]. If one of them is NaN, the values are undefined.
    """
    if np.isnan(iou).any():
        undefined_value = ResampledValue(math.nan, np.full(weights.shape[1] - 1, math.nan), 0, {})
        return {f"iou_{t}": undefined_value for t in TABLE_IOU_THRESHOLDS}
    cluster = index_patients(predictions.patients)[0][predictions.box_image]
    is_of_finding = predictions.box_finding[:, None] == np.arange(len(predictions.findings))
    undefined = {
        name: metrics.NO_TRUTH_BOX
        for name, has_boxes in zip(predictions.findings, is_of_finding.any(axis=0), strict=True)
        if not has_boxes
    }

    def count_per_resample(boxes: np.ndarray) -> np.ndarray:
        """How many of the boxes each resample holds: bool [m c] → float64 [c 1+B]."""
        per_patient = np.zeros((weights.shape[0], boxes.shape[1]))
        np.add.at(per_patient, cluster, boxes.astype(np.float64))
        return per_patient.T @ weights

    n_boxes = count_per_resample(is_of_finding)
    return {
        f"iou_{t}": _mean_over_findings(
            divide(count_per_resample(is_of_finding & (iou > t)[:, None]), n_boxes), undefined
        )
        for t in TABLE_IOU_THRESHOLDS
    }


def _mean_over_findings(values: np.ndarray, undefined: dict[str, str]) -> ResampledValue:
    """values [c 1+B]: column 0 holds the values, the others their resamples; NaN where undefined.

    The mean of a resample is NaN if it lacks a finding over which the value's own mean is taken.
    """
    defined = values[np.isfinite(values[:, 0])]
    mean = defined.mean(axis=0) if len(defined) else np.full(values.shape[1], math.nan)
    return ResampledValue(float(mean[0]), mean[1:], len(defined), undefined)
