"""report.html of a sweep, from sweep.csv and its finished points. Imports no jax."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from kacl_jax.evaluation import contrastive_summary
from kacl_jax.evaluation.metrics import IOU_THRESHOLDS, Table
from kacl_jax.evaluation.number_format import interval, short, signed
from kacl_jax.report import charts, page
from kacl_jax.report.charts import Axis, ChartPoint, Line
from kacl_jax.report.figures import WANG_2017, WANG_LABEL
from kacl_jax.runtime.errors import UserError
from kacl_jax.sweep import fused
from kacl_jax.sweep.compare import Runs
from kacl_jax.sweep.hyper import Point

FAMILY_HEADINGS = {
    "weak": "No boxes in training, and none in choosing how the map is read",
    "box": "Boxes in training, or in choosing how the map is read",
}
EXPLANATION = (
    "Each number is a mean over folds of means over findings. ± is the standard deviation over seeds. Square brackets"
    " hold 95 % intervals (Student's t). They cover other test patients (resamples of each fold's patients) and other "
    "runs (the spread over seeds, less the part of it that comes from the patients). An arm with one seed (n × 1) has "
    "the runs' part of its section's arms with three or more seeds. Without such arms its intervals cover the patients "
    "only, and it has no p-value."
    " IoU above T is the share of a finding's truth boxes that the predicted box overlaps with an IoU above T. "
    "Differences are paired by fold, seed and patient. p is two-sided; Holm's p is in round brackets. Holm counts the"
    " differences that the sweep plans in that section and metric, finished or not. It counts differences to "
    "prior_map, and those of exploratory arms, separately. prior_map and prior_box are boxes of other patients and "
    "look at no image. A map below prior_map has localized nothing."
)
FUSED_HEADING = "Fusion: what ridge regressions add to the network's scores"
FUSED_EXPLANATION = (
    "Each row is an arm whose scores were moved by regressions on the radiomics of a grid, on the starting image "
    "features (image), or on both. A second model helps whatever it knows, so the control with image features alone "
    "stands beside every other row. The difference to the control is what radiomics add beside it. A second image "
    "model may add as much (docs/fusion.md). These differences have no p."
)
_NUMBER_COLUMNS = (
    "value", "sd", "ci_low", "ci_high", "difference", "difference_ci_low", "difference_ci_high", "p", "p_holm",
)  # fmt: skip


def write_sweep(folder: Path, runs: Runs, left_out: Mapping[Point, str] | None = None) -> None:
    """Write report.html beside sweep.csv. runs: the finished points, whose workdirs are in `folder`.

    left_out: finished points that do not count → reason.

    Raises:
      UserError: sweep.csv is missing or has a wrong format, or the page cannot be written.
    """
    rows = read_table(folder / "sweep.csv")
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    fused_rows = [row for row in rows if row["family"] == fused.FAMILY]
    points = _points(folder, runs)
    content = {
        "name": folder.absolute().name,
        "metrics": [_metric_name(name) for name in metrics],
        "sections": [
            _section(heading, [row for row in rows if row["family"] in (family, "floor")], metrics)
            for family, heading in FAMILY_HEADINGS.items()
            if any(row["family"] == family for row in rows)
        ],
        "fused": _section(FUSED_HEADING, fused_rows, fused.METRICS) if fused_rows else None,
        "fused_metrics": [_metric_name(name) for name in fused.METRICS],
        "fused_explanation": FUSED_EXPLANATION,
        "explanation": EXPLANATION,
        "left_out": [f"{point.name}: {why}" for point, why in (left_out or {}).items()],
        "notes": _notes(rows),
        "localization": _localization_charts(_group_by(points, "arm")),
        "wang": WANG_LABEL,
        "contrast": contrastive_summary.table_rows(
            (point["arm"], point["contrast"]) for point in points
        ),
        "contrast_columns": contrastive_summary.COLUMNS,
        "contrast_reading": contrastive_summary.READING,
        "points_of_arm": _group_by(points, "arm"),
        "folds_and_seeds": sorted({(point["fold"], point["seed"]) for point in points}),
        "splits": sorted(
            {(p["fold"], p["results"].split, p["results"].split_hash) for p in points}
        ),
        "origin": points[0]["origin"] if points else None,
    }
    page.write(folder / "report.html", "sweep.html", content)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of sweep.csv; an empty number is None. Raises UserError if the file is missing or has a wrong format."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        for row in rows:
            row |= {name: float(row[name]) if row[name] else None for name in _NUMBER_COLUMNS}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be used ({error}); write it again: run the sweep's command with --table_only"
        ) from error
    return rows


def _points(folder: Path, runs: Runs) -> list[dict[str, Any]]:
    """What the page shows of each point, ordered by arm (arms in order of appearance), fold and seed.

    Keys: arm, fold, seed, results, origin, contrast, and link: to the point's own page, or ''.
    """
    arms = list(dict.fromkeys(point.arm.name for point in runs))
    points = [
        {
            "arm": point.arm.name,
            "fold": point.fold,
            "seed": point.seed,
            "results": run.results,
            "origin": run.origin,
            "contrast": run.contrast,
            "link": quote(f"{point.name}/report.html")
            if (folder / point.name / "report.html").exists()
            else "",
        }
        for point, run in runs.items()
    ]
    return sorted(points, key=lambda p: (arms.index(p["arm"]), p["fold"], p["seed"]))


def _section(
    heading: str, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    """Both tables of one family: its arms beside the floors, and its paired differences."""
    rows_of_metric = {m: [row for row in rows if row["metric"] == m] for m in metrics}
    range_of_metric = {m: _value_range(metric_rows) for m, metric_rows in rows_of_metric.items()}
    arms = []
    for arm_rows in _group_by(rows, "arm").values():
        row_of_metric = {row["metric"]: row for row in arm_rows}
        cells = [
            _cell(
                row_of_metric.get(m),
                "value",
                range_of_metric[m],
                floors=_prior_map_marks(arm_rows, m),
            )
            for m in metrics
        ]
        arms.append({**arm_rows[0], "cells": cells})
    pairs = [row for row in rows if row["baseline"]]
    max_difference = {
        m: max(map(_largest_magnitude, metric_rows), default=0) or 1.0
        for m, metric_rows in rows_of_metric.items()
    }
    differences = []
    for arm_rows in _group_by(pairs, "arm").values():
        for pair_rows in _group_by(arm_rows, "baseline").values():
            row_of_metric = {row["metric"]: row for row in pair_rows}
            cells = [
                _cell(
                    row_of_metric.get(m),
                    "difference",
                    (-max_difference[m], max_difference[m]),
                    rule=0,
                )
                for m in metrics
            ]
            differences.append({**pair_rows[0], "cells": cells})
    return {"heading": heading, "arms": arms, "differences": differences}


def _prior_map_marks(arm_rows: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, str]]:
    """The value of prior_map on the arm's own folds: the arm's value minus its difference to prior_map."""
    return [
        (row["value"] - row["difference"], "prior-map")
        for row in arm_rows
        if (row["metric"], row["baseline"]) == (metric, "prior_map")
        and None not in (row["value"], row["difference"])
    ]


def _cell(
    row: Mapping[str, Any] | None, column: str, value_range: tuple[float, float], **marks: Any
) -> dict[str, Any] | None:
    """The 'value' or the 'difference' of a row with its interval, in numbers and as a chart; None without a row."""
    if row is None:
        return None
    prefix, write, pair = "", short, ""
    if column == "difference":
        prefix, write, pair = "difference_", signed, f" less {row['baseline']}"
    value, low, high = row[column], row[f"{prefix}ci_low"], row[f"{prefix}ci_high"]
    ci95 = None if low is None or high is None else (low, high)
    text = f"{write(value)} {interval(ci95)}".rstrip()
    chart = charts.interval_chart(
        value,
        ci95,
        low=value_range[0],
        high=value_range[1],
        alt=f"{_metric_name(row['metric'])} of {row['arm']}{pair} {text}",
        **marks,
    )
    shown = {name: row[name] for name in ("sd", "p", "p_holm")}
    return {"value": value, "ci95": ci95, "chart": chart, **shown}


def _largest_magnitude(row: Mapping[str, Any]) -> float:
    values = (row["difference"], row["difference_ci_low"], row["difference_ci_high"])
    return max((abs(value) for value in values if value is not None), default=0)


def _value_range(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """(low, high) of the charts in a metric's column."""
    values = [
        row[key] for row in rows for key in ("value", "ci_low", "ci_high") if row[key] is not None
    ]
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def _localization_charts(
    points_of_arm: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """T(IoU) against T of each arm, the mean over its folds, with prior_map and Wang et al., all on one scale."""
    wang: list[ChartPoint] = list(zip(IOU_THRESHOLDS, WANG_2017, strict=True))
    curves_of_arm: dict[str, tuple[list[ChartPoint], list[ChartPoint]]] = {}
    for arm, points in points_of_arm.items():
        localizations = [(p["fold"], p["results"].localization) for p in points]
        curves_of_arm[arm] = (
            _mean_curve([(fold, of.prior_map.iou) for fold, of in localizations]),
            _mean_curve([(fold, of.iou) for fold, of in localizations]),
        )
    x = Axis(0.1, 0.7, (0.1, 0.3, 0.5, 0.7), "T", lambda v: short(v, 1))
    lines = [wang, *itertools.chain(*curves_of_arm.values())]
    y = charts.nice_axis((v for line in lines for _, v in line if v is not None), zero=True)
    sections = []
    for arm, (prior_map, arm_curve) in curves_of_arm.items():
        chart = charts.line_chart(
            [Line(wang, "wang"), Line(prior_map, "prior-map"), Line(arm_curve, "run", dots=True)],
            x,
            y,
            alt=f"Share of truth boxes with an IoU above T of {arm}, beside prior_map and Wang et al.",
            size=(230, 180),
        )
        sections.append({"arm": arm, "points": len(points_of_arm[arm]), "chart": chart})
    return sections


def _mean_curve(tables: Iterable[tuple[int, Mapping[float, Table]]]) -> list[ChartPoint]:
    """The mean over folds of the mean over a fold's points, of (fold, tables); NaN where a point has no value."""
    tables_of_fold: dict[int, list[Mapping[float, Table]]] = {}
    for fold, by_threshold in tables:
        tables_of_fold.setdefault(fold, []).append(by_threshold)
    return [
        (t, fmean(fmean(of[t].mean.value for of in fold) for fold in tables_of_fold.values()))
        for t in IOU_THRESHOLDS
    ]


def _notes(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    arms_of_note: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["note"]:
            arm = row["arm"] + (f" − {row['baseline']}" if row["baseline"] else "")
            arms_of_note.setdefault((row["metric"], row["note"]), []).append(arm)
    return [
        f"{_metric_name(metric)} of {', '.join(arms)}: {note}"
        for (metric, note), arms in arms_of_note.items()
    ]


def _group_by(rows: Iterable[Any], key: str) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _metric_name(name: str) -> str:
    if name.startswith("iou_"):
        return f"IoU above {short(float(name.removeprefix('iou_')), 1)}"
    return name.upper()
