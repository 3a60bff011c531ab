"""The table that a person reads in the terminal at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kacl_jax.evaluation.localization import FLOORS, MEASURES, RULES
from kacl_jax.evaluation.number_format import interval, short, signed, threshold

_SHOWN_T = (0.1, 0.3, 0.5)


def format_table(results: Mapping[str, Any]) -> str:
    """AUROC and AUPRC, then localization beside its floors, and what was left out.

    Takes what `results.results` returns or what results.json holds.
    """
    names, images = results["findings"], results["evaluation"]["images"]
    head = (
        f"protocol {results['protocol']} · split {results['split']} ({results['split_hash']})"
        f" · seed {results['seed']} · {images['test']:,} test images"
    )
    lines = [head, "", *_ranking_lines(results["classification"], names), ""]
    lines += [*_finding_lines(results, names), "", *_mean_lines(results), "", *_notes(results)]
    return "\n".join(lines).rstrip()


def _ranking_lines(classification: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    auroc, auprc = classification["auroc"], classification["auprc"]
    lines = [
        f"{'':20}{'AUROC':>7}  {'95 % interval':17}{'AUPRC':>7}  {'95 % interval':17}"
        f"{'positive':>9}{'negative':>10}"
    ]
    for name in (*names, "mean"):
        leaf = auroc[name]
        label = f"mean of {leaf['n_findings']}" if name == "mean" else name
        figures = [f"{_figure(x):>7}  {_interval(x):17}" for x in (leaf, auprc[name])]
        lines.append(f"{label:20}{''.join(figures)}{leaf['n_pos']:>9,}{leaf['n_neg']:>10,}")
    chance = auprc["mean"]["prevalence"]
    if chance is not None:
        lines.append(f"{'random scores':20}{'.500':>7}  {'':17}{short(chance):>7}")
    if "pixel_probe" in classification:
        floor = classification["pixel_probe"]["mean"]
        lines.append(f"{'logistic, 16×16 px':20}{_figure(floor):>7}  {_interval(floor):17}")
    return lines


def _ways(localization: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rules and floors side by side, the rule `single` from where results.json has it."""
    single = {measure: localization[measure] for measure in MEASURES}
    return {"single": single, **{name: localization[name] for name in (*RULES[1:], *FLOORS)}}


def _finding_lines(results: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    ways = _ways(results["localization"])
    del ways["random_map"]  # the line is full; the means below have it
    shown = "".join(f"{'>' + threshold(t):>5}" for t in _SHOWN_T)
    lines = [
        "localization accuracy: share of truth boxes with IoU > T",
        f"{'':19}{'boxes':>6}" + "".join(f"  {way:>15}" for way in ways),
        f"{'':25}" + f"  {shown}" * len(ways),
    ]
    for name in (*names, "mean"):
        leaves = [[way["iou"][str(t)][name] for t in _SHOWN_T] for way in ways.values()]
        first = leaves[0][0]
        label = f"mean of {first['n_findings']}" if name == "mean" else name
        cells = "".join("  " + "".join(f"{_figure(leaf, 2):>5}" for leaf in way) for way in leaves)
        lines.append(f"{label:19}{first['n']:>6,}{cells}")
    return lines


def _mean_lines(results: Mapping[str, Any]) -> list[str]:
    ways = _ways(results["localization"])
    columns = [(measure, str(t)) for measure, ts in MEASURES.items() for t in ts]
    lines = [
        f"{'mean over findings':20}{'IoU >':<42}  IoBB >",
        f"{'':20}" + _row(columns, {column: threshold(float(column[1])) for column in columns}),
    ]
    for name, way in ways.items():
        mean = {(measure, t): way[measure][t]["mean"] for measure, t in columns}
        lines.append(f"{name:20}" + _row(columns, {c: _figure(leaf) for c, leaf in mean.items()}))
        if name == "single":
            for end, label in enumerate(("  95 % from", "  95 % to")):
                ends = {c: _end(leaf, end) for c, leaf in mean.items()}
                lines.append(f"{label:20}" + _row(columns, ends))
    afp = results["localization"]["afp"]["mean"]
    lines.append(
        f"false boxes per image and finding (AFP): {_figure(afp)} {_interval(afp)}".rstrip()
    )
    lines.append(_pointing_line(results["localization"]))
    lines.append(_above_line(results["localization"]["above_prior_map"]["iou"]))
    return lines


def _above_line(above: Mapping[str, Any]) -> str:
    means = {t: above[str(t)]["mean"] for t in _SHOWN_T}
    told = (
        f"{threshold(t)} {signed(mean['value'])} {interval(mean['ci95'], write=signed)}".rstrip()
        for t, mean in means.items()
    )
    return f"less prior_map, paired: {' · '.join(told)}"


def _pointing_line(localization: Mapping[str, Any]) -> str:
    game = localization["pointing_game"]["mean"]
    floors = (
        f"{name} {_figure(localization[name]['pointing_game']['mean'])}"
        for name in ("random_map", "prior_map")
    )
    figure = f"{_figure(game)} {_interval(game)}".rstrip()
    return f"map's peak in the truth box (pointing game): {figure} · {' · '.join(floors)}"


def _row(columns: Sequence[tuple[str, str]], cells: Mapping[tuple[str, str], str]) -> str:
    cut = len(MEASURES["iou"])
    row = [f"{cells[column]:>6}" for column in columns]
    return "".join(row[:cut]) + "  " + "".join(row[cut:])


def _figure(leaf: Mapping[str, Any], digits: int = 3) -> str:
    return short(leaf["value"], digits)


def _end(leaf: Mapping[str, Any], end: int) -> str:
    return "–" if leaf["ci95"] is None else short(leaf["ci95"][end])


def _interval(leaf: Mapping[str, Any]) -> str:
    return interval(leaf["ci95"])


def _notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know before quoting a figure."""
    evaluation, localization = results["evaluation"], results["localization"]
    u, v = evaluation["grid"]
    notes = [
        "single: the component that holds the map's peak",
        "best_of: the best of all components, chosen with the truth in hand: optimistic",
        f"random_map: smooth noise on the {u}×{v} grid, the same rule",
        "prior_box, prior_map: other patients' boxes, no image; prior_map is the floor to beat",
        f"grid_ceiling: the best box made of whole cells of the {u}×{v} map",
        f"false boxes: predicted positive, no truth box or IoU ≤ {threshold(evaluation['afp_iou'])}; "
        "labelled images without a box are not judged",
    ]
    judged = (("AUROC", results["classification"]["auroc"]), ("AFP", localization["afp"]))
    for label, leaves in (*judged, ("localization", localization["iou"][str(MEASURES["iou"][0])])):
        for name in results["findings"]:
            if leaves[name]["value"] is None:
                notes.append(f"– {label} of {name}: {leaves[name]['reason']}")
    skipped = evaluation["skipped"]
    if any(skipped.values()):
        notes.append(
            f"left out because an image could not be read: {skipped['val']} validation images, "
            f"{skipped['test']} test images, {skipped['boxes']} truth boxes"
        )
    return notes
