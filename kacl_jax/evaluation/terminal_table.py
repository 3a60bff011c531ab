"""The table of results that a run prints in the terminal at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kacl_jax.evaluation.metrics import IOBB_THRESHOLDS, IOU_THRESHOLDS, Estimate, Table
from kacl_jax.evaluation.number_format import interval, short, signed, threshold
from kacl_jax.evaluation.results import (
    Accuracy,
    Classification,
    Localization,
    RankingDifference,
    Results,
)

_FINDING_THRESHOLDS = (0.1, 0.3, 0.5)


def format_table(results: Results) -> str:
    """AUROC and AUPRC, then localization beside its floors, then notes on omitted images and undefined values."""
    names, localization = results.findings, results.localization
    head = (
        f"protocol {results.protocol} · split {results.split} ({results.split_hash})"
        f" · seed {results.seed} · {results.evaluation.images.test:,} test images"
    )
    lines = [head, "", *_ranking_lines(results.classification, names), *_fused_lines(results), ""]
    if _has_truth_boxes(localization):
        lines += [*_finding_lines(localization, names), "", *_mean_lines(localization), ""]
    else:
        lines += ["localization: no test image has a truth box", ""]
    return "\n".join([*lines, *_notes(results)]).rstrip()


def _has_truth_boxes(localization: Localization) -> bool:
    return localization.iou[IOU_THRESHOLDS[0]].mean.counts["n"] > 0


def _ranking_lines(classification: Classification, names: Sequence[str]) -> list[str]:
    auroc, auprc = classification.auroc, classification.auprc
    lines = [
        f"{'':20}{'AUROC':>7}  {'95 % interval':17}{'AUPRC':>7}  {'95 % interval':17}"
        f"{'positive':>9}{'negative':>10}"
    ]
    for label, *estimates in zip(_row_labels(names, auroc), auroc.rows, auprc.rows, strict=True):
        cells = [f"{short(e.value):>7}  {interval(e.ci95):17}" for e in estimates]
        counts = estimates[0].counts
        lines.append(f"{label:20}{''.join(cells)}{counts['n_pos']:>9,}{counts['n_neg']:>10,}")
    if auprc.mean.is_defined:
        lines.append(f"{'random scores':20}{'0.500':>7}  {'':17}{short(auprc.mean.prevalence):>7}")
    if classification.pixel_probe is not None:
        floor = classification.pixel_probe.mean
        lines.append(f"{'logistic, 16×16 px':20}{short(floor.value):>7}  {interval(floor.ci95):17}")
    return lines


def _fused_lines(results: Results) -> list[str]:
    """The means of the fused scores, and of their control."""
    fused = results.fused
    if fused is None:
        return []
    lines = []
    for name, scores in (
        (f"fused: {fused.kind}", fused.scores),
        ("control: image", fused.image_pair),
    ):
        if scores is not None:
            auroc, auprc = scores.classification.auroc.mean, scores.classification.auprc.mean
            cells = [f"{short(e.value):>7}  {interval(e.ci95):17}" for e in (auroc, auprc)]
            difference = _difference("network", scores.minus_network)
            lines.append(f"{name:20}{''.join(cells)}  {difference}")
    if fused.minus_image_pair is not None:
        lines.append(f"{'':20}{_difference('control', fused.minus_image_pair)}")
    return lines


def _difference(baseline: str, difference: RankingDifference) -> str:
    mean = difference.auroc.mean
    return f"AUROC − {baseline} {signed(mean.value)} {interval(mean.ci95, write=signed)}".rstrip()


def _row_labels(names: Sequence[str], table: Table) -> list[str]:
    return [*names, f"mean of {table.mean.counts['n_findings']}"]


def _finding_lines(localization: Localization, names: Sequence[str]) -> list[str]:
    by_name = localization.rules_and_floors()
    del by_name["random_map"]  # no room in the line; the table of means has it
    threshold_header = "".join(f"{'>' + threshold(t):>5}" for t in _FINDING_THRESHOLDS)
    lines = [
        "localization accuracy: share of truth boxes with an IoU above T",
        f"{'':19}{'boxes':>6}" + "".join(f"  {name:>15}" for name in by_name),
        f"{'':25}" + f"  {threshold_header}" * len(by_name),
    ]
    first = localization.iou[_FINDING_THRESHOLDS[0]]
    for row, label in enumerate(_row_labels(names, first)):
        cells = "".join(
            "  "
            + "".join(f"{short(way.iou[t].rows[row].value, 2):>5}" for t in _FINDING_THRESHOLDS)
            for way in by_name.values()
        )
        lines.append(f"{label:19}{first.rows[row].counts['n']:>6,}{cells}")
    return lines


def _mean_lines(localization: Localization) -> list[str]:
    thresholds = [threshold(t) for t in (*IOU_THRESHOLDS, *IOBB_THRESHOLDS)]
    lines = [
        f"{'mean over findings':20}{'IoU above':<42}  IoBB above",
        f"{'':20}" + _row_text(thresholds),
    ]
    for name, accuracy in localization.rules_and_floors().items():
        means = _means(accuracy)
        lines.append(f"{name:20}" + _row_text([short(mean.value) for mean in means]))
        if name == "single":
            for side, label in enumerate(("  95 % from", "  95 % to")):
                ends = [short(mean.ci95[side] if mean.ci95 else None) for mean in means]
                lines.append(f"{label:20}" + _row_text(ends))
    lines.append(f"false boxes per image and finding: {_value_and_interval(localization.afp.mean)}")
    lines.append(_pointing_line(localization))
    lines.append(_above_line(localization.above_prior_map.iou))
    return lines


def _means(accuracy: Accuracy) -> list[Estimate]:
    return [table.mean for table in (*accuracy.iou.values(), *accuracy.iobb.values())]


def _above_line(above: Mapping[float, Table]) -> str:
    means = {t: above[t].mean for t in _FINDING_THRESHOLDS}
    differences = (
        f"{threshold(t)} {signed(mean.value)} {interval(mean.ci95, write=signed)}".rstrip()
        for t, mean in means.items()
    )
    return f"minus prior_map, IoU >: {' · '.join(differences)}"


def _pointing_line(localization: Localization) -> str:
    random_map, prior_map = localization.random_map, localization.prior_map
    return (
        f"map's peak in the truth box (pointing game): {_value_and_interval(localization.pointing_game.mean)}"
        f" · random_map {short(random_map.pointing_game.mean.value)}"
        f" · prior_map {short(prior_map.pointing_game.mean.value)}"
    )


def _row_text(cells: Sequence[str]) -> str:
    texts = [f"{cell:>6}" for cell in cells]
    n_iou = len(IOU_THRESHOLDS)
    return "".join(texts[:n_iou]) + "  " + "".join(texts[n_iou:])


def _value_and_interval(estimate: Estimate) -> str:
    return f"{short(estimate.value)} {interval(estimate.ci95)}".rstrip()


def _notes(results: Results) -> list[str]:
    """Explanations that a reader needs before quoting a number."""
    classification, localization = results.classification, results.localization
    notes, scored = [], {"AUROC": classification.auroc}
    if _has_truth_boxes(localization):
        notes += _localization_notes(results)
        scored |= {
            "false boxes": localization.afp,
            "localization": localization.iou[IOU_THRESHOLDS[0]],
        }
    for label, table in scored.items():
        for name, estimate in zip(results.findings, table.findings, strict=True):
            if not estimate.is_defined:
                notes.append(f"– {label} of {name}: {estimate.reason}")
    skipped = results.evaluation.skipped
    if skipped.val or skipped.test or skipped.boxes:
        notes.append(
            f"left out, because an image could not be read: {skipped.val} validation images, "
            f"{skipped.test} test images, {skipped.boxes} truth boxes"
        )
    return notes


def _localization_notes(results: Results) -> list[str]:
    u, v = results.evaluation.grid
    return [
        "single: the component that holds the map's peak",
        "best_of: the component with the best overlap, chosen with the truth box, so the result is optimistic",
        f"random_map: smooth noise on the {u}×{v} grid, the same rule",
        "prior_box, prior_map: boxes of other patients, no image; a useful map is above prior_map",
        f"grid_ceiling: the best box made of whole cells of the {u}×{v} map",
        f"false boxes: positive predictions, no truth box or IoU ≤ {threshold(results.evaluation.afp_iou)}; "
        "labelled images without a box do not count",
    ]
