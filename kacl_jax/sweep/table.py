"""The table of a sweep: sweep.csv for programs, sweep.md for people."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from kacl_jax.evaluation import contrastive_summary
from kacl_jax.evaluation.number_format import interval, p_value, short, signed, threshold
from kacl_jax.sweep import fused
from kacl_jax.sweep.compare import PRIOR_MAP, Difference, Row, Runs
from kacl_jax.sweep.hyper import Point
from kacl_jax.sweep.measure import METRICS
from kacl_jax.sweep.page import EXPLANATION, FAMILY_HEADINGS, FUSED_EXPLANATION, FUSED_HEADING

COLUMNS = [
    "family", "arm", "box_share", "selection_boxes", "metric", "value", "sd", "ci_low", "ci_high",
    "n_folds", "n_seeds", "n_findings", "baseline", "difference", "difference_ci_low",
    "difference_ci_high", "p", "p_holm", "n_planned", "n_common_folds", "n_common_seeds", "note",
]  # fmt: skip
_NAMES = {"auroc": "AUROC", "auprc": "AUPRC"}


def as_csv(rows: Iterable[Row]) -> str:
    """One line per arm, metric and baseline. An undefined value is empty, and `note` says why."""
    text = io.StringIO()
    lines = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    lines.writeheader()
    for row in rows:
        pair = row.difference
        notes = [row.estimate.note, pair.estimate.note if pair else ""]
        low, high = row.estimate.ci95 or (None, None)
        line = {
            "family": row.family,
            "arm": row.arm,
            "box_share": row.box_share,
            "selection_boxes": row.selection_boxes,
            "metric": row.metric,
            "value": _none_if_nan(row.estimate.value),
            "sd": row.sd,
            "ci_low": low,
            "ci_high": high,
            "n_folds": len(row.folds),
            "n_seeds": len(row.seeds),
            "n_findings": row.n_findings,
            "note": "; ".join(dict.fromkeys(note for note in notes if note)),
        }
        lines.writerow(line | (_difference_columns(pair) if pair else {}))
    return text.getvalue()


def _difference_columns(pair: Difference) -> dict[str, object]:
    low, high = pair.estimate.ci95 or (None, None)
    return {
        "baseline": pair.baseline,
        "difference": _none_if_nan(pair.estimate.value),
        "difference_ci_low": low,
        "difference_ci_high": high,
        "p": pair.estimate.p,
        "p_holm": pair.p_holm,
        "n_planned": pair.planned or None,
        "n_common_folds": len(pair.folds),
        "n_common_seeds": len(pair.seeds),
    }


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def as_markdown(
    title: str,
    points: Sequence[Point],
    runs: Runs,
    rows: Sequence[Row],
    left_out: Mapping[Point, str] | None = None,
) -> str:
    """The whole table: both sections, what is missing, and which data and code the runs were tested with.

    left_out: finished points that do not count → reason.
    """
    left_out = left_out or {}
    finished = f"{len(runs) + len(left_out)} of {len(points)} points are finished."
    if left_out:
        finished += f" {len(left_out)} of these are left out, see below."
    lines = [f"# {title}", "", finished]
    if rows:
        resamples = len(next(iter(runs.values())).metric_values[METRICS[0]].draws)
        lines += ["", f"{EXPLANATION} The intervals use {resamples:,} resamples."]
    for family, heading in FAMILY_HEADINGS.items():
        family_rows = [row for row in rows if row.family == family]
        if family_rows:
            floors = [row for row in rows if row.family == "floor"]
            lines += ["", f"## {heading}", "", *_value_table(family_rows + floors)]
            lines += (
                ["", *_difference_table(family_rows)]
                if any(r.difference for r in family_rows)
                else []
            )
    fused_rows = [row for row in rows if row.family == fused.FAMILY]
    if fused_rows:
        lines += ["", f"## {FUSED_HEADING}", "", FUSED_EXPLANATION, ""]
        lines += _value_table(fused_rows, fused.METRICS)
        lines += ["", *_difference_rows(fused_rows, fused.METRICS)]
    contrast_rows = contrastive_summary.table_rows(
        (point.arm.name, run.contrast) for point, run in runs.items()
    )
    if contrast_rows:
        lines += ["", "## What the contrastive loss did", "", contrastive_summary.READING, ""]
        lines += _markdown_table(contrastive_summary.COLUMNS, contrast_rows)
    if runs:
        lines += ["", "## Tested on", "", *_split_table(runs)]
        lines += ["", "## Code", "", *_commit_lines(runs)]
    for heading, notes in (
        ("Points that are left out", [f"- {p.name}: {why}" for p, why in left_out.items()]),
        ("Points whose radiomics depended on time", _irreproducible(runs)),
        ("Findings left out of a fold's mean", _undefined_findings(runs)),
        ("Notes on intervals", _interval_notes(rows)),
        ("Points that are not finished", _unfinished_points(points, {*runs, *left_out})),
    ):
        lines += ["", f"## {heading}", "", *notes] if notes else []
    return "\n".join(lines) + "\n"


def _value_table(rows: Sequence[Row], metrics: Sequence[str] = METRICS) -> list[str]:
    head = ["arm", "boxes: training", "boxes: choosing", "folds × seeds", "findings"]
    body = []
    for arm in dict.fromkeys(row.arm for row in rows):
        of_metric = {row.metric: row for row in rows if row.arm == arm}
        row = next(iter(of_metric.values()))
        body.append(
            [
                f"{arm}, all folds" if row.family == "floor" else arm,
                "" if row.box_share is None else f"{100 * row.box_share:g} %",
                "" if row.selection_boxes is None else f"{row.selection_boxes}",
                f"{len(row.folds)} × {len(row.seeds)}" if row.seeds else f"{len(row.folds)}",
                _finding_counts(of_metric.values()),
                *(_value_cell(of_metric.get(metric)) for metric in metrics),
            ]
        )
    return _markdown_table([*head, *map(_metric_name, metrics)], body)


def _difference_table(rows: Sequence[Row]) -> list[str]:
    return [*_difference_rows(rows, METRICS), "", f"Planned differences: {_planned_counts(rows)}."]


def _difference_rows(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    cells: dict[tuple[str, str], dict[str, Difference]] = defaultdict(dict)
    for row in rows:
        if row.difference is not None:
            cells[row.arm, row.difference.baseline][row.metric] = row.difference
    body = []
    for (arm, baseline), pairs in cells.items():
        pair = next(iter(pairs.values()))
        common = f"{len(pair.folds)} × {len(pair.seeds)}"
        body.append(
            [
                f"{arm} − {baseline}",
                common,
                *(_difference_cell(pairs.get(metric)) for metric in metrics),
            ]
        )
    return _markdown_table(
        ["paired difference", "folds × seeds", *map(_metric_name, metrics)], body
    )


def _planned_counts(rows: Sequence[Row]) -> str:
    """How many differences are planned, against arms and against prior_map; those of exploratory arms after an "or"."""
    pairs = [row.difference for row in rows if row.difference is not None]
    counts = {
        kind: " or ".join(
            dict.fromkeys(
                f"{pair.planned}"
                for pair in pairs
                if pair.planned and (pair.baseline == PRIOR_MAP) == to_floor
            )
        )
        for kind, to_floor in (("", False), ("to prior_map ", True))
    }
    return "; ".join(f"{kind}{n}" for kind, n in counts.items() if n) or "none"


def _split_table(runs: Runs) -> list[str]:
    """One row per fold: its size, and the split's hash for each share of boxes that training may use."""
    body = []
    for fold in sorted({point.fold for point in runs}):
        fold_runs = [run for point, run in runs.items() if point.fold == fold]
        hashes = sorted({(run.box_share, run.split_hash) for run in fold_runs})
        n = fold_runs[0].counts
        body.append(
            [
                fold_runs[0].split,
                f"{n['images']:,} of {n['patients']:,} patients",
                f"{n['boxes']:,}",
                " · ".join(f"{100 * share:g} % {name}" for share, name in hashes),
            ]
        )
    head = ["split", "test images", "truth boxes", "hash, by share of boxes trained on"]
    checksums = next(iter(runs.values())).settings["data checksums"]
    data = [f"- {name}: sha256 {checksum}" for name, checksum in checksums.items()]
    return [*_markdown_table(head, body), "", *data]


def _commit_lines(runs: Runs) -> list[str]:
    """Which points were tested with which commit. A difference between points of two commits includes the commits'."""
    of_commit: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for point, run in runs.items():
        of_commit[run.commit or "unknown"][point.arm.name].append(point.name.split("/")[1])
    return [
        f"- {commit}: "
        + "; ".join(f"{arm} {', '.join(sorted(names))}" for arm, names in of_arm.items())
        for commit, of_arm in of_commit.items()
    ]


def _undefined_findings(runs: Runs) -> list[str]:
    """Findings without a value in some fold: the mean of that fold is over the other findings."""
    reasons = {
        (point.fold, _metric_group(metric), finding, reason)
        for point, run in runs.items()
        for metric, value in run.metric_values.items()
        for finding, reason in value.undefined.items()
    }
    return [
        f"- {kind} of {finding} in fold {fold}: {reason}"
        for fold, kind, finding, reason in sorted(reasons)
    ]


def _interval_notes(rows: Sequence[Row]) -> list[str]:
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        names[row.estimate.note, row.metric].append(row.arm)
        if row.difference is not None:
            pair = f"{row.arm} − {row.difference.baseline}"
            names[row.difference.estimate.note, row.metric].append(pair)
    return [
        f"- {_metric_name(metric)} of {', '.join(dict.fromkeys(arms))}: {note}"
        for (note, metric), arms in names.items()
        if note
    ]


def _irreproducible(runs: Runs) -> list[str]:
    """A region that times out or comes too late has no features, so that a second run may differ."""
    points = [point for point, run in runs.items() if run.origin.get("reproducible") is False]
    return [f"- {point.name}: run.json says that it is not reproducible" for point in points]


def _unfinished_points(points: Sequence[Point], finished: Collection[Point]) -> list[str]:
    missing: dict[str, list[str]] = defaultdict(list)
    for point in points:
        if point not in finished:
            missing[point.arm.name].append(point.name.split("/")[1])
    arm_of_point = [point.arm.name for point in points]
    return [
        f"- {arm}: "
        + ("every point" if len(names) == arm_of_point.count(arm) else ", ".join(names))
        for arm, names in missing.items()
    ]


def _finding_counts(rows: Iterable[Row]) -> str:
    by_kind = {_metric_group(row.metric): row.n_findings for row in rows}
    if len(set(by_kind.values())) == 1:
        return f"{next(iter(by_kind.values()))}"
    return " · ".join(f"{kind} {n}" for kind, n in by_kind.items())


def _value_cell(row: Row | None) -> str:
    if row is None:
        return ""
    spread = "" if row.sd is None else f" ± {short(row.sd)}"
    return f"{short(row.estimate.value)}{spread} {interval(row.estimate.ci95)}".rstrip()


def _difference_cell(pair: Difference | None) -> str:
    if pair is None:
        return ""
    estimate = pair.estimate
    p = "" if estimate.p is None else f", p {p_value(estimate.p)}"
    holm = "" if pair.p_holm is None else f" ({p_value(pair.p_holm)})"
    interval_text = interval(estimate.ci95, write=signed)
    return f"{signed(estimate.value)} {interval_text}".rstrip() + p + holm


def _metric_name(metric: str) -> str:
    return _NAMES.get(metric) or f"IoU above {threshold(float(metric.removeprefix('iou_')))}"


def _metric_group(metric: str) -> str:
    """The metrics that are undefined together: AUROC and AUPRC; IoU above T for all T."""
    return "AUROC" if metric in _NAMES else "IoU"


def _markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(row) + " |" for row in rows]
