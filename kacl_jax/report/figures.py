"""The sections of a run's page that are told by its files: key figures, tables, curves, training, feedback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from kacl_jax.evaluation.metrics import T_IOU
from kacl_jax.evaluation.number_format import interval, short
from kacl_jax.evaluation.predictions import Tested
from kacl_jax.report import charts, curves
from kacl_jax.report.charts import Axis, Line

SHOWN_T = ("0.1", "0.3", "0.5")
# T(IoU) > .1 … .7, mean of 8 findings: Wang et al., ChestX-ray8, CVPR 2017, with ResNet-50.
WANG_2017 = (0.568, 0.373, 0.221, 0.116, 0.062, 0.028, 0.010)
WANG_LABEL = "Wang et al. 2017, official data, all boxes: another split"
# What localization is drawn with: (its class in style.css, its name in results.json or '', its name here, what it is).
WAYS = (
    ("run", "", "this run", ""),
    ("prior-map", "prior_map", "prior_map", "other patients’ boxes as a heat map, no image"),
    ("prior-box", "prior_box", "prior_box", "other patients’ mean box, no image"),
    ("random-map", "random_map", "random_map", "smooth noise in place of the map, the same rule"),
    ("ceiling", "grid_ceiling", "grid_ceiling", "the best box of whole cells of the map’s grid"),
)
_UNIT = Axis(0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1), text=lambda v: short(v, 1))
_TERMS = {
    "loss": "total loss",
    "focal": "focal",
    "nt_xent": "NT-Xent",
    "box": "box guidance",
}


def localization(results: Mapping[str, Any]) -> dict[str, Any]:
    """The chart of T(IoU) against T, its legend, and the same figures as a table."""
    found = results["localization"]
    ways = {style: found[name]["iou"] if name else found["iou"] for style, name, *_ in WAYS}
    lines: list[Line] = []
    rows: list[dict[str, Any]] = []
    for style, _, name, words in reversed(WAYS):
        means = [ways[style][str(t)]["mean"] for t in T_IOU]
        points = [(t, leaf["value"]) for t, leaf in zip(T_IOU, means, strict=True)]
        band = [(t, *leaf["ci95"]) for t, leaf in zip(T_IOU, means, strict=True) if leaf["ci95"]]
        of_run = style == "run"
        lines.append(Line(points, style, band if of_run else (), dots=of_run))
        rows.insert(0, {"style": style, "name": name, "words": words, "means": means})
    lines.insert(0, Line(list(zip(T_IOU, WANG_2017, strict=True)), "wang"))
    x = Axis(0.1, 0.7, T_IOU, "T", lambda v: short(v, 1))
    told = ", ".join(
        f"{short(leaf['value'])} at {short(t, 1)}"
        for t, leaf in zip(T_IOU, rows[0]["means"], strict=True)
    )
    alt = f"Share of truth boxes with IoU over T, mean over findings. This run: {told}."
    return {
        "chart": charts.line_chart(lines, x, _UNIT, alt=alt, size=(380, 290)),
        "rows": rows,
        "wang": {"style": "wang", "words": WANG_LABEL, "values": WANG_2017},
        "thresholds": T_IOU,
    }


def reading(results: Mapping[str, Any]) -> list[str]:
    """What the intervals say, in words: each figure against what needs no network."""
    auroc = results["classification"]["auroc"]["mean"]
    told = []
    if auroc["value"] is not None:
        told.append(f"Mean AUROC {_against(auroc, 0.5, 'random scores, .500')}.")
    probe = results["classification"].get("pixel_probe")
    if probe and auroc["value"] is not None and probe["mean"]["value"] is not None:
        name = f"logistic regression on 16×16 pixels, {short(probe['mean']['value'])}"
        told.append(f"Mean AUROC {_against(auroc, probe['mean']['value'], name)}.")
    found = results["localization"]
    for t in SHOWN_T:
        leaf, above = found["iou"][t]["mean"], found["above_prior_map"]["iou"][t]["mean"]
        if leaf["value"] is not None and above["value"] is not None:
            told.append(f"T(IoU) > {short(float(t), 1)} {_above(leaf, above)}.")
    return told


def _against(leaf: Mapping[str, Any], floor: float, name: str) -> str:
    figure = f"{short(leaf['value'])} {interval(leaf['ci95'])}".rstrip()
    if leaf["ci95"] is None:
        return f"is {figure}, without an interval; {name} stands beside it"
    low, high = leaf["ci95"]
    if low > floor:
        return f"is {figure}: above {name}"
    if high < floor:
        return f"is {figure}: below {name}"
    return f"is {figure}: not told apart from {name}"


def _above(leaf: Mapping[str, Any], above: Mapping[str, Any]) -> str:
    """Against the image-free heat map, paired on the same truth boxes."""
    figure = f"is {short(leaf['value'])} {interval(leaf['ci95'])}".rstrip()
    if above["ci95"] is None:
        return f"{figure}; less the image-free heat map {above['value']:+.3f}, without an interval"
    low, high = above["ci95"]
    verdict = "above" if low > 0 else "below" if high < 0 else "not told apart from"
    return (
        f"{figure}: {verdict} the image-free heat map (paired difference {above['value']:+.3f} "
        f"[{low:+.3f}, {high:+.3f}])"
    )


def finding_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per finding and one of the mean: leaves of results.json with their intervals drawn."""
    ranking, found = results["classification"], results["localization"]
    rows = []
    for name in (*results["findings"], "mean"):
        auroc, auprc = ranking["auroc"][name], ranking["auprc"][name]
        boxes = [found["iou"][t][name] for t in SHOWN_T]
        floors = [found["prior_map"]["iou"][t][name] for t in SHOWN_T]
        rows.append(
            {
                "name": f"mean of {auroc['n_findings']}" if name == "mean" else name,
                "auroc": auroc,
                "auroc_track": _track("AUROC", auroc, 0.3, 1, rule=0.5),
                "auprc": auprc,
                "boxes": boxes,
                "floors": floors,
                "box_track": _track(
                    "T(IoU) > .1", boxes[0], 0, 1, floors=[(floors[0]["value"], "prior-map")]
                ),
            }
        )
    return rows


def key_figures(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures that stand on top: name, leaf, what it must be read beside."""
    ranking, found = results["classification"], results["localization"]
    beside = [("random", 0.5)]
    if "pixel_probe" in ranking:
        beside.append(("16×16 pixels", ranking["pixel_probe"]["mean"]["value"]))
    cards = [("mean AUROC", ranking["auroc"]["mean"], beside)]
    auprc = ranking["auprc"]["mean"]
    cards.append(("mean AUPRC", auprc, [("random", auprc["prevalence"])]))
    for t in SHOWN_T:
        others = [(name, found[name]["iou"][t]["mean"]["value"]) for _, name, *_ in WAYS if name]
        cards.append((f"T(IoU) > {short(float(t), 1)}", found["iou"][t]["mean"], others))
    game = [
        (name, found[name]["pointing_game"]["mean"]["value"])
        for name in ("prior_map", "random_map")
    ]
    cards.append(("pointing game", found["pointing_game"]["mean"], game))
    cards.append(("false boxes per image and finding", found["afp"]["mean"], []))
    return [{"name": name, "leaf": leaf, "beside": others} for name, leaf, others in cards]


def _track(name: str, leaf: Mapping[str, Any], low: float, high: float, **more: Any) -> Markup:
    alt = f"{name} {short(leaf['value'])} {interval(leaf['ci95'])}".rstrip()
    return charts.track(leaf["value"], leaf["ci95"], low=low, high=high, alt=alt, **more)


def ranking_curves(tested: Tested, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """ROC and PR chart of each finding; None where a class is absent."""
    ranking = results["classification"]
    charted = []
    for c, name in enumerate(tested.findings):
        auroc, auprc = ranking["auroc"][name], ranking["auprc"][name]
        both = curves.roc_and_pr(tested.scores[:, c], tested.labels[:, c])
        charts_of: dict[str, Markup | None] = {"roc": None, "pr": None}
        if both is not None:
            charts_of = {
                "roc": charts.line_chart(
                    [Line(both[0], "run")],
                    _axis("1 − specificity"),
                    _UNIT,
                    alt=f"ROC curve of {name}, AUROC {short(auroc['value'])}",
                    size=(200, 200),
                    rules=[((0, 0), (1, 1))],
                ),
                "pr": charts.line_chart(
                    [Line(both[1], "pr")],
                    _axis("recall"),
                    _UNIT,
                    alt=f"Precision against recall of {name}, AUPRC {short(auprc['value'])}",
                    size=(200, 200),
                    rules=[((0, auprc["prevalence"]), (1, auprc["prevalence"]))],
                ),
            }
        charted.append({"name": name, "auroc": auroc, "auprc": auprc, **charts_of})
    return charted


def _axis(label: str) -> Axis:
    return Axis(0, 1, (0, 0.5, 1), label, lambda v: short(v, 1) if v % 1 else f"{v:g}")


def training(log: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Charts of the losses and of the validation AUROC: {name, chart}."""
    trained = [line for line in log if line["kind"] == "train"]
    told = []
    for name, words in _TERMS.items():
        # Null where a step had no such term.
        shown = [line for line in trained if line.get(name) is not None]
        told += _over_steps(words, name, shown)
    validated = [line for line in log if line["kind"] == "val"]
    best = [
        (line["step"], line["auroc"])
        for line in validated
        if line["step"] == results["best_step"] and line["auroc"] is not None
    ]
    words = "".join(f", best {short(auroc)} at step {step:,}" for step, auroc in best)
    return told + _over_steps(f"validation AUROC{words}", "auroc", validated, marks=best)


def feedback(log: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> dict[str, Any]:
    """What became of the regions: charts over the steps, shares of their origin, failures by reason."""
    found = results["feedback"]
    regions = found.get("regions") or {}
    total = sum(regions.values())
    trained = (
        [line for line in log if line["kind"] == "train"] if found["hit_rate"] is not None else []
    )
    return {
        **found,
        "charts": [
            *_over_steps("share of images with a feature", "hit_rate", trained, zero=True),
            *_over_steps("age of the features, steps", "age", trained, zero=True),
        ],
        "regions": [
            (name, n, n / total, charts.share_bar(n / total, f"{name}: {n / total:.1%}"))
            for name, n in regions.items()
            if n
        ],
    }


def _over_steps(
    words: str,
    name: str,
    lines: Sequence[Mapping[str, Any]],
    *,
    zero: bool = False,
    marks: Iterable[tuple[float, float]] = (),
) -> list[dict[str, Any]]:
    """A chart of one logged figure; nothing where it was never logged."""
    points = curves.series(lines, name)
    values = [value for _, value in points if value is not None]
    if not values:
        return []
    x = charts.nice_axis([0, *(at for at, _ in points)], "step", zero=True)
    alt = f"{words}: from {values[0]:.3g} at step {points[0][0]:g} to {values[-1]:.3g} at step {points[-1][0]:g}"
    line = Line(points, "run", dots=len(points) <= 20)
    y = charts.nice_axis(values, zero=zero)
    chart = charts.line_chart([line], x, y, alt=alt, size=(330, 190), marks=marks)
    return [{"name": words, "chart": chart}]
