"""The table of a sweep: sweep.csv, tidy, for machines; sweep.md for people."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from kacl_jax.evaluation import contrastive_summary
from kacl_jax.evaluation.number_format import interval, p_value, short, signed, threshold
from kacl_jax.sweep.compare import PRIOR_MAP, Difference, Row, Runs
from kacl_jax.sweep.hyper import Point
from kacl_jax.sweep.measure import METRICS
from kacl_jax.sweep.page import FAMILIES

COLUMNS = [
    "family", "arm", "box_share", "selection_boxes", "metric", "value", "sd", "ci_low", "ci_high",
    "n_folds", "n_seeds", "n_findings", "baseline", "difference", "difference_ci_low",
    "difference_ci_high", "p", "p_holm", "n_planned", "n_common_folds", "n_common_seeds", "note",
]  # fmt: skip
_NAMES = {"auroc": "AUROC", "auprc": "AUPRC"}
_READING = (
    "Means over folds of means over findings; ± standard deviation over seeds; [95 % interval] over {resamples} "
    "resamples of each fold's test patients and seeds (n × 1: of patients only). T(IoU) is the share of a finding's "
    "truth boxes that the predicted box overlaps by more than T. Differences are paired by fold, seed and patient; p "
    "is two-sided, in brackets Holm's over the differences that the sweep plans in that section and metric, run or "
    "not; those to prior_map and those of exploratory arms apart. "
    "prior_map and prior_box are boxes of other patients and look at no image: a map below prior_map has localized "
    "nothing."
)


def as_csv(rows: Iterable[Row]) -> str:
    """One line per arm, metric and baseline; what is undefined is empty, with the reason in `note`."""
    text = io.StringIO()
    lines = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    lines.writeheader()
    for row in rows:
        pair = row.difference
        notes = [row.figure.note, pair.value.note if pair else ""]
        low, high = row.figure.ci95 or (None, None)
        line = {
            "family": row.family,
            "arm": row.arm,
            "box_share": row.box_share,
            "selection_boxes": row.selection_boxes,
            "metric": row.metric,
            "value": _defined(row.figure.value),
            "sd": row.sd,
            "ci_low": low,
            "ci_high": high,
            "n_folds": len(row.folds),
            "n_seeds": len(row.seeds),
            "n_findings": row.n_findings,
            "note": "; ".join(dict.fromkeys(note for note in notes if note)),
        }
        lines.writerow(line | (_pair_columns(pair) if pair else {}))
    return text.getvalue()


def _pair_columns(pair: Difference) -> dict[str, object]:
    low, high = pair.value.ci95 or (None, None)
    return {
        "baseline": pair.baseline,
        "difference": _defined(pair.value.value),
        "difference_ci_low": low,
        "difference_ci_high": high,
        "p": pair.p,
        "p_holm": pair.p_holm,
        "n_planned": pair.planned or None,
        "n_common_folds": len(pair.folds),
        "n_common_seeds": len(pair.seeds),
    }


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def as_markdown(title: str, points: Sequence[Point], runs: Runs, rows: Sequence[Row]) -> str:
    """The whole table: both sections, what is missing, and what was tested on what."""
    lines = [f"# {title}", "", f"{len(runs)} of {len(points)} points are finished."]
    if rows:
        resamples = len(next(iter(runs.values())).figures[METRICS[0]].draws)
        lines += ["", _READING.format(resamples=f"{resamples:,}")]
    for family, heading in FAMILIES.items():
        ours = [row for row in rows if row.family == family]
        if ours:
            floors = [row for row in rows if row.family == "floor"]
            lines += ["", f"## {heading}", "", *_figures(ours + floors)]
            lines += ["", *_differences(ours)] if any(r.difference for r in ours) else []
    learned = contrastive_summary.rows(
        (point.arm.name, run.contrast) for point, run in runs.items()
    )
    if learned:
        lines += ["", "## What the contrastive loss did", "", contrastive_summary.READING, ""]
        lines += _table(contrastive_summary.COLUMNS, learned)
    if runs:
        lines += ["", "## Tested on", "", *_splits(runs)]
        lines += ["", "## Code", "", *_commits(runs)]
    for heading, notes in (
        ("Findings left out of a fold's mean", _undefined(runs)),
        ("Figures without an interval", _without_interval(rows)),
        ("Points that are not finished", _missing(points, runs)),
    ):
        lines += ["", f"## {heading}", "", *notes] if notes else []
    return "\n".join(lines) + "\n"


def _figures(rows: Sequence[Row]) -> list[str]:
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
                _findings(of_metric.values()),
                *(_figure(of_metric.get(metric)) for metric in METRICS),
            ]
        )
    return _table([*head, *map(_name, METRICS)], body)


def _differences(rows: Sequence[Row]) -> list[str]:
    cells: dict[tuple[str, str], dict[str, Difference]] = defaultdict(dict)
    for row in rows:
        if row.difference is not None:
            cells[row.arm, row.difference.baseline][row.metric] = row.difference
    body = []
    for (arm, baseline), pairs in cells.items():
        pair = next(iter(pairs.values()))
        common = f"{len(pair.folds)} × {len(pair.seeds)}"
        body.append(
            [f"{arm} − {baseline}", common, *(_pair(pairs.get(metric)) for metric in METRICS)]
        )
    table = _table(["paired difference", "folds × seeds", *map(_name, METRICS)], body)
    return [*table, "", f"Planned differences: {_planned(rows)}."]


def _planned(rows: Sequence[Row]) -> str:
    """How many each question has, those of exploratory arms after an "or"."""
    pairs = [row.difference for row in rows if row.difference is not None]
    told = {
        kind: " or ".join(
            dict.fromkeys(
                f"{pair.planned}"
                for pair in pairs
                if pair.planned and (pair.baseline == PRIOR_MAP) == to_floor
            )
        )
        for kind, to_floor in (("", False), ("to prior_map ", True))
    }
    return "; ".join(f"{kind}{n}" for kind, n in told.items() if n) or "none"


def _splits(runs: Runs) -> list[str]:
    """Per fold: its size, and the split's hash for each share of boxes that may be trained on."""
    body = []
    for fold in sorted({point.fold for point in runs}):
        ours = [run for point, run in runs.items() if point.fold == fold]
        hashes = sorted({(run.box_share, run.split_hash) for run in ours})
        n = ours[0].counts
        body.append(
            [
                ours[0].split,
                f"{n['images']:,} of {n['patients']:,} patients",
                f"{n['boxes']:,}",
                " · ".join(f"{100 * share:g} % {name}" for share, name in hashes),
            ]
        )
    head = ["split", "test images", "truth boxes", "hash, by share of boxes trained on"]
    checksums = next(iter(runs.values())).settings["data checksums"]
    data = [f"- {name}: sha256 {checksum}" for name, checksum in checksums.items()]
    return [*_table(head, body), "", *data]


def _commits(runs: Runs) -> list[str]:
    """Which points were tested with which commit: a difference across commits holds theirs, too."""
    of_commit: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for point, run in runs.items():
        of_commit[run.commit or "unknown"][point.arm.name].append(point.name.split("/")[1])
    return [
        f"- {commit}: "
        + "; ".join(f"{arm} {', '.join(sorted(names))}" for arm, names in of_arm.items())
        for commit, of_arm in of_commit.items()
    ]


def _undefined(runs: Runs) -> list[str]:
    """Findings without a figure in some fold: their fold's mean is over the others."""
    found = {
        (point.fold, _kind(metric), finding, reason)
        for point, run in runs.items()
        for metric, figure in run.figures.items()
        for finding, reason in figure.undefined.items()
    }
    return [
        f"- {kind} of {finding} in fold {fold}: {reason}"
        for fold, kind, finding, reason in sorted(found)
    ]


def _without_interval(rows: Sequence[Row]) -> list[str]:
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        names[row.figure.note, row.metric].append(row.arm)
        if row.difference is not None:
            pair = f"{row.arm} − {row.difference.baseline}"
            names[row.difference.value.note, row.metric].append(pair)
    return [
        f"- {_name(metric)} of {', '.join(dict.fromkeys(who))}: {note}"
        for (note, metric), who in names.items()
        if note
    ]


def _missing(points: Sequence[Point], runs: Runs) -> list[str]:
    absent: dict[str, list[str]] = defaultdict(list)
    for point in points:
        if point not in runs:
            absent[point.arm.name].append(point.name.split("/")[1])
    wanted = [point.arm.name for point in points]
    return [
        f"- {arm}: " + ("every point" if len(names) == wanted.count(arm) else ", ".join(names))
        for arm, names in absent.items()
    ]


def _findings(rows: Iterable[Row]) -> str:
    by_kind = {_kind(row.metric): row.n_findings for row in rows}
    if len(set(by_kind.values())) == 1:
        return f"{next(iter(by_kind.values()))}"
    return " · ".join(f"{kind} {n}" for kind, n in by_kind.items())


def _figure(row: Row | None) -> str:
    if row is None:
        return ""
    spread = "" if row.sd is None else f" ± {short(row.sd)}"
    return f"{short(row.figure.value)}{spread} {interval(row.figure.ci95)}".rstrip()


def _pair(pair: Difference | None) -> str:
    if pair is None:
        return ""
    p = "" if pair.p is None else f", p {p_value(pair.p)}"
    holm = "" if pair.p_holm is None else f" ({p_value(pair.p_holm)})"
    value = pair.value
    ends = interval(value.ci95, write=signed)
    return f"{signed(value.value)} {ends}".rstrip() + p + holm


def _name(metric: str) -> str:
    return _NAMES.get(metric) or f"T(IoU) > {threshold(float(metric.removeprefix('iou_')))}"


def _kind(metric: str) -> str:
    """AUROC and AUPRC are undefined together, and T(IoU) for every T."""
    return "AUROC" if metric in _NAMES else "T(IoU)"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(row) + " |" for row in rows]
