"""From a network's outputs to everything that one evaluation finds.

What is judged here was computed elsewhere: `Outputs` holds logits and class maps, `Records` the
labels and truth boxes, `Split` says which image and which box may be scored. Nothing depends on the
order of the rows of `Outputs`. results.py writes what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kacl_jax.data.nih import Records
from kacl_jax.data.splits import Split
from kacl_jax.evaluation import localization, metrics
from kacl_jax.evaluation.localization import Located, Tables
from kacl_jax.evaluation.metrics import Calibration, Table
from kacl_jax.evaluation.operating_points import OperatingPoint, decisions, operating_points
from kacl_jax.evaluation.outputs import Outputs, part
from kacl_jax.evaluation.subgroups import Subgroup, subgroups


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything that one evaluation found; results.py turns it into files."""

    val: Outputs
    test: Outputs
    points: tuple[OperatingPoint, ...]
    decisions: dict[str, Table]  # by metrics.DECISIONS
    auroc: Table
    auprc: Table
    calibration: Calibration
    subgroups: dict[str, dict[str, Subgroup]]  # by attribute, then group
    located: Located
    accuracy: dict[str, Tables]  # by rule
    floors: dict[str, Tables]  # by floor
    above_prior_map: Tables  # rule single less prior_map, paired
    prior_map_iou: np.ndarray  # float64 [k], of each located pair; NaN where none is due
    pointing: dict[str, Table]  # by 'single' | 'prior_map' | 'random_map'
    afp: Table
    resamples: int


def evaluate(
    val: Outputs,
    test: Outputs,
    records: Records,
    split: Split,
    *,
    size: int,
    relu: bool,
    threshold: float,
    resamples: int = metrics.RESAMPLES,
) -> Evaluation:
    """All tables. Thresholds come from the validation part, every figure from the test part.

    size, relu, threshold as in `regions.threshold_map`. `val` needs no maps.
    """
    points = operating_points(val, records, split)
    whole = part(test, records, split.test)
    judged = whole.probability, whole.labels, whole.patients
    auroc, auprc = metrics.ranking_tables(*judged, resamples=resamples)
    grid = test.class_maps().shape[2:]
    located = localization.locate(
        test, records, split, points, size=size, relu=relu, threshold=threshold
    )
    blind = localization.locate_at_random(
        located, records, grid, size=size, relu=relu, threshold=threshold
    )
    prior = localization.prior_overlaps(located, records, split)
    accuracy = localization.localization(located, records, resamples=resamples)
    by_chance = localization.localization(blind, records, resamples=resamples)
    return Evaluation(
        val=val,
        test=test,
        points=points,
        decisions=decisions(test, records, split, points, resamples=resamples),
        auroc=auroc,
        auprc=auprc,
        calibration=metrics.calibration(*judged, resamples=resamples),
        subgroups=subgroups(test, records, split.test, resamples=resamples),
        located=located,
        accuracy=accuracy,
        floors={
            "random_map": by_chance["single"],
            **localization.floors(located, records, prior, grid, resamples=resamples),
        },
        above_prior_map=localization.above_prior_map(located, records, prior, resamples=resamples),
        prior_map_iou=prior["prior_map"]["iou"],
        pointing={
            "single": localization.pointing_game(located, records, resamples=resamples),
            "prior_map": localization.prior_pointing_game(
                located, records, split, resamples=resamples
            ),
            "random_map": localization.pointing_game(blind, records, resamples=resamples),
        },
        afp=localization.false_boxes(located, test, records, split, points, resamples=resamples),
        resamples=resamples,
    )


def classification(
    outputs: Outputs,
    records: Records,
    ids: np.ndarray,
    *,
    resamples: int = metrics.RESAMPLES,
) -> Table:
    """AUROC per finding and mean over the images `ids` (split.test, or split.val in training)."""
    judged = part(outputs, records, ids)
    return metrics.auroc_table(
        judged.probability,
        judged.labels,
        judged.patients,
        resamples=resamples,
    )
