"""The sections of a run's page that need only its files: key values, tables, curves, training, feedback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from kacl_jax.evaluation.metrics import IOU_THRESHOLDS
from kacl_jax.evaluation.number_format import interval, short
from kacl_jax.evaluation.predictions import SavedPredictions
from kacl_jax.report import charts, curves
from kacl_jax.report.charts import Axis, Line

# The thresholds T that the tables list, as results.json writes them.
T_KEYS = ("0.1", "0.3", "0.5")
# T(IoU) > 0.1 … 0.7, mean of 8 findings: Wang et al., ChestX-ray8, CVPR 2017, with ResNet-50.
WANG_2017 = (0.568, 0.373, 0.221, 0.116, 0.062, 0.028, 0.010)
WANG_LABEL = "Wang et al. 2017, official data, all boxes: another split"
# The lines of the localization chart: (class in style.css, name in results.json or '' for the run itself, name on the
# page, what it is).
LOCALIZATION_LINES = (
    ("run", "", "this run", ""),
    ("prior-map", "prior_map", "prior_map", "other patients’ boxes as a heat map, no image"),
    ("prior-box", "prior_box", "prior_box", "other patients’ mean box, no image"),
    ("random-map", "random_map", "random_map", "smooth noise in place of the map, the same rule"),
    ("ceiling", "grid_ceiling", "grid_ceiling", "the best box of whole cells of the map’s grid"),
)
_UNIT_AXIS = Axis(0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1), text=lambda v: short(v, 1))
_LOSS_NAMES = {
    "loss": "total loss",
    "focal": "focal",
    "nt_xent": "NT-Xent",
    "box": "box guidance",
}


def localization_section(results: Mapping[str, Any]) -> dict[str, Any]:
    """The chart of T(IoU) against T, its legend, and the same values as a table."""
    localization = results["localization"]
    tables_of_style = {
        style: localization[name]["iou"] if name else localization["iou"]
        for style, name, *_ in LOCALIZATION_LINES
    }
    lines: list[Line] = []
    rows: list[dict[str, Any]] = []
    for style, _, name, description in reversed(LOCALIZATION_LINES):
        means = [tables_of_style[style][str(t)]["mean"] for t in IOU_THRESHOLDS]
        points = [(t, leaf["value"]) for t, leaf in zip(IOU_THRESHOLDS, means, strict=True)]
        band = [
            (t, *leaf["ci95"])
            for t, leaf in zip(IOU_THRESHOLDS, means, strict=True)
            if leaf["ci95"]
        ]
        is_run = style == "run"
        lines.append(Line(points, style, band if is_run else (), dots=is_run))
        rows.insert(0, {"style": style, "name": name, "description": description, "means": means})
    lines.insert(0, Line(list(zip(IOU_THRESHOLDS, WANG_2017, strict=True)), "wang"))
    x = Axis(0.1, 0.7, IOU_THRESHOLDS, "T", lambda v: short(v, 1))
    values_text = ", ".join(
        f"{short(leaf['value'])} at {short(t, 1)}"
        for t, leaf in zip(IOU_THRESHOLDS, rows[0]["means"], strict=True)
    )
    alt = f"Share of truth boxes with IoU over T, mean over findings. This run: {values_text}."
    return {
        "chart": charts.line_chart(lines, x, _UNIT_AXIS, alt=alt, size=(380, 290)),
        "rows": rows,
        "wang": {"style": "wang", "description": WANG_LABEL, "values": WANG_2017},
        "thresholds": IOU_THRESHOLDS,
    }


def comparison_sentences(results: Mapping[str, Any]) -> list[str]:
    """Each value compared with what needs no network, in sentences: is it above, below, or not told apart?"""
    auroc = results["classification"]["auroc"]["mean"]
    sentences = []
    if auroc["value"] is not None:
        sentences.append(f"Mean AUROC {_compare_with_floor(auroc, 0.5, 'random scores, .500')}.")
    probe = results["classification"].get("pixel_probe")
    if probe and auroc["value"] is not None and probe["mean"]["value"] is not None:
        name = f"logistic regression on 16×16 pixels, {short(probe['mean']['value'])}"
        sentences.append(f"Mean AUROC {_compare_with_floor(auroc, probe['mean']['value'], name)}.")
    localization = results["localization"]
    for t in T_KEYS:
        leaf, above = (
            localization["iou"][t]["mean"],
            localization["above_prior_map"]["iou"][t]["mean"],
        )
        if leaf["value"] is not None and above["value"] is not None:
            comparison = _compare_with_prior_map(leaf, above)
            sentences.append(f"T(IoU) > {short(float(t), 1)} {comparison}.")
    return sentences


def _compare_with_floor(leaf: Mapping[str, Any], floor: float, name: str) -> str:
    value_text = f"{short(leaf['value'])} {interval(leaf['ci95'])}".rstrip()
    if leaf["ci95"] is None:
        return f"is {value_text}, without an interval; {name} stands beside it"
    low, high = leaf["ci95"]
    if low > floor:
        return f"is {value_text}: above {name}"
    if high < floor:
        return f"is {value_text}: below {name}"
    return f"is {value_text}: not told apart from {name}"


def _compare_with_prior_map(leaf: Mapping[str, Any], above: Mapping[str, Any]) -> str:
    """The comparison with the image-free heat map, paired on the same truth boxes."""
    value_text = f"is {short(leaf['value'])} {interval(leaf['ci95'])}".rstrip()
    if above["ci95"] is None:
        return (
            f"{value_text}; less the image-free heat map {above['value']:+.3f}, without an interval"
        )
    low, high = above["ci95"]
    verdict = "above" if low > 0 else "below" if high < 0 else "not told apart from"
    return (
        f"{value_text}: {verdict} the image-free heat map (paired difference {above['value']:+.3f} "
        f"[{low:+.3f}, {high:+.3f}])"
    )


def finding_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per finding and one for the mean: leaves of results.json, with charts of their intervals."""
    ranking, localization = results["classification"], results["localization"]
    rows = []
    for name in (*results["findings"], "mean"):
        auroc, auprc = ranking["auroc"][name], ranking["auprc"][name]
        boxes = [localization["iou"][t][name] for t in T_KEYS]
        floors = [localization["prior_map"]["iou"][t][name] for t in T_KEYS]
        rows.append(
            {
                "name": f"mean of {auroc['n_findings']}" if name == "mean" else name,
                "auroc": auroc,
                "auroc_chart": _interval_chart("AUROC", auroc, 0.3, 1, rule=0.5),
                "auprc": auprc,
                "boxes": boxes,
                "floors": floors,
                "box_chart": _interval_chart(
                    "T(IoU) > .1", boxes[0], 0, 1, floors=[(floors[0]["value"], "prior-map")]
                ),
            }
        )
    return rows


def key_values(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The values at the top of the page: name, leaf, and the (name, value) pairs to compare it with."""
    ranking, localization = results["classification"], results["localization"]
    auroc_floors = [("random", 0.5)]
    if "pixel_probe" in ranking:
        auroc_floors.append(("16×16 pixels", ranking["pixel_probe"]["mean"]["value"]))
    cards = [("mean AUROC", ranking["auroc"]["mean"], auroc_floors)]
    auprc = ranking["auprc"]["mean"]
    cards.append(("mean AUPRC", auprc, [("random", auprc["prevalence"])]))
    for t in T_KEYS:
        floors = [
            (name, localization[name]["iou"][t]["mean"]["value"])
            for _, name, *_ in LOCALIZATION_LINES
            if name
        ]
        cards.append((f"T(IoU) > {short(float(t), 1)}", localization["iou"][t]["mean"], floors))
    pointing_floors = [
        (name, localization[name]["pointing_game"]["mean"]["value"])
        for name in ("prior_map", "random_map")
    ]
    cards.append(("pointing game", localization["pointing_game"]["mean"], pointing_floors))
    cards.append(("false boxes per image and finding", localization["afp"]["mean"], []))
    return [{"name": name, "leaf": leaf, "floors": floors} for name, leaf, floors in cards]


def _interval_chart(
    name: str, leaf: Mapping[str, Any], low: float, high: float, **more: Any
) -> Markup:
    alt = f"{name} {short(leaf['value'])} {interval(leaf['ci95'])}".rstrip()
    return charts.interval_chart(leaf["value"], leaf["ci95"], low=low, high=high, alt=alt, **more)


def ranking_curves(
    predictions: SavedPredictions, results: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The ROC chart and the PR chart of each finding; None where a class is absent."""
    ranking = results["classification"]
    sections = []
    for c, name in enumerate(predictions.findings):
        auroc, auprc = ranking["auroc"][name], ranking["auprc"][name]
        both_curves = curves.roc_and_pr(predictions.scores[:, c], predictions.labels[:, c])
        chart_of_curve: dict[str, Markup | None] = {"roc": None, "pr": None}
        if both_curves is not None:
            roc, pr = both_curves
            chart_of_curve = {
                "roc": charts.line_chart(
                    [Line(roc, "run")],
                    _labelled_unit_axis("1 − specificity"),
                    _UNIT_AXIS,
                    alt=f"ROC curve of {name}, AUROC {short(auroc['value'])}",
                    size=(200, 200),
                    rules=[((0, 0), (1, 1))],
                ),
                "pr": charts.line_chart(
                    [Line(pr, "pr")],
                    _labelled_unit_axis("recall"),
                    _UNIT_AXIS,
                    alt=f"Precision against recall of {name}, AUPRC {short(auprc['value'])}",
                    size=(200, 200),
                    rules=[((0, auprc["prevalence"]), (1, auprc["prevalence"]))],
                ),
            }
        sections.append({"name": name, "auroc": auroc, "auprc": auprc, **chart_of_curve})
    return sections


def _labelled_unit_axis(label: str) -> Axis:
    return Axis(0, 1, (0, 0.5, 1), label, lambda v: short(v, 1) if v % 1 else f"{v:g}")


def training_charts(
    log: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Charts of the losses and of the validation AUROC: {name, chart}."""
    train_lines = [line for line in log if line["kind"] == "train"]
    loss_charts = []
    for name, title in _LOSS_NAMES.items():
        # The log has null where a step has no such term.
        lines = [line for line in train_lines if line.get(name) is not None]
        loss_charts += _chart_over_steps(title, name, lines)
    val_lines = [line for line in log if line["kind"] == "val"]
    best = [
        (line["step"], line["auroc"])
        for line in val_lines
        if line["step"] == results["best_step"] and line["auroc"] is not None
    ]
    best_text = "".join(f", best {short(auroc)} at step {step:,}" for step, auroc in best)
    title = f"validation AUROC{best_text}"
    return loss_charts + _chart_over_steps(title, "auroc", val_lines, marks=best)


def feedback_section(
    log: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
) -> dict[str, Any]:
    """The regions of the run: charts over the steps, shares of their origins, failures by reason."""
    summary = results["feedback"]
    regions = summary.get("regions") or {}
    total = sum(regions.values())
    has_feedback = summary["hit_rate"] is not None
    train_lines = [line for line in log if line["kind"] == "train" and has_feedback]
    return {
        **summary,
        "charts": [
            *_chart_over_steps(
                "share of images with a feature", "hit_rate", train_lines, zero=True
            ),
            *_chart_over_steps("age of the features, steps", "age", train_lines, zero=True),
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
