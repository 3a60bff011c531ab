"""The sections of a run's page that need only its files: key values, tables, curves, training, feedback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from kacl_jax.evaluation.metrics import IOU_THRESHOLDS, Estimate
from kacl_jax.evaluation.number_format import interval, short
from kacl_jax.evaluation.predictions import SavedPredictions
from kacl_jax.evaluation.results import Classification, FeedbackSummary, Results
from kacl_jax.report import charts, curves
from kacl_jax.report.charts import Axis, Line

TABLE_THRESHOLDS = (0.1, 0.3, 0.5)  # the T that the tables list
# T(IoU) > 0.1 … 0.7, mean of 8 findings: Wang et al., ChestX-ray8, CVPR 2017, with ResNet-50.
WANG_2017 = (0.568, 0.373, 0.221, 0.116, 0.062, 0.028, 0.010)
WANG_LABEL = "Wang et al. 2017, official data, all boxes: another split"
# The lines of the localization chart: (class in style.css, rule or floor, name on the page, what it is).
LOCALIZATION_LINES = (
    ("run", "single", "this run", ""),
    ("prior-map", "prior_map", "prior_map", "other patients’ boxes as a heat map, no image"),
    ("prior-box", "prior_box", "prior_box", "other patients’ mean box, no image"),
    ("random-map", "random_map", "random_map", "smooth noise in place of the map, the same rule"),
    ("ceiling", "grid_ceiling", "grid_ceiling", "the best box of whole cells of the map’s grid"),
)
_NO_DIFFERENCE = "not clearly different from"
_UNIT_AXIS = Axis(0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1), text=lambda v: short(v, 1))
_LOSS_NAMES = {
    "loss": "total loss",
    "focal": "focal",
    "nt_xent": "NT-Xent",
    "box": "box guidance",
}


def localization_section(results: Results) -> dict[str, Any]:
    """The chart of T(IoU) against T, its legend, and the same values as a table."""
    rules_and_floors = results.localization.rules_and_floors()
    lines: list[Line] = []
    rows: list[dict[str, Any]] = []
    for style, rule, name, description in reversed(LOCALIZATION_LINES):
        means = {t: table.mean for t, table in rules_and_floors[rule].iou.items()}
        points = [(t, mean.value) for t, mean in means.items()]
        band = [(t, *mean.ci95) for t, mean in means.items() if mean.ci95]
        is_run = style == "run"
        lines.append(Line(points, style, band if is_run else (), dots=is_run))
        rows.insert(
            0,
            {"style": style, "name": name, "description": description, "means": [*means.values()]},
        )
    lines.insert(0, Line(list(zip(IOU_THRESHOLDS, WANG_2017, strict=True)), "wang"))
    x = Axis(0.1, 0.7, IOU_THRESHOLDS, "T", lambda v: short(v, 1))
    values_text = ", ".join(
        f"{short(mean.value)} at {short(t, 1)}"
        for t, mean in zip(IOU_THRESHOLDS, rows[0]["means"], strict=True)
    )
    alt = f"Share of truth boxes with an IoU above T, mean over findings. This run: {values_text}."
    return {
        "chart": charts.line_chart(lines, x, _UNIT_AXIS, alt=alt, size=(380, 290)),
        "rows": rows,
        "wang": {"style": "wang", "description": WANG_LABEL, "values": WANG_2017},
        "thresholds": IOU_THRESHOLDS,
    }


def comparison_sentences(results: Results) -> list[str]:
    """Each value compared with what needs no network, in sentences: is it above, below, or not clearly different?"""
    auroc = results.classification.auroc.mean
    sentences = []
    if auroc.is_defined:
        sentences.append(f"Mean AUROC {_compare_with_floor(auroc, 0.5, 'random scores (0.500)')}.")
    probe = results.classification.pixel_probe
    if probe is not None and auroc.is_defined and probe.mean.is_defined:
        name = f"logistic regression on 16×16 pixels ({short(probe.mean.value)})"
        sentences.append(f"Mean AUROC {_compare_with_floor(auroc, probe.mean.value, name)}.")
    localization = results.localization
    for t in TABLE_THRESHOLDS:
        accuracy, above = localization.iou[t].mean, localization.above_prior_map.iou[t].mean
        if accuracy.is_defined and above.is_defined:
            comparison = _compare_with_prior_map(accuracy, above)
            sentences.append(f"The share with an IoU above {short(t, 1)} {comparison}.")
    return sentences


def _compare_with_floor(estimate: Estimate, floor: float, name: str) -> str:
    value_text = _value_and_interval(estimate)
    if estimate.ci95 is None:
        return f"is {value_text}, without an interval; compare {name}"
    low, high = estimate.ci95
    if low > floor:
        return f"is {value_text}, above {name}"
    if high < floor:
        return f"is {value_text}, below {name}"
    return f"is {value_text}, {_NO_DIFFERENCE} {name}"


def _compare_with_prior_map(accuracy: Estimate, above: Estimate) -> str:
    """The comparison with the image-free heat map, paired on the same truth boxes."""
    value_text = f"is {_value_and_interval(accuracy)}"
    if above.ci95 is None:
        return (
            f"{value_text}; minus the image-free heat map {above.value:+.3f}, without an interval"
        )
    low, high = above.ci95
    verdict = "above" if low > 0 else "below" if high < 0 else _NO_DIFFERENCE
    return (
        f"{value_text}, {verdict} the image-free heat map (paired difference {above.value:+.3f} "
        f"[{low:+.3f}, {high:+.3f}])"
    )


def finding_rows(results: Results) -> list[dict[str, Any]]:
    """One row per finding and one for the mean: estimates, with charts of their intervals."""
    ranking, localization = results.classification, results.localization
    names = (*results.findings, f"mean of {ranking.auroc.mean.counts['n_findings']}")
    rows = []
    for i, (name, auroc, auprc) in enumerate(
        zip(names, ranking.auroc.rows, ranking.auprc.rows, strict=True)
    ):
        boxes = [localization.iou[t].rows[i] for t in TABLE_THRESHOLDS]
        floors = [localization.prior_map.iou[t].rows[i] for t in TABLE_THRESHOLDS]
        rows.append(
            {
                "name": name,
                "auroc": auroc,
                "auroc_chart": _interval_chart("AUROC", auroc, 0.3, 1, rule=0.5),
                "auprc": auprc,
                "boxes": boxes,
                "floors": floors,
                "box_chart": _interval_chart(
                    "IoU above 0.1", boxes[0], 0, 1, floors=[(floors[0].value, "prior-map")]
                ),
            }
        )
    return rows


def key_values(results: Results) -> list[dict[str, Any]]:
    """The values at the top of the page: name, estimate, and the (name, value) pairs to compare it with."""
    ranking, localization = results.classification, results.localization
    rules_and_floors = localization.rules_and_floors()
    auroc_floors: list[tuple[str, float | None]] = [("random", 0.5)]
    if ranking.pixel_probe is not None:
        auroc_floors.append(("16×16 pixels", ranking.pixel_probe.mean.value))
    cards = [("mean AUROC", ranking.auroc.mean, auroc_floors)]
    auprc = ranking.auprc.mean
    cards.append(("mean AUPRC", auprc, [("random", auprc.prevalence)]))
    for t in TABLE_THRESHOLDS:
        floors: list[tuple[str, float | None]] = [
            (name, rules_and_floors[name].iou[t].mean.value)
            for _, name, *_ in LOCALIZATION_LINES[1:]
        ]
        cards.append((f"IoU above {short(t, 1)}", localization.iou[t].mean, floors))
    pointing_floors: list[tuple[str, float | None]] = [
        ("prior_map", localization.prior_map.pointing_game.mean.value),
        ("random_map", localization.random_map.pointing_game.mean.value),
    ]
    cards.append(("pointing game", localization.pointing_game.mean, pointing_floors))
    cards.append(("false boxes per image and finding", localization.afp.mean, []))
    return [
        {"name": name, "estimate": estimate, "floors": floors} for name, estimate, floors in cards
    ]


def _value_and_interval(estimate: Estimate) -> str:
    return f"{short(estimate.value)} {interval(estimate.ci95)}".rstrip()


def _interval_chart(name: str, of: Estimate, low: float, high: float, **more: Any) -> Markup:
    alt = f"{name} {_value_and_interval(of)}"
    return charts.interval_chart(of.value, of.ci95, low=low, high=high, alt=alt, **more)


def ranking_curves(predictions: SavedPredictions, ranking: Classification) -> list[dict[str, Any]]:
    """The ROC chart and the PR chart of each finding; None where a class is absent."""
    sections = []
    for c, name in enumerate(predictions.findings):
        auroc, auprc = ranking.auroc.findings[c], ranking.auprc.findings[c]
        both_curves = curves.roc_and_pr(predictions.scores[:, c], predictions.labels[:, c])
        chart_of_curve: dict[str, Markup | None] = {"roc": None, "pr": None}
        if both_curves is not None:
            roc, pr = both_curves
            prevalence = auprc.prevalence or 0.0
            chart_of_curve = {
                "roc": charts.line_chart(
                    [Line(roc, "run")],
                    _labelled_unit_axis("1 − specificity"),
                    _UNIT_AXIS,
                    alt=f"ROC curve of {name}, AUROC {short(auroc.value)}",
                    size=(200, 200),
                    rules=[((0, 0), (1, 1))],
                ),
                "pr": charts.line_chart(
                    [Line(pr, "pr")],
                    _labelled_unit_axis("recall"),
                    _UNIT_AXIS,
                    alt=f"Precision against recall of {name}, AUPRC {short(auprc.value)}",
                    size=(200, 200),
                    rules=[((0, prevalence), (1, prevalence))],
                ),
            }
        sections.append({"name": name, "auroc": auroc, "auprc": auprc, **chart_of_curve})
    return sections


def _labelled_unit_axis(label: str) -> Axis:
    return Axis(0, 1, (0, 0.5, 1), label, lambda v: short(v, 1) if v % 1 else f"{v:g}")


def training_charts(log: Sequence[Mapping[str, Any]], best_step: int) -> list[dict[str, Any]]:
    """Charts of the losses and of the validation AUROC, where best_step is marked: {name, chart}."""
    train_lines = [line for line in log if line["kind"] == "train"]
    loss_charts = []
    # Every term of the loss has a second column, for the norm of its gradient.
    columns = {column for line in train_lines for column in line}
    terms = {c.removeprefix("grad_norm_") for c in columns if c.startswith("grad_norm_")}
    for name in (*_LOSS_NAMES, *sorted(terms - _LOSS_NAMES.keys())):
        title = _LOSS_NAMES.get(name, name)
        # The log has null where a step has no such term.
        lines = [line for line in train_lines if line.get(name) is not None]
        loss_charts += _chart_over_steps(title, name, lines)
    val_lines = [line for line in log if line["kind"] == "val"]
    best = [
        (line["step"], line["auroc"])
        for line in val_lines
        if line["step"] == best_step and line["auroc"] is not None
    ]
    best_text = "".join(f", best {short(auroc)} at step {step:,}" for step, auroc in best)
    title = f"validation AUROC{best_text}"
    return loss_charts + _chart_over_steps(title, "auroc", val_lines, marks=best)


def feedback_section(log: Sequence[Mapping[str, Any]], summary: FeedbackSummary) -> dict[str, Any]:
    """The regions of the run: charts over the steps, shares of their origins."""
    regions = summary.regions or {}
    total = sum(regions.values())
    has_feedback = summary.hit_rate is not None
    train_lines = [line for line in log if line["kind"] == "train" and has_feedback]
    return {
        "charts": [
            *_chart_over_steps("share of images with features", "hit_rate", train_lines, zero=True),
            *_chart_over_steps("age of the features in steps", "age", train_lines, zero=True),
        ],
        "regions": [
            (name, n, n / total, charts.share_bar(n / total, f"{name}: {n / total:.1%}"))
            for name, n in regions.items()
            if n
        ],
    }


def _chart_over_steps(
    title: str,
    name: str,
    lines: Sequence[Mapping[str, Any]],
    *,
    zero: bool = False,
    marks: Iterable[tuple[float, float]] = (),
) -> list[dict[str, Any]]:
    """A list with the chart of one logged value; an empty list where it was never logged."""
    points = curves.series(lines, name)
    values = [value for _, value in points if value is not None]
    if not values:
        return []
    x = charts.nice_axis([0, *(step for step, _ in points)], "step", zero=True)
    alt = f"{title}: from {values[0]:.3g} at step {points[0][0]:g} to {values[-1]:.3g} at step {points[-1][0]:g}"
    line = Line(points, "run", dots=len(points) <= 20)
    y = charts.nice_axis(values, zero=zero)
    chart = charts.line_chart([line], x, y, alt=alt, size=(330, 190), marks=marks)
    return [{"name": title, "chart": chart}]
