"""One finished run → its figures over many resamples of its test patients.

Pure numpy; reads results.json, predictions.csv, boxes.csv, metrics.jsonl, config.json and run.json of a workdir. All
runs of a fold are resampled with the same patients, so that compare.py can pair them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.contrastive_summary import Contrast, last_epoch
from kacl_jax.evaluation.metrics.bootstrap import clusters, divide, without_bias
from kacl_jax.evaluation.metrics.ranking import Ranked
from kacl_jax.evaluation.predictions import Tested, read_tested
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.workdir import read_config

IOU_SHOWN = (0.1, 0.3, 0.5)
METRICS = ("auroc", "auprc", *(f"iou_{t}" for t in IOU_SHOWN))
FLOORS = ("prior_map", "prior_box")
_SPLIT_KEYS = ("protocol", "folds", "data.split_seed", "data.val_fraction", "data.findings")
_CHUNK = 250  # resamples at once: few enough for a processor's cache
SAME_FILES = 1e-9  # results.json and the figures of predictions.csv and boxes.csv agree to this


@dataclass(frozen=True, eq=False)
class Figure:
    """One metric of one run: the mean over the findings that are defined, and its resamples."""

    value: float  # NaN: no finding is defined
    draws: np.ndarray  # float64 [B]
    n_findings: int
    undefined: dict[str, str]  # finding → reason


@dataclass(frozen=True, eq=False)
class Measured:
    """One finished run. `settings` must agree over a whole sweep, `part` within a fold."""

    settings: dict[str, Any]
    split: str
    split_hash: str
    box_share: float
    part: tuple[Any, ...]  # who is tested on what
    counts: dict[str, int]  # images, patients, boxes
    figures: dict[str, Figure]  # by metric
    prior_map: dict[str, Figure]  # T(IoU) of the box that looks at no image, paired with `figures`
    floors: dict[str, dict[str, float | None]]  # by floor, then metric
    commit: str = ""  # of the code that it was tested with; "": unknown
    contrast: Contrast | None = None  # None: no contrastive loss


def measure(workdir: Path, *, resamples: int = metrics.RESAMPLES) -> Measured:
    """Read a finished run and resample its patients.

    Raises:
      UserError: a file is missing, torn, or not of the same evaluation as the others.
    """
    results, origin = (files.read_json(workdir / name) for name in ("results.json", "run.json"))
    config = read_config(workdir)
    tested = read_tested(workdir, results["findings"])
    weights = patient_weights(config["fold"], clusters(tested.patients)[1], resamples)
    figures = {**classification(tested, weights), **localization(tested, tested.iou, weights)}
    _check_same_files(workdir, results, figures)
    floors = {name: results["localization"][name]["iou"] for name in FLOORS}
    boxes = zip(tested.box_image.tolist(), tested.box_finding.tolist(), strict=True)
    return Measured(
        settings={
            "data checksums": origin["checksums"],
            **{key: config[key] for key in _SPLIT_KEYS},
        },
        split=results["split"],
        split_hash=results["split_hash"],
        box_share=config["data.box_share"],
        part=(
            tested.images,
            tested.patients.tobytes(),
            tested.labels.tobytes(),
            sorted(boxes),
        ),
        counts={
            "images": len(tested.images),
            "patients": weights.shape[0],
            "boxes": len(tested.iou),
        },
        figures=figures,
        prior_map=localization(tested, tested.prior_map_iou, weights),
        floors={
            name: {f"iou_{t}": table[str(t)]["mean"]["value"] for t in IOU_SHOWN}
            for name, table in floors.items()
        },
        commit=origin["git"] or "",
        contrast=last_epoch(files.read_json_lines(workdir / "metrics.jsonl"), config),
    )


def _check_same_files(
    workdir: Path, results: Mapping[str, Any], figures: Mapping[str, Figure]
) -> None:
    told = {f"iou_{t}": results["localization"]["iou"][str(t)]["mean"]["value"] for t in IOU_SHOWN}
    told["auroc"] = results["classification"]["auroc"]["mean"]["value"]
    for metric, value in told.items():
        ours, theirs = figures[metric].value, math.nan if value is None else value
        if not np.isclose(ours, theirs, rtol=0, atol=SAME_FILES, equal_nan=True):
            raise UserError(
                f"{workdir}: results.json says {metric} {theirs:.6f}, predictions.csv and boxes.csv say {ours:.6f}; "
                "write them anew with the point's own command and --mode=eval"
            )


@lru_cache(maxsize=8)
def patient_weights(fold: int, n_patients: int, resamples: int) -> np.ndarray:
    """How often each resample draws each patient, the same for all runs of a fold: float64 [patients 1+B].

    Column 0 is the sample itself, everyone once.
    """
    rng = np.random.default_rng((fold, n_patients))
    even = np.full(n_patients, 1 / n_patients)
    weights = np.ones((n_patients, 1 + resamples))
    weights[:, 1:] = rng.multinomial(n_patients, even, size=resamples).T
    weights.flags.writeable = False
    return weights


def classification(tested: Tested, weights: np.ndarray) -> dict[str, Figure]:
    """AUROC and AUPRC (average precision, its resamples `without_bias`), means over findings.

    weights: of `patient_weights`.
    """
    cluster, n_clusters = clusters(tested.patients)
    found = np.full((2, len(tested.findings), weights.shape[1]), math.nan)
    undefined = {}
    for c, name in enumerate(tested.findings):
        ranked = Ranked(tested.scores[:, c], tested.labels[:, c], cluster, n_clusters)
        reason = metrics.one_class(ranked.n_pos, ranked.n_neg)
        if reason:
            undefined[name] = reason
            continue
        for start in range(0, weights.shape[1], _CHUNK):
            some = slice(start, start + _CHUNK)
            found[:, c, some] = ranked.areas(weights[:, some], precision=True).T
    found[1, :, 1:] = without_bias(found[1, :, 1:], found[1, :, 0])
    return {
        "auroc": _mean_figure(found[0], undefined),
        "auprc": _mean_figure(found[1], undefined),
    }


def localization(tested: Tested, iou: np.ndarray, weights: np.ndarray) -> dict[str, Figure]:
    """Share of a finding's truth boxes with `iou` > T, mean over findings, as `metrics.localization_tables`.

    iou: float64 [m]; with a NaN among them there is no figure.
    """
    if np.isnan(iou).any():
        nothing = Figure(math.nan, np.full(weights.shape[1] - 1, math.nan), 0, {})
        return {f"iou_{t}": nothing for t in IOU_SHOWN}
    cluster = clusters(tested.patients)[0][tested.box_image]
    ours = tested.box_finding[:, None] == np.arange(len(tested.findings))
    undefined = {
        name: "no truth box of this finding is scored"
        for name, there in zip(tested.findings, ours.any(axis=0), strict=True)
        if not there
    }

    def weigh(boxes: np.ndarray) -> np.ndarray:
        per_patient = np.zeros((weights.shape[0], boxes.shape[1]))
        np.add.at(per_patient, cluster, boxes.astype(np.float64))
        return per_patient.T @ weights

    judged = weigh(ours)
    return {
        f"iou_{t}": _mean_figure(divide(weigh(ours & (iou > t)[:, None]), judged), undefined)
        for t in IOU_SHOWN
    }


def _mean_figure(found: np.ndarray, undefined: dict[str, str]) -> Figure:
    """found [c 1+B], the value first, NaN where undefined. A resample that lacks a finding of the value is NaN."""
    defined = found[np.isfinite(found[:, 0])]
    mean = defined.mean(axis=0) if len(defined) else np.full(found.shape[1], math.nan)
    return Figure(float(mean[0]), mean[1:], len(defined), undefined)
