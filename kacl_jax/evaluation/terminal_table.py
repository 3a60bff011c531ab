"""The table of results that a run prints in the terminal at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kacl_jax.evaluation.localization import FLOORS, OVERLAP_THRESHOLDS, RULES
from kacl_jax.evaluation.number_format import interval, short, signed, threshold

_FINDING_THRESHOLDS = (0.1, 0.3, 0.5)


def format_table(results: Mapping[str, Any]) -> str:
    """AUROC and AUPRC, then localization beside its floors, then notes on omitted images and undefined values.

    results: from `result_files.build_results`, or the content of results.json.
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
        cells = [f"{_value_text(x):>7}  {_interval_text(x):17}" for x in (leaf, auprc[name])]
        lines.append(f"{label:20}{''.join(cells)}{leaf['n_pos']:>9,}{leaf['n_neg']:>10,}")
    prevalence = auprc["mean"]["prevalence"]
    if prevalence is not None:
        lines.append(f"{'random scores':20}{'.500':>7}  {'':17}{short(prevalence):>7}")
    if "pixel_probe" in classification:
        floor = classification["pixel_probe"]["mean"]
        lines.append(
            f"{'logistic, 16×16 px':20}{_value_text(floor):>7}  {_interval_text(floor):17}"
        )
    return lines


def _leaves_by_rule_and_floor(localization: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Leaves by rule and floor. results.json has those of the rule `single` not under its name but directly."""
    single = {measure: localization[measure] for measure in OVERLAP_THRESHOLDS}
    return {"single": single, **{name: localization[name] for name in (*RULES[1:], *FLOORS)}}


def _finding_lines(results: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    by_name = _leaves_by_rule_and_floor(results["localization"])
    del by_name["random_map"]  # no room in the line; the table of means has it
    threshold_header = "".join(f"{'>' + threshold(t):>5}" for t in _FINDING_THRESHOLDS)
    lines = [
        "localization accuracy: share of truth boxes with IoU > T",
        f"{'':19}{'boxes':>6}" + "".join(f"  {name:>15}" for name in by_name),
        f"{'':25}" + f"  {threshold_header}" * len(by_name),
    ]
    for name in (*names, "mean"):
        columns = [
            [leaves["iou"][str(t)][name] for t in _FINDING_THRESHOLDS]
            for leaves in by_name.values()
        ]
        first = columns[0][0]
        label = f"mean of {first['n_findings']}" if name == "mean" else name
        cells = "".join(
            "  " + "".join(f"{_value_text(leaf, 2):>5}" for leaf in column) for column in columns
        )
        lines.append(f"{label:19}{first['n']:>6,}{cells}")
    return lines


def _mean_lines(results: Mapping[str, Any]) -> list[str]:
    leaves_by_name = _leaves_by_rule_and_floor(results["localization"])
    columns = [
        (measure, str(t)) for measure, thresholds in OVERLAP_THRESHOLDS.items() for t in thresholds
    ]
    lines = [
        f"{'mean over findings':20}{'IoU >':<42}  IoBB >",
        f"{'':20}"
        + _row_text(columns, {column: threshold(float(column[1])) for column in columns}),
    ]
    for name, leaves in leaves_by_name.items():
        mean = {(measure, t): leaves[measure][t]["mean"] for measure, t in columns}
        lines.append(
            f"{name:20}" + _row_text(columns, {c: _value_text(leaf) for c, leaf in mean.items()})
        )
        if name == "single":
            for side, side_label in enumerate(("  95 % from", "  95 % to")):
                ends = {c: _interval_end_text(leaf, side) for c, leaf in mean.items()}
                lines.append(f"{side_label:20}" + _row_text(columns, ends))
    afp = results["localization"]["afp"]["mean"]
    lines.append(
        f"false boxes per image and finding (AFP): {_value_text(afp)} {_interval_text(afp)}".rstrip()
    )
    lines.append(_pointing_line(results["localization"]))
    lines.append(_above_line(results["localization"]["above_prior_map"]["iou"]))
    return lines


def _above_line(above: Mapping[str, Any]) -> str:
    means = {t: above[str(t)]["mean"] for t in _FINDING_THRESHOLDS}
    differences = (
        f"{threshold(t)} {signed(mean['value'])} {interval(mean['ci95'], write=signed)}".rstrip()
        for t, mean in means.items()
    )
    return f"less prior_map, paired: {' · '.join(differences)}"


def _pointing_line(localization: Mapping[str, Any]) -> str:
    single = localization["pointing_game"]["mean"]
    floors = (
        f"{name} {_value_text(localization[name]['pointing_game']['mean'])}"
        for name in ("random_map", "prior_map")
    )
    value = f"{_value_text(single)} {_interval_text(single)}".rstrip()
    return f"map's peak in the truth box (pointing game): {value} · {' · '.join(floors)}"


def _row_text(columns: Sequence[tuple[str, str]], cells: Mapping[tuple[str, str], str]) -> str:
    n_iou = len(OVERLAP_THRESHOLDS["iou"])
    texts = [f"{cells[column]:>6}" for column in columns]
    return "".join(texts[:n_iou]) + "  " + "".join(texts[n_iou:])


def _value_text(leaf: Mapping[str, Any], digits: int = 3) -> str:
    return short(leaf["value"], digits)


def _interval_end_text(leaf: Mapping[str, Any], end: int) -> str:
    return "–" if leaf["ci95"] is None else short(leaf["ci95"][end])


def _interval_text(leaf: Mapping[str, Any]) -> str:
    return interval(leaf["ci95"])


def _notes(results: Mapping[str, Any]) -> list[str]:
    """Explanations that a reader needs before quoting a number."""
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
    tables = (("AUROC", results["classification"]["auroc"]), ("AFP", localization["afp"]))
    for label, leaves in (
        *tables,
        ("localization", localization["iou"][str(OVERLAP_THRESHOLDS["iou"][0])]),
    ):
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
