"""report.html of a sweep, from sweep.csv and the files of its finished points. Imports no jax."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from kacl_jax.evaluation import contrastive_summary
from kacl_jax.evaluation.metrics import T_IOU
from kacl_jax.evaluation.number_format import interval, short, signed
from kacl_jax.report import charts, page
from kacl_jax.report.charts import Axis, Line, Point
from kacl_jax.report.figures import WANG_2017, WANG_LABEL
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.workdir import read_config

FAMILIES = {
    "weak": "No box anywhere: none in training, none in choosing how the map is read",
    "box": "Boxes in training, or in choosing how the map is read",
}
_NUMBERS = (
    "value", "sd", "ci_low", "ci_high", "difference", "difference_ci_low", "difference_ci_high", "p", "p_holm",
)  # fmt: skip


def write_sweep(folder: Path, finished: Sequence[str]) -> None:
    """Write report.html beside sweep.csv. finished: the points to show, '<arm>/fold<f>-seed<s>'.

    Raises:
      UserError: sweep.csv or a point's file is missing or does not fit, or the page cannot be written.
    """
    rows = read_table(folder / "sweep.csv")
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    points = read_points(folder, finished)
    content = {
        "name": folder.absolute().name,
        "metrics": [_metric(name) for name in metrics],
        "sections": [
            _section(heading, [row for row in rows if row["family"] in (family, "floor")], metrics)
            for family, heading in FAMILIES.items()
            if any(row["family"] == family for row in rows)
        ],
        "notes": _notes(rows),
        "localization": _against_t(_by(points, "arm")),
        "wang": WANG_LABEL,
        "contrast": contrastive_summary.rows((point["arm"], point["contrast"]) for point in points),
        "contrast_columns": contrastive_summary.COLUMNS,
        "contrast_reading": contrastive_summary.READING,
        "points": _by(points, "arm"),
        "cells": sorted({(point["fold"], point["seed"]) for point in points}),
        "splits": sorted(
            {(p["fold"], p["results"]["split"], p["results"]["split_hash"]) for p in points}
        ),
        "origin": points[0]["origin"] if points else None,
    }
    page.write(folder / "report.html", "sweep.html", content)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of sweep.csv; a figure that is not there is None. Raises UserError on what does not fit."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        for row in rows:
            row |= {name: float(row[name]) if row[name] else None for name in _NUMBERS}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be used ({error}); the sweep's own command with --table_only writes it anew"
        ) from error
    return rows


def read_points(folder: Path, finished: Sequence[str]) -> list[dict[str, Any]]:
    """The finished points by arm, in the order in which arms come, fold and seed: arm, fold, seed, results, origin,
    contrast, and the link to its own page or ''.
    """
    arms = list(dict.fromkeys(name.split("/")[0] for name in finished))
    points = [_read_point(folder, name) for name in finished]
    return sorted(points, key=lambda p: (arms.index(p["arm"]), p["fold"], p["seed"]))


def _read_point(folder: Path, name: str) -> dict[str, Any]:
    arm, place = name.split("/")
    fold, seed = place.removeprefix("fold").split("-seed")
    own = folder / name
    config = read_config(own)
    log = files.read_json_lines(own / "metrics.jsonl")
    page_there = (own / "report.html").exists()
    return {
        "arm": arm,
        "fold": int(fold),
        "seed": int(seed),
        "results": files.read_json(own / "results.json"),
        "origin": files.read_json(own / "run.json"),
        "contrast": contrastive_summary.last_epoch(log, config),
        "link": quote(f"{name}/report.html") if page_there else "",
    }


def _section(
    heading: str, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    """Both tables of one family: its arms beside the floors, and its paired differences."""
    of_metric = {metric: [row for row in rows if row["metric"] == metric] for metric in metrics}
    scales = {metric: _scale(some) for metric, some in of_metric.items()}
    arms = []
    for of_arm in _by(rows, "arm").values():
        there = {row["metric"]: row for row in of_arm}
        figures = [_figure(there.get(m), scales[m], _floor(of_arm, m)) for m in metrics]
        arms.append({**of_arm[0], "figures": figures})
    pairs = [row for row in rows if row["baseline"]]
    widest = {m: max(map(_reach, some), default=0) or 1.0 for m, some in of_metric.items()}
    differences = []
    for of_arm in _by(pairs, "arm").values():
        for of_pair in _by(of_arm, "baseline").values():
            there = {row["metric"]: row for row in of_pair}
            figures = [_pair(there.get(m), widest[m]) for m in metrics]
            differences.append({**of_pair[0], "figures": figures})
    return {"heading": heading, "arms": arms, "differences": differences}


def _floor(of_arm: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, str]]:
    """prior_map on the arm's own folds: its figure less its difference to it."""
    return [
        (row["value"] - row["difference"], "prior-map")
        for row in of_arm
        if (row["metric"], row["baseline"]) == (metric, "prior_map")
        and None not in (row["value"], row["difference"])
    ]


def _figure(
    row: Mapping[str, Any] | None,
    scale: tuple[float, float],
    floors: Sequence[tuple[float | None, str]],
) -> dict[str, Any] | None:
    if row is None:
        return None
    ci95 = _ends(row, "ci")
    told = f"{short(row['value'])} {interval(ci95)}".rstrip()
    drawn = charts.track(
        row["value"],
        ci95,
        low=scale[0],
        high=scale[1],
        floors=floors,
        alt=f"{_metric(row['metric'])} of {row['arm']} {told}",
    )
    return {"value": row["value"], "sd": row["sd"], "ci95": ci95, "track": drawn}


def _pair(row: Mapping[str, Any] | None, widest: float) -> dict[str, Any] | None:
    if row is None:
        return None
    ci95 = _ends(row, "difference_ci")
    told = f"{signed(row['difference'])} {interval(ci95)}".rstrip()
    drawn = charts.track(
        row["difference"],
        ci95,
        low=-widest,
        high=widest,
        rule=0,
        alt=f"{_metric(row['metric'])} of {row['arm']} less {row['baseline']} {told}",
    )
    return {
        "value": row["difference"],
        "ci95": ci95,
        "p": row["p"],
        "p_holm": row["p_holm"],
        "track": drawn,
    }


def _ends(row: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return None if low is None or high is None else (low, high)


def _reach(row: Mapping[str, Any]) -> float:
    shown = (row["difference"], row["difference_ci_low"], row["difference_ci_high"])
    return max((abs(value) for value in shown if value is not None), default=0)


def _scale(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """One range for a metric's whole column."""
    shown = [
        row[key] for row in rows for key in ("value", "ci_low", "ci_high") if row[key] is not None
    ]
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    room = 0.05 * (high - low) or 0.05
    return low - room, high + room


def _against_t(by_arm: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """T(IoU) against T of each arm, the mean over its folds, with prior_map and Wang et al., on one scale."""
    wang: list[Point] = list(zip(T_IOU, WANG_2017, strict=True))
    drawn: dict[str, tuple[list[Point], list[Point]]] = {}
    for arm, points in by_arm.items():
        found = [(p["fold"], p["results"]["localization"]) for p in points]
        floor = _means([(fold, places["prior_map"]["iou"]) for fold, places in found])
        drawn[arm] = floor, _means([(fold, places["iou"]) for fold, places in found])
    x = Axis(0.1, 0.7, (0.1, 0.3, 0.5, 0.7), "T", lambda v: short(v, 1))
    lines = [wang, *itertools.chain(*drawn.values())]
    y = charts.nice_axis((v for line in lines for _, v in line if v is not None), zero=True)
    charted = []
    for arm, (floor, own) in drawn.items():
        chart = charts.line_chart(
            [Line(wang, "wang"), Line(floor, "prior-map"), Line(own, "run", dots=True)],
            x,
            y,
            alt=f"Share of truth boxes with IoU over T of {arm}, beside prior_map and Wang et al.",
            size=(230, 180),
        )
        charted.append({"arm": arm, "points": len(by_arm[arm]), "chart": chart})
    return charted


def _means(tables: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Point]:
    """Means over folds of means over a fold's points, of (fold, table); None where a point has no figure."""
    means: list[Point] = []
    for t in T_IOU:
        of_fold: dict[int, list[float | None]] = {}
        for fold, table in tables:
            of_fold.setdefault(fold, []).append(table[str(t)]["mean"]["value"])
        there = [[v for v in values if v is not None] for values in of_fold.values()]
        whole = [
            len(some) == len(values) for some, values in zip(there, of_fold.values(), strict=True)
        ]
        means.append((t, fmean(map(fmean, there)) if all(whole) else None))
    return means


def _notes(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    told: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["note"]:
            who = row["arm"] + (f" − {row['baseline']}" if row["baseline"] else "")
            told.setdefault((row["metric"], row["note"]), []).append(who)
    return [
        f"{_metric(metric)} of {', '.join(who)}: {note}" for (metric, note), who in told.items()
    ]


def _by(rows: Iterable[Any], key: str) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _metric(name: str) -> str:
    if name.startswith("iou_"):
        return f"T(IoU) > {short(float(name.removeprefix('iou_')), 1)}"
    return name.upper()
