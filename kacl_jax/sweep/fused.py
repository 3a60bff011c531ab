"""What fusion adds to the arms of a sweep: rows for the control and the fusion, beside the arms' own rows.

An arm's values and differences are means over its folds and seeds, as in `compare`. Where an arm has one seed, each
number borrows its variance between runs from the arms with three or more. The differences have no p-value, because no
sweep plans how many there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kacl_jax.evaluation.metrics.bootstrap import clip_interval_to_unit
from kacl_jax.sweep.compare import (
    MIN_SEEDS_TO_LEND,
    Cells,
    Difference,
    Row,
    Runs,
    complete_folds_and_seeds,
    stack_values,
)
from kacl_jax.sweep.hyper import Arm
from kacl_jax.sweep.uncertainty import estimate, pool, run_variance

FAMILY = "fused"
METRICS = ("auroc", "auprc")
# (what was added to the network's scores, what that is compared with), as config.fusion.kind; "": the network itself.
_PAIRS = (("image", ""), ("radiomics", ""), ("radiomics", "image"), ("both", ""), ("both", "image"))


@dataclass(frozen=True, eq=False)
class _Compared:
    """The runs of an arm that have both. values: [folds seeds]. draws: their resamples [folds seeds B]."""

    arm: Arm
    cells: Cells
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    values: np.ndarray
    draws: np.ndarray
    differences: np.ndarray
    difference_draws: np.ndarray


def fused_rows(arms: Sequence[Arm], runs: Runs) -> list[Row]:
    """Arms in their order; those without a fused run are left out."""
    of_arm: dict[Arm, dict[str, Cells]] = {}
    for arm in arms:
        cells = {(p.fold, p.seed): run for p, run in runs.items() if p.arm.name == arm.name}
        of_arm[arm] = {"": cells}
        for kind in dict.fromkeys(kind for kind, _ in _PAIRS):
            of_arm[arm][kind] = {
                cell: replace(run, metric_values=run.fused[kind])
                for cell, run in cells.items()
                if kind in run.fused
            }
    rows: dict[Arm, list[Row]] = {arm: [] for arm in arms}
    for (kind, baseline), metric in itertools.product(_PAIRS, METRICS):
        compared = [
            found
            for arm, cells in of_arm.items()
            if (found := _compared(arm, cells[kind], cells[baseline], metric))
        ]
        lenders = [one for one in compared if len(one.seeds) >= MIN_SEEDS_TO_LEND]
        lent = pool(run_variance(one.values, one.draws) for one in lenders)
        lent_pair = pool(run_variance(one.differences, one.difference_draws) for one in lenders)
        for one in compared:
            name = one.arm.name
            level = estimate(one.values, one.draws, lent)
            difference = estimate(one.differences, one.difference_draws, lent_pair)
            rows[one.arm].append(
                Row(
                    arm=f"{name} with {kind}",
                    family=FAMILY,
                    metric=metric,
                    estimate=replace(level, ci95=clip_interval_to_unit(level.ci95)),
                    sd=float(one.values.mean(axis=0).std(ddof=1)) if len(one.seeds) > 1 else None,
                    folds=one.folds,
                    seeds=one.seeds,
                    n_findings=min(
                        run.metric_values[metric].n_findings for run in one.cells.values()
                    ),
                    box_share=next(iter(one.cells.values())).box_share,
                    selection_boxes=one.arm.selection_boxes,
                    difference=Difference(
                        baseline=f"{name} with {baseline}" if baseline else name,
                        estimate=replace(difference, p=None),
                        folds=one.folds,
                        seeds=one.seeds,
                    ),
                )
            )
    return [row for of_one in rows.values() for row in of_one]


def _compared(arm: Arm, fused: Cells, baseline: Cells, metric: str) -> _Compared | None:
    folds, seeds = complete_folds_and_seeds(fused.keys() & baseline.keys())
    if not folds:
        return None
    values, draws = stack_values(fused, folds, seeds, metric)
    baseline_values, baseline_draws = stack_values(baseline, folds, seeds, metric)
    return _Compared(
        arm,
        {(fold, seed): fused[fold, seed] for fold in folds for seed in seeds},
        folds,
        seeds,
        values,
        draws,
        values - baseline_values,
        draws - baseline_draws,
    )
