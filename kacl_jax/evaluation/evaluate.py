"""One evaluation: from a network's outputs to all tables of results.

`Outputs` holds logits and class maps, `Records` the labels and truth boxes, and `Split` says which images and which
boxes are scored. No result depends on the order of the rows of `Outputs`. result_files.py writes the results.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from kacl_jax.data.records import Records
from kacl_jax.data.splits import Split
from kacl_jax.evaluation import localization, metrics, platt
from kacl_jax.evaluation.localization import PredictedBoxes, Reading
from kacl_jax.evaluation.metrics import Table
from kacl_jax.evaluation.operating_points import (
    OperatingPoint,
    choose_operating_points,
    operating_point_tables,
)
from kacl_jax.evaluation.outputs import LabelledScores, Outputs, labelled_scores
from kacl_jax.evaluation.platt import PlattScaling
from kacl_jax.evaluation.results import (
    CalibrationByFinding,
    Classification,
    Decision,
    Localization,
    RankingDifference,
)
from kacl_jax.evaluation.subgroups import Subgroup, subgroup_auroc


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All results of one evaluation; result_files.py writes them to files."""

    val: Outputs
    test: Outputs
    classification: Classification
    localization: Localization
    subgroups: dict[str, dict[str, Subgroup]]  # by attribute, then group
    predicted_boxes: PredictedBoxes
    # float64 [m], one per truth box of predicted_boxes: IoU of prior_map's box; NaN without a prior.
    prior_map_iou: np.ndarray
    scalings: tuple[PlattScaling, ...]  # by finding
    resamples: int


def evaluate_outputs(
    val: Outputs,
    test: Outputs,
    records: Records,
    split: Split,
    reading: Reading,
    *,
    resamples: int = metrics.RESAMPLES,
) -> Evaluation:
    """All tables. Thresholds and Platt scaling come from the validation part, all reported numbers from the test part.

    reading: how maps become boxes. `val` needs no class maps.
    """
    points = choose_operating_points(val, records, split)
    scalings = fit_scalings(val, records, split)
    evaluation = evaluate_test(test, records, split, points, scalings, reading, resamples=resamples)
    return dataclasses.replace(evaluation, val=val)


def evaluate_test(
    test: Outputs,
    records: Records,
    split: Split,
    points: tuple[OperatingPoint, ...],
    scalings: tuple[PlattScaling, ...],
    reading: Reading,
    *,
    resamples: int = metrics.RESAMPLES,
) -> Evaluation:
    """All tables, with given thresholds and Platt scaling, by finding. `Evaluation.val` has no images."""
    grid = test.class_maps().shape[2:]
    predicted_boxes = localization.predict_boxes(test, records, split, points, reading)
    truth = localization.scored_truth(predicted_boxes, records, resamples)
    priors = localization.score_priors(truth, records, split)
    return Evaluation(
        val=Outputs(np.zeros(0, np.int64), np.zeros((0, len(records.findings)), np.float32)),
        test=test,
        classification=classify(test, records, split, points, scalings, resamples),
        localization=localization.score_boxes(
            predicted_boxes,
            localization.predict_boxes_from_random_maps(predicted_boxes, records, grid, reading),
            truth,
            priors,
            grid=grid,
            afp=localization.false_boxes_per_image(
                predicted_boxes, test, records, split, points, resamples=resamples
            ),
        ),
        subgroups=subgroup_auroc(test, records, split.test, resamples=resamples),
        predicted_boxes=predicted_boxes,
        prior_map_iou=priors.map.iou,
        scalings=scalings,
        resamples=resamples,
    )


def fit_scalings(val: Outputs, records: Records, split: Split) -> tuple[PlattScaling, ...]:
    """Platt scaling of each finding, from the validation part."""
    rows = val.rows(split.val)
    logits, labels = val.logits[rows], records.labels[val.image_id[rows]]
    known = labels >= 0
    return tuple(platt.fit(logits[rows, c], labels[rows, c]) for c, rows in enumerate(known.T))


def classify(
    test: Outputs,
    records: Records,
    split: Split,
    points: tuple[OperatingPoint, ...],
    scalings: tuple[PlattScaling, ...],
    resamples: int,
) -> Classification:
    """How the scores of the test part rank, decide and are calibrated, with given thresholds and Platt scaling."""
    scores = labelled_scores(test, records, split.test)
    scores_labels_patients = scores.probability, scores.labels, scores.patients
    auroc, auprc = metrics.ranking_tables(*scores_labels_patients, resamples=resamples)
    calibrated = platt.calibrate(test.logits[test.rows(split.test)], scalings)
    tables = operating_point_tables(test, records, split, points, resamples=resamples)
    return Classification(
        auroc=auroc,
        auprc=auprc,
        operating_point={
            name: Decision(
                value=point.threshold,
                youden_j=point.youden_j,
                reason=point.reason,
                **{metric: table.findings[c] for metric, table in tables.items()},
            )
            for c, (name, point) in enumerate(zip(records.findings, points, strict=True))
        },
        calibration=_measure_calibration(scores, scores.probability, records, resamples),
        calibrated=_measure_calibration(scores, calibrated, records, resamples),
    )


def compare(
    test: Outputs, baseline: Outputs, records: Records, split: Split, resamples: int
) -> RankingDifference:
    """How much better `test` ranks the test part than `baseline`, which has the same images."""
    scores = labelled_scores(test, records, split.test)
    others = labelled_scores(baseline, records, split.test)
    return RankingDifference(
        *metrics.ranking_differences(
            scores.probability,
            others.probability,
            scores.labels,
            scores.patients,
            resamples=resamples,
        )
    )


def _measure_calibration(
    scores: LabelledScores, probability: np.ndarray, records: Records, resamples: int
) -> CalibrationByFinding:
    """probability: float64 [n c], of the images of `scores`."""
    calibration = metrics.measure_calibration(
        probability, scores.labels, scores.patients, resamples=resamples
    )
    return CalibrationByFinding(
        brier=calibration.brier,
        ece=calibration.ece,
        reliability=dict(zip(records.findings, calibration.reliability, strict=True)),
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
