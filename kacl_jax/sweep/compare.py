"""Finished runs of a sweep → figures of each arm and paired differences, with intervals and p-values.

Pure numpy. An arm's figure is the mean over folds of the mean over seeds of a run's own figure: runs are averaged,
their scores are never pooled. A resample draws patients within each fold, the same for all runs of the fold, and a
fold's seeds; a difference of two arms is therefore paired by fold, seed and patient. Only folds and seeds that are
complete in both arms count. With one seed the intervals carry the patients' part of the uncertainty only; with two
or three they carry the seeds' part short, as any bootstrap of so few.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics.bootstrap import within_unit
from kacl_jax.runtime.errors import UserError
from kacl_jax.sweep.hyper import Arm, Point
from kacl_jax.sweep.measure import FLOORS, METRICS, Measured

Runs = Mapping[Point, Measured]
_Cells = dict[tuple[int, int], Measured]  # (fold, seed) → run
PRIOR_MAP = "prior_map"
_LOCALIZATION = tuple(metric for metric in METRICS if metric.startswith("iou_"))


@dataclass(frozen=True)
class Value:
    """A figure and its interval; `note` says why one of them is not there."""

    value: float
    ci95: tuple[float, float] | None
    note: str = ""


@dataclass(frozen=True)
class Difference:
    """An arm minus its baseline over the folds and seeds that both have."""

    baseline: str
    value: Value
    p: float | None  # two-sided; None: nothing in common, or undefined
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    p_holm: float | None = None  # over `planned` differences
    planned: int = 0  # how many the sweep has, run or not, of the family in this metric


@dataclass(frozen=True)
class Row:
    """One arm (or floor) and one metric, with at most one difference."""

    arm: str
    family: str  # weak: no box in training, none in choosing · box · floor: other patients' boxes, no image
    metric: str
    figure: Value
    sd: float | None  # over seeds, of the means over folds; None with one seed
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    n_findings: int  # the fewest of any fold
    box_share: float | None = None
    selection_boxes: int | None = None
    difference: Difference | None = None


def compare(arms: Sequence[Arm], runs: Runs, *, box_share: float = 0.0) -> list[Row]:
    """All rows, arms in their order, then the floors; arms without a finished run are left out.

    box_share: `data.box_share` of an arm that does not set it.

    Raises:
      UserError: runs that were not tested on the same thing.
    """
    check_comparable(runs)
    by_arm = {
        arm.name: {(p.fold, p.seed): run for p, run in runs.items() if p.arm.name == arm.name}
        for arm in arms
    }
    rows = [row for arm in arms if by_arm[arm.name] for row in _arm_rows(arm, by_arm)]
    return [*_with_holm(rows, arms, box_share), *_floor_rows(runs)]


def check_comparable(runs: Runs) -> None:
    """Refuse runs of other data, of another split, or tested on other images, labels or boxes.

    The split's hash covers the boxes that training may use: it is compared within a fold and a share of boxes, the
    tested images, labels and boxes themselves over all runs of a fold.
    """
    problems = []
    whole: dict[tuple[object, ...], tuple[Point, object]] = {}

    def agree(point: Point, key: tuple[object, ...], value: object, what: str) -> None:
        first, wanted = whole.setdefault((what, *key), (point, value))
        if value != wanted:
            shown = f": {wanted} and {value}" if len(f"{wanted}{value}") < 200 else ""
            problems.append(f"{first.name} and {point.name} have different {what}{shown}")

    for point, run in runs.items():
        for name, value in run.settings.items():
            agree(point, (), value, name)
        agree(point, (point.fold, run.box_share), run.split_hash, "split hashes")
        agree(point, (point.fold,), run.part, "test images, labels or truth boxes")
        agree(point, (point.arm.name,), run.box_share, "data.box_share")
    if problems:
        raise UserError(
            "These points cannot be compared:\n  "
            + "\n  ".join(problems)
            + "\nDelete the workdirs of those that are wrong and run the sweep again, or give it another --workdir."
        )


def rectangle(cells: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The most folds, and for them the most seeds, that are complete: (folds, seeds) of (fold, seed) pairs.

    Of several the one with the lowest seeds. ((), ()) of nothing.
    """
    seeds_of: dict[int, set[int]] = {}
    for fold, seed in cells:
        seeds_of.setdefault(fold, set()).add(seed)
    for size in range(len(seeds_of), 0, -1):
        common = [
            (tuple(sorted(set.intersection(*(seeds_of[fold] for fold in folds)))), folds)
            for folds in itertools.combinations(sorted(seeds_of), size)
        ]
        found = [(-len(seeds), seeds, folds) for seeds, folds in common if seeds]
        if found:
            _, seeds, folds = min(found)
            return folds, seeds
    return (), ()


def family(arm: Arm, box_share: float) -> str:
    """'weak' only if no box was seen in training and none in choosing how the map is read."""
    return "box" if box_share > 0 or arm.selection_boxes > 0 else "weak"


def holm(p_values: Sequence[float], planned: int) -> list[float]:
    """Step-down adjusted p-values (Holm 1979): max over smaller p of min(1, (planned − rank) · p).

    Those of `planned` that are not there yet count as larger: no p-value grows when they come.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (planned - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def two_sided(draws: np.ndarray) -> float | None:
    """Twice the smaller share of resamples [B] on one side of 0, the observed sample counted as one of them.

    None where more than `metrics.MAX_LEFT_OUT` of them are undefined, or all agree on a difference. Equal arms: 1.
    """
    usable = draws[np.isfinite(draws)]
    if not _enough(draws) or usable.min() == usable.max() != 0:
        return None
    tail = min(int((usable <= 0).sum()), int((usable >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(usable) + 1))


def interval(value: float, draws: np.ndarray) -> Value:
    """The 95 % percentile interval of resamples [B], by the rules of `metrics`."""
    usable = draws[np.isfinite(draws)]
    if not math.isfinite(value):
        return Value(math.nan, None, "no finding could be scored in some fold")
    if not _enough(draws):
        undefined = len(draws) - len(usable)
        return Value(value, None, f"undefined in {undefined} of {len(draws)} resamples")
    if usable.min() == usable.max():
        return Value(value, None, "the same in every resample")
    low, high = np.percentile(usable, [2.5, 97.5])
    return Value(value, (float(low), float(high)))


def _enough(draws: np.ndarray) -> bool:
    left_out = int((~np.isfinite(draws)).sum())
    return left_out < len(draws) and left_out <= metrics.MAX_LEFT_OUT * len(draws)


def _arm_rows(arm: Arm, by_arm: Mapping[str, _Cells]) -> list[Row]:
    cells = by_arm[arm.name]
    folds, seeds = rectangle(cells)
    share = next(iter(cells.values())).box_share
    rows = []
    for metric in METRICS:
        values, draws = _stacked(cells, folds, seeds, metric)
        figure = interval(float(values.mean()), _averaged(draws, folds))
        row = Row(
            arm=arm.name,
            family=family(arm, share),
            metric=metric,
            figure=replace(figure, ci95=within_unit(figure.ci95)),
            sd=float(values.mean(axis=0).std(ddof=1)) if len(seeds) > 1 else None,
            folds=folds,
            seeds=seeds,
            n_findings=min(cells[f, s].figures[metric].n_findings for f in folds for s in seeds),
            box_share=share,
            selection_boxes=arm.selection_boxes,
        )
        pairs = [_difference(cells, by_arm[other], other, metric) for other in arm.against]
        if metric in _LOCALIZATION:
            pairs.append(_difference(cells, _blind(cells), PRIOR_MAP, metric))
        rows += [replace(row, difference=pair) for pair in pairs] or [row]
    return rows


def _blind(cells: _Cells) -> _Cells:
    """The same runs with the figures of the box that looks at no image."""
    return {cell: replace(run, figures=run.prior_map) for cell, run in cells.items()}


def _difference(ours: _Cells, theirs: _Cells, baseline: str, metric: str) -> Difference:
    folds, seeds = rectangle(ours.keys() & theirs.keys())
    if not folds:
        return Difference(baseline, Value(math.nan, None, "no point in common yet"), None, (), ())
    mine, my_draws = _stacked(ours, folds, seeds, metric)
    others, other_draws = _stacked(theirs, folds, seeds, metric)
    draws = _averaged(my_draws - other_draws, folds)
    value = interval(float((mine - others).mean()), draws)
    return Difference(baseline, value, two_sided(draws), folds, seeds)


def _stacked(
    cells: _Cells, folds: Sequence[int], seeds: Sequence[int], metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Figures [folds seeds] and their resamples [folds seeds B]."""
    figures = [[cells[f, s].figures[metric] for s in seeds] for f in folds]
    return (
        np.array([[figure.value for figure in row] for row in figures]),
        np.array([[figure.draws for figure in row] for row in figures]),
    )


def _averaged(draws: np.ndarray, folds: Sequence[int]) -> np.ndarray:
    """Resamples [folds seeds B] → [B]: a fold's seeds drawn anew, then the mean over folds."""
    _, n_seeds, resamples = draws.shape
    weights = np.array([seed_weights(fold, n_seeds, resamples) for fold in folds])
    return np.einsum("fsb,fsb->b", draws, weights) / (len(folds) * n_seeds)


@lru_cache(maxsize=256)
def seed_weights(fold: int, n_seeds: int, resamples: int) -> np.ndarray:
    """float64 [seeds B]: how often each resample draws each seed's run of a fold."""
    rng = np.random.default_rng((fold, n_seeds, 1))
    weights = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=resamples)
    return weights.T.astype(np.float64)


_Question = tuple[str, bool, str, bool]  # family, exploratory, metric, against the floor


def _with_holm(rows: list[Row], arms: Sequence[Arm], box_share: float) -> list[Row]:
    """Over the differences between arms, and over those to the floor: two questions; exploratory arms apart."""
    exploratory = {arm.name: arm.exploratory for arm in arms}
    groups: dict[_Question, list[tuple[int, Difference, float]]] = {}
    for i, row in enumerate(rows):
        pair = row.difference
        if pair is not None and pair.p is not None:
            floor = pair.baseline == PRIOR_MAP
            question = row.family, exploratory[row.arm], row.metric, floor
            groups.setdefault(question, []).append((i, pair, pair.p))
    corrected = list(rows)
    for (family_, apart, _, floor), group in groups.items():
        planned = sum(
            1 if floor else len(arm.against)
            for arm in arms
            if arm.exploratory == apart
            and family(arm, arm.overrides.get("data.box_share", box_share)) == family_
        )
        for (i, pair, _), p in zip(group, holm([p for *_, p in group], planned), strict=True):
            corrected[i] = replace(rows[i], difference=replace(pair, p_holm=p, planned=planned))
    return corrected


def _floor_rows(runs: Runs) -> list[Row]:
    """What scores without an image, the mean over the folds of any finished run."""
    of_fold = {point.fold: run for point, run in runs.items()}
    folds = tuple(sorted(of_fold))
    rows = []
    for floor in FLOORS:
        for metric in METRICS if folds else ():
            found = [of_fold[fold].floors[floor].get(metric) for fold in folds]
            if metric in of_fold[folds[0]].floors[floor]:
                value = float(np.mean([math.nan if v is None else v for v in found]))
                n = min(of_fold[fold].figures[metric].n_findings for fold in folds)
                rows.append(Row(floor, "floor", metric, Value(value, None), None, folds, (), n))
    return rows
