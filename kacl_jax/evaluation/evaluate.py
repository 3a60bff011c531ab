"""One evaluation: from a network's outputs to all tables of results.

`Outputs` holds logits and class maps, `Records` the labels and truth boxes, and `Split` says which images and which
boxes are scored. No result depends on the order of the rows of `Outputs`. result_files.py writes the results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kacl_jax.data.nih import Records
from kacl_jax.data.splits import Split
from kacl_jax.evaluation import localization, metrics
from kacl_jax.evaluation.localization import PredictedBoxes, Tables
from kacl_jax.evaluation.metrics import Calibration, Table
from kacl_jax.evaluation.operating_points import (
    OperatingPoint,
    choose_operating_points,
    operating_point_tables,
)
from kacl_jax.evaluation.outputs import Outputs, labelled_scores
from kacl_jax.evaluation.subgroups import Subgroup, subgroup_auroc


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All results of one evaluation; result_files.py writes them to files."""

    val: Outputs
    test: Outputs
    operating_points: tuple[OperatingPoint, ...]
    operating_point_tables: dict[str, Table]  # by name, as in metrics.DECISION_METRICS
    auroc: Table
    auprc: Table
    calibration: Calibration
    subgroups: dict[str, dict[str, Subgroup]]  # by attribute, then group
    predicted_boxes: PredictedBoxes
    accuracy: dict[str, Tables]  # by rule
    floor_accuracy: dict[str, Tables]  # by floor
    above_prior_map: Tables  # accuracy of rule single minus that of prior_map, paired by truth box
    # float64 [k], one per pair of predicted_boxes; NaN without a prior or a scored box.
    prior_map_iou: np.ndarray
    pointing: dict[str, Table]  # by 'single' | 'prior_map' | 'random_map'
    afp: Table
    resamples: int


def evaluate_outputs(
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
    """All tables. Thresholds come from the validation part, all reported numbers from the test part.

    size, relu, threshold: as in `regions.threshold_map`. `val` needs no class maps.
    """
    operating_points = choose_operating_points(val, records, split)
    test_scores = labelled_scores(test, records, split.test)
    scores_labels_patients = test_scores.probability, test_scores.labels, test_scores.patients
    auroc, auprc = metrics.ranking_tables(*scores_labels_patients, resamples=resamples)
    grid = test.class_maps().shape[2:]
    predicted_boxes = localization.predict_boxes(
        test, records, split, operating_points, size=size, relu=relu, threshold=threshold
    )
    random_boxes = localization.predict_boxes_from_random_maps(
        predicted_boxes, records, grid, size=size, relu=relu, threshold=threshold
    )
    prior_overlaps = localization.measure_prior_overlaps(predicted_boxes, records, split)
    accuracy = localization.localization_accuracy(predicted_boxes, records, resamples=resamples)
    random_accuracy = localization.localization_accuracy(random_boxes, records, resamples=resamples)
    return Evaluation(
        val=val,
        test=test,
        operating_points=operating_points,
        operating_point_tables=operating_point_tables(
            test, records, split, operating_points, resamples=resamples
        ),
        auroc=auroc,
        auprc=auprc,
        calibration=metrics.measure_calibration(*scores_labels_patients, resamples=resamples),
        subgroups=subgroup_auroc(test, records, split.test, resamples=resamples),
        predicted_boxes=predicted_boxes,
        accuracy=accuracy,
        floor_accuracy={
            "random_map": random_accuracy["single"],
            **localization.floor_accuracy(
                predicted_boxes, records, prior_overlaps, grid, resamples=resamples
            ),
        },
        above_prior_map=localization.accuracy_above_prior_map(
            predicted_boxes, records, prior_overlaps, resamples=resamples
        ),
        prior_map_iou=prior_overlaps["prior_map"]["iou"],
        pointing={
            "single": localization.pointing_game(predicted_boxes, records, resamples=resamples),
            "prior_map": localization.prior_pointing_game(
                predicted_boxes, records, split, resamples=resamples
            ),
            "random_map": localization.pointing_game(random_boxes, records, resamples=resamples),
        },
        afp=localization.false_boxes_per_image(
            predicted_boxes, test, records, split, operating_points, resamples=resamples
        ),
        resamples=resamples,
    )


def classification_auroc(
    outputs: Outputs,
    records: Records,
    ids: np.ndarray,
    *,
    resamples: int = metrics.RESAMPLES,
) -> Table:
    """AUROC per finding and mean over the images `ids` (split.test, or split.val in training)."""
    scores = labelled_scores(outputs, records, ids)
    return metrics.auroc_table(
        scores.probability,
        scores.labels,
        scores.patients,
        resamples=resamples,
    )
