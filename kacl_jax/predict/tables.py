"""The rows of findings.csv, regions.csv and radiomics.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from kacl_jax.predict.inputs import Failed
from kacl_jax.predict.prediction import Prediction
from kacl_jax.predict.region_features import RegionFeatures
from kacl_jax.radiomics import FEATURE_NAMES

_BY_FINDING = ("probability", "score", "threshold", "positive", "calibrated")
_IDS = ("patient_id", "study_uid", "instance_uid")
_REGION = ("image", "finding", "positive", "x", "y", "w", "h", "region", "map")
_RADIOMICS = ("image", "finding", "measured_on", "reason")


def headers(findings: Sequence[str], *, keep_ids: bool) -> dict[str, list[str]]:
    """The columns of each table."""
    by_finding = [f"{kind}_{name}" for name in findings for kind in _BY_FINDING]
    ids = _IDS if keep_ids else ()
    return {
        "findings.csv": [
            *("image", "page", "status", "reason", "unfamiliar", "distance", "limit"),
            *ids,
            *by_finding,
        ],
        "regions.csv": list(_REGION),
        "radiomics.csv": [*_RADIOMICS, *FEATURE_NAMES],
    }


def findings_row(
    result: Prediction | Failed, ids: Sequence[str], *, page: int, n_columns: int
) -> list[Any]:
    """status is ok or failed; reason says why it failed, or what a reader must know of it."""
    if isinstance(result, Failed):
        row = [result.name, page, "failed", result.reason]
        return row + [""] * (n_columns - len(row))
    by_finding = [
        _cell(values[name])
        for name in result.findings
        for values in (
            *(result.probabilities, result.scores, result.thresholds),
            *(result.positive, result.calibrated),
        )
    ]
    notes = "; ".join(result.notes)
    return [
        *(result.name, page, "ok", notes, result.unfamiliar, result.distance, result.limit),
        *ids,
        *by_finding,
    ]


def region_rows(result: Prediction, map_names: Sequence[str]) -> Iterable[list[Any]]:
    """One for each of `shown_findings`: the box in pixels of the image as it was given. map_names: files in maps/."""
    for finding, map_name in zip(result.shown_findings, map_names, strict=True):
        _, whole = result.region(finding)
        kind = "whole image: the heat map marks no region" if whole else "heat map"
        positive, box = result.positive[finding], result.box(finding)
        yield [result.name, finding, positive, *box, kind, map_name]


def radiomics_rows(result: Prediction, measured: Sequence[RegionFeatures]) -> Iterable[list[Any]]:
    """One for each of `shown_findings`. reason: why a region has no features, or empty."""
    side = len(result.network_pixels)
    for finding, found in zip(result.shown_findings, measured, strict=True):
        cells = map(_cell, found.features.tolist())
        yield [result.name, finding, f"8-bit image of {side}×{side} px", found.reason, *cells]


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _cell(value: float) -> float | str:
    return "" if math.isnan(value) else value
