"""Finished runs of a sweep → metrics of each arm and paired differences, with intervals and p-values.

Pure numpy. An arm's value is the mean over folds of the mean over seeds of its runs' values: values are averaged,
scores are never pooled. A resample draws the patients of each fold, the same patients for all runs of the fold. So a
difference of two arms is paired by fold, seed and patient. Only folds and seeds that are complete in both arms count.
`uncertainty.estimate` makes the intervals. With one seed it borrows the variance between runs from the arms of the
family that have three or more.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kacl_jax.evaluation.metrics.bootstrap import clip_interval_to_unit
from kacl_jax.runtime.errors import UserError
from kacl_jax.sweep.hyper import Arm, Point
from kacl_jax.sweep.measure import FLOORS, METRICS, RunMeasurements
from kacl_jax.sweep.uncertainty import Estimate, RunVariance, estimate, pool, run_variance

Runs = Mapping[Point, RunMeasurements]
Cells = dict[tuple[int, int], RunMeasurements]  # (fold, seed) → run
PRIOR_MAP = "prior_map"
MIN_SEEDS_TO_LEND = 3  # of an arm whose variance between runs serves arms with one seed
_LOCALIZATION_METRICS = tuple(metric for metric in METRICS if metric.startswith("iou_"))


@dataclass(frozen=True)
class Difference:
    """An arm minus its baseline over the folds and seeds that both have."""

    baseline: str
    estimate: Estimate
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    p_holm: float | None = None  # corrected for `planned` differences
    planned: int = 0  # differences of the family in this metric that the sweep plans, run or not


@dataclass(frozen=True)
class Row:
    """One arm (or floor) and one metric, with at most one difference."""

    arm: str
    # weak, box (see `arm_family`), fused (see `fused`), or floor: other patients' boxes, no image
    family: str
    metric: str
    estimate: Estimate
    sd: float | None  # over seeds, of the means over folds; None with one seed
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    n_findings: int  # in the fold with the fewest
    box_share: float | None = None
    selection_boxes: int | None = None
    difference: Difference | None = None


def compare_arms(arms: Sequence[Arm], runs: Runs, *, box_share: float = 0.0) -> list[Row]:
    """All rows, arms in their order, then the floors; arms without a finished run are left out.

    box_share: `data.box_share` of an arm that does not set it.

    Raises:
      UserError: runs that were not tested on the same data.
    """
    check_comparable(runs)
    by_arm = {
        arm.name: {(p.fold, p.seed): run for p, run in runs.items() if p.arm.name == arm.name}
        for arm in arms
    }
    lent = _lent_variances(arms, by_arm)
    rows = [row for arm in arms if by_arm[arm.name] for row in _arm_rows(arm, by_arm, lent)]
    return [*_add_holm_p_values(rows, arms, box_share), *_floor_rows(runs)]


def check_comparable(runs: Runs) -> None:
    """Refuse runs on other data, of another split, or tested on other images, labels or boxes.

    The split's hash covers the boxes that training may use, so it must be equal within a fold and a share of boxes.
    The test images, labels and boxes themselves must be equal in all runs of a fold.
    """
    problems = []
    first_values: dict[tuple[object, ...], tuple[Point, object]] = {}

    def require_equal(point: Point, key: tuple[object, ...], value: object, what: str) -> None:
        first, expected = first_values.setdefault((what, *key), (point, value))
        if value != expected:
            values = f": {expected} and {value}" if len(f"{expected}{value}") < 200 else ""
            problems.append(f"{first.name} and {point.name} have different {what}{values}")

    for point, run in runs.items():
        for name, value in run.settings.items():
            require_equal(point, (), value, name)
        require_equal(point, (point.fold, run.box_share), run.split_hash, "split hashes")
        require_equal(point, (point.fold,), run.test_set, "test images, labels or truth boxes")
        require_equal(point, (point.arm.name,), run.box_share, "data.box_share")
    if problems:
        raise UserError(
            "These points cannot be compared:\n  "
            + "\n  ".join(problems)
            + "\nDelete the workdirs of the wrong points and run the sweep again, or give another --workdir."
        )


def complete_folds_and_seeds(
    cells: Iterable[tuple[int, int]],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The most folds, and for them the most seeds, of which every (fold, seed) pair exists: (folds, seeds).

    Of several solutions the one with the lowest seeds; ((), ()) without any pair.
    """
    seeds_of: dict[int, set[int]] = {}
    for fold, seed in cells:
        seeds_of.setdefault(fold, set()).add(seed)
    for size in range(len(seeds_of), 0, -1):
        common = [
            (tuple(sorted(set.intersection(*(seeds_of[fold] for fold in folds)))), folds)
            for folds in itertools.combinations(sorted(seeds_of), size)
        ]
        candidates = [(-len(seeds), seeds, folds) for seeds, folds in common if seeds]
        if candidates:
            _, seeds, folds = min(candidates)
            return folds, seeds
    return (), ()


def arm_family(arm: Arm, box_share: float) -> str:
    """'weak' if training saw no box and the choice of how to read the map saw none; else 'box'."""
    return "box" if box_share > 0 or arm.selection_boxes > 0 else "weak"


def holm(p_values: Sequence[float], planned: int) -> list[float]:
    """Step-down adjusted p-values (Holm 1979): max over smaller p of min(1, (planned − rank) · p).

    p-values that are planned but not there yet count as larger, so no adjusted p-value grows when they come.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (planned - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


_Lent = Mapping[tuple[str, str], RunVariance | None]  # by family and metric


def _lent_variances(arms: Sequence[Arm], by_arm: Mapping[str, Cells]) -> _Lent:
    """The variance between runs of one arm: the mean over the arms of a family that have enough seeds."""
    variances: dict[tuple[str, str], list[RunVariance | None]] = defaultdict(list)
    for arm in arms:
        cells = by_arm[arm.name]
        folds, seeds = complete_folds_and_seeds(cells)
        share = next(iter(cells.values())).box_share if cells else 0.0
        for metric in METRICS if len(seeds) >= MIN_SEEDS_TO_LEND else ():
            of_arm = run_variance(*stack_values(cells, folds, seeds, metric))
            variances[arm_family(arm, share), metric].append(of_arm)
    return {key: pool(lenders) for key, lenders in variances.items()}


def _arm_rows(arm: Arm, by_arm: Mapping[str, Cells], lent: _Lent) -> list[Row]:
    cells = by_arm[arm.name]
    folds, seeds = complete_folds_and_seeds(cells)
    share = next(iter(cells.values())).box_share
    family = arm_family(arm, share)
    rows = []
    for metric in METRICS:
        values, draws = stack_values(cells, folds, seeds, metric)
        of_arm = lent.get((family, metric))
        level = estimate(values, draws, of_arm)
        row = Row(
            arm=arm.name,
            family=family,
            metric=metric,
            estimate=replace(level, ci95=clip_interval_to_unit(level.ci95)),
            sd=float(values.mean(axis=0).std(ddof=1)) if len(seeds) > 1 else None,
            folds=folds,
            seeds=seeds,
            n_findings=min(
                cells[f, s].metric_values[metric].n_findings for f in folds for s in seeds
            ),
            box_share=share,
            selection_boxes=arm.selection_boxes,
        )
        of_pair = of_arm.times(2) if of_arm else None
        pairs = [
            _compare_pair(cells, by_arm[other], other, metric, of_pair) for other in arm.against
        ]
        if metric in _LOCALIZATION_METRICS:  # prior_map is the same for every seed
            floor_runs = _prior_map_runs(cells)
            pairs.append(_compare_pair(cells, floor_runs, PRIOR_MAP, metric, of_arm))
        rows += [replace(row, difference=pair) for pair in pairs] or [row]
    return rows


def _prior_map_runs(cells: Cells) -> Cells:
    """The same runs with the values of prior_map's box, which looks at no image."""
    return {cell: replace(run, metric_values=run.prior_map) for cell, run in cells.items()}


def _compare_pair(
    arm_runs: Cells, baseline_runs: Cells, baseline: str, metric: str, lent: RunVariance | None
) -> Difference:
    folds, seeds = complete_folds_and_seeds(arm_runs.keys() & baseline_runs.keys())
    if not folds:
        return Difference(baseline, Estimate(math.nan, None, "no point in common yet"), (), ())
    arm_values, arm_draws = stack_values(arm_runs, folds, seeds, metric)
    baseline_values, baseline_draws = stack_values(baseline_runs, folds, seeds, metric)
    difference = estimate(arm_values - baseline_values, arm_draws - baseline_draws, lent)
    return Difference(baseline, difference, folds, seeds)


def stack_values(
    cells: Cells, folds: Sequence[int], seeds: Sequence[int], metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Values [folds seeds] and their resamples [folds seeds B]."""
    table = [[cells[f, s].metric_values[metric] for s in seeds] for f in folds]
    return (
        np.array([[cell.value for cell in row] for row in table]),
        np.array([[cell.draws for cell in row] for row in table]),
    )


_HolmGroup = tuple[str, bool, str, bool]  # family, exploratory, metric, against the floor


def _add_holm_p_values(rows: list[Row], arms: Sequence[Arm], box_share: float) -> list[Row]:
    """Holm's correction within each group of differences: those between arms and those to the floor are two groups of
    each family and metric, and exploratory arms have groups of their own.
    """
    exploratory = {arm.name: arm.exploratory for arm in arms}
    differences_of_group: dict[_HolmGroup, list[tuple[int, Difference, float]]] = {}
    for i, row in enumerate(rows):
        pair = row.difference
        if pair is not None and pair.estimate.p is not None:
            to_floor = pair.baseline == PRIOR_MAP
            group = row.family, exploratory[row.arm], row.metric, to_floor
            differences_of_group.setdefault(group, []).append((i, pair, pair.estimate.p))
    corrected = list(rows)
    for (family, is_exploratory, _, to_floor), members in differences_of_group.items():
        planned = sum(
            1 if to_floor else len(arm.against)
            for arm in arms
            if arm.exploratory == is_exploratory
            and arm_family(arm, arm.overrides.get("data.box_share", box_share)) == family
        )
        p_values = [p for *_, p in members]
        for (i, pair, _), p in zip(members, holm(p_values, planned), strict=True):
            corrected[i] = replace(rows[i], difference=replace(pair, p_holm=p, planned=planned))
    return corrected


def _floor_rows(runs: Runs) -> list[Row]:
    """The floors, which look at no image: means over all folds that have a finished run."""
    of_fold = {point.fold: run for point, run in runs.items()}
    folds = tuple(sorted(of_fold))
    rows = []
    for floor in FLOORS:
        for metric in METRICS if folds else ():
            if metric in of_fold[folds[0]].floors[floor]:
                mean = float(np.mean([of_fold[fold].floors[floor][metric] for fold in folds]))
                n = min(of_fold[fold].metric_values[metric].n_findings for fold in folds)
                rows.append(Row(floor, "floor", metric, Estimate(mean, None), None, folds, (), n))
    return rows
