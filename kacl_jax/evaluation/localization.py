"""Predicted boxes and points from class maps, and their agreement with the truth boxes: one function per table.

No result depends on the order of the rows of `Outputs`.

Axes: c findings · u v map cells · k pairs of an image and a finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from kacl_jax.data.nih import Records
from kacl_jax.data.splits import Split
from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics import IOBB_THRESHOLDS, IOU_THRESHOLDS, Table
from kacl_jax.evaluation.operating_points import OperatingPoint, is_predicted_positive
from kacl_jax.evaluation.outputs import Outputs, probabilities
from kacl_jax.step.regions import threshold_map

AFP_IOU = 0.1  # a predicted box is false unless its IoU with a truth box is greater than this
FLOORS = ("random_map", "prior_box", "prior_map", "grid_ceiling")
RULES = ("single", "best_of")
Overlaps = dict[
    str, dict[str, np.ndarray]
]  # by floor, then measure: float64 [k], one per pair of PredictedBoxes
OVERLAP_THRESHOLDS: dict[str, tuple[float, ...]] = {"iou": IOU_THRESHOLDS, "iobb": IOBB_THRESHOLDS}

Tables = dict[str, tuple[Table, ...]]  # measure → one table per threshold of OVERLAP_THRESHOLDS


@dataclass(frozen=True, eq=False)
class PredictedBoxes:
    """Predicted boxes of k (image, finding) pairs of the test part, by image id, then finding.

    The pairs are those with a scored truth box and those predicted positive. Overlaps and peak are
    NaN where there is no scored truth box. `best_*` belong to the rule best_of: the largest overlap
    of any component with the truth box, which needs to know the truth.
    """

    image_id: np.ndarray  # int64 [k]
    finding: np.ndarray  # int64 [k]
    score: np.ndarray  # float64 [k] probability
    predicted: np.ndarray  # bool [k]
    scored: np.ndarray  # bool [k]: has a truth box that the split scores
    box: np.ndarray  # float64 [k 4]: rule single
    # bool [k]: no pixel is above the threshold; the box is the image without a rim of 1 px.
    fallback: np.ndarray
    iou: np.ndarray  # float64 [k]
    iobb: np.ndarray
    best_iou: np.ndarray
    best_iobb: np.ndarray
    peak: np.ndarray  # float64 [k 2] (x, y), fractions; NaN also where the map has no peak


def predict_boxes(
    outputs: Outputs,
    records: Records,
    split: Split,
    operating_points: tuple[OperatingPoint, ...],
    *,
    size: int,
    relu: bool,
    threshold: float,
) -> PredictedBoxes:
    """Class map → box for every scored truth box and every predicted-positive pair of the test part.

    size, relu, threshold: as in `regions.threshold_map`. Boxes are computed in float64.
    """
    maps, rows = outputs.class_maps(), outputs.rows(split.test)
    probability = probabilities(outputs, rows, records)
    predicted = is_predicted_positive(probability, operating_points)
    scored = split.scored[outputs.image_id[rows]]
    pairs = np.argwhere(predicted | scored)
    output_row, finding = rows[pairs[:, 0]], pairs[:, 1]
    kept = tuple(pairs.T)
    return _boxes_from_maps(
        (maps[index] for index in zip(output_row, finding, strict=True)),
        records,
        image_id=outputs.image_id[output_row].astype(np.int64),
        finding=finding,
        score=probability[kept],
        predicted=predicted[kept],
        scored=scored[kept],
        size=size,
        relu=relu,
        threshold=threshold,
    )


def predict_boxes_from_random_maps(
    predicted_boxes: PredictedBoxes,
    records: Records,
    grid: tuple[int, int],
    *,
    size: int,
    relu: bool,
    threshold: float,
) -> PredictedBoxes:
    """The boxes that the same rule predicts from `metrics.random_map`s on the same u × v `grid`.

    Only for the pairs with a scored truth box.
    """
    scored = predicted_boxes.scored
    image_id, finding = predicted_boxes.image_id[scored], predicted_boxes.finding[scored]
    pairs = zip(image_id.tolist(), finding.tolist(), strict=True)
    return _boxes_from_maps(
        (metrics.random_map(*grid, (0, *pair)) for pair in pairs),
        records,
        image_id=image_id,
        finding=finding,
        score=predicted_boxes.score[scored],
        predicted=predicted_boxes.predicted[scored],
        scored=scored[scored],
        size=size,
        relu=relu,
        threshold=threshold,
    )


def _boxes_from_maps(
    maps: Iterable[np.ndarray],
    records: Records,
    *,
    image_id: np.ndarray,
    finding: np.ndarray,
    score: np.ndarray,
    predicted: np.ndarray,
    scored: np.ndarray,
    size: int,
    relu: bool,
    threshold: float,
) -> PredictedBoxes:
    """maps: one [u v] for each of the k pairs."""
    k = len(image_id)
    box, fallback, peak = np.zeros((k, 4)), np.zeros(k, bool), np.full((k, 2), np.nan)
    overlaps = {name: np.full(k, np.nan) for name in ("iou", "iobb", "best_iou", "best_iobb")}
    for i, class_map in enumerate(maps):
        components = threshold_map(class_map, size=size, relu=relu, threshold=threshold)
        component_boxes = _component_boxes(components.labels)
        box[i], fallback[i] = component_boxes[components.peak - 1], components.fallback
        if scored[i]:
            peak[i] = _peak(class_map, relu)
            truth = records.boxes[image_id[i], finding[i]]
            for name, overlap_of in (("iou", metrics.iou), ("iobb", metrics.iobb)):
                values = overlap_of(component_boxes, truth)
                overlaps[name][i], overlaps[f"best_{name}"][i] = (
                    values[components.peak - 1],
                    values.max(),
                )
    return PredictedBoxes(
        image_id, finding, score, predicted, scored, box, fallback, **overlaps, peak=peak
    )


def _peak(class_map: np.ndarray, relu: bool) -> tuple[float, float]:
    """The centre (x, y) of the first highest cell; NaN where the map is flat or not finite."""
    heat = np.maximum(class_map, 0) if relu else class_map
    if not np.isfinite(heat).all() or heat.min() == heat.max():
        return np.nan, np.nan
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    return (float(column) + 0.5) / heat.shape[1], (float(row) + 0.5) / heat.shape[0]


def _component_boxes(labels: np.ndarray) -> np.ndarray:
    """Bounding boxes of the components, numbered from 1 in labels int32 [h w]: float64 [components 4], fractions."""
    h, w = labels.shape
    edges = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    return np.array(edges, np.float64) / [w, h, w, h]


def localization_accuracy(
    predicted_boxes: PredictedBoxes, records: Records, *, resamples: int = metrics.RESAMPLES
) -> dict[str, Tables]:
    """Localization accuracy by rule: {'single' | 'best_of': {'iou' | 'iobb': tables}}."""
    overlaps = {
        "single": {"iou": predicted_boxes.iou, "iobb": predicted_boxes.iobb},
        "best_of": {"iou": predicted_boxes.best_iou, "iobb": predicted_boxes.best_iobb},
    }
    return _accuracy_tables(predicted_boxes, records, overlaps, resamples)


def floor_accuracy(
    predicted_boxes: PredictedBoxes,
    records: Records,
    prior_overlaps: Overlaps,
    grid: tuple[int, int],
    *,
    resamples: int = metrics.RESAMPLES,
) -> dict[str, Tables]:
    """Accuracy of boxes made without any image, and the best accuracy that the u × v `grid` of the map allows.

    prior_overlaps: from `measure_prior_overlaps`. Truth boxes and denominators are those of `localization_accuracy`.
    """
    overlaps = dict(prior_overlaps)
    scored = predicted_boxes.scored
    truth = records.boxes[predicted_boxes.image_id[scored], predicted_boxes.finding[scored]].astype(
        np.float64
    )
    ceilings = {"iou": metrics.grid_ceiling, "iobb": metrics.grid_ceiling_iobb}
    overlaps["grid_ceiling"] = {m: np.full(len(scored), np.nan) for m in OVERLAP_THRESHOLDS}
    for measure, ceiling_of in ceilings.items():
        overlaps["grid_ceiling"][measure][scored] = ceiling_of(truth, *grid)
    return _accuracy_tables(predicted_boxes, records, overlaps, resamples)


def accuracy_above_prior_map(
    predicted_boxes: PredictedBoxes,
    records: Records,
    prior_overlaps: Overlaps,
    *,
    resamples: int = metrics.RESAMPLES,
) -> Tables:
    """Localization accuracy of rule single minus that of prior_map, paired by truth box."""
    prior, scored = prior_overlaps["prior_map"], predicted_boxes.scored
    overlaps = {"iou": predicted_boxes.iou, "iobb": predicted_boxes.iobb}
    return {
        measure: metrics.localization_differences(
            overlaps[measure][scored],
            prior[measure][scored],
            predicted_boxes.finding[scored],
            records.patients[predicted_boxes.image_id[scored]],
            n_findings=len(records.findings),
            thresholds=thresholds,
            resamples=resamples,
        )
        for measure, thresholds in OVERLAP_THRESHOLDS.items()
    }


def measure_prior_overlaps(
    predicted_boxes: PredictedBoxes, records: Records, split: Split
) -> Overlaps:
    """Overlaps of prior_box and prior_map with the truth boxes; NaN where a pair has no prior or no scored box.

    For each pair of masks in split.floors, the priors are made of the boxes of the first mask and scored on those of
    the second.
    """
    truth = records.boxes[predicted_boxes.image_id, predicted_boxes.finding].astype(np.float64)
    overlaps = {
        name: {measure: np.full(len(truth), np.nan) for measure in OVERLAP_THRESHOLDS}
        for name in ("prior_box", "prior_map")
    }
    for pairs, boxes in _pairs_and_prior_boxes(predicted_boxes, records, split):
        for name, make_prior in (
            ("prior_box", metrics.prior_box),
            ("prior_map", metrics.prior_map),
        ):
            box = make_prior(boxes)
            overlaps[name]["iou"][pairs] = metrics.iou(box, truth[pairs])
            overlaps[name]["iobb"][pairs] = metrics.iobb(box, truth[pairs])
    return overlaps


def _pairs_and_prior_boxes(
    predicted_boxes: PredictedBoxes, records: Records, split: Split
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(pairs bool [k], boxes float [m 4] of other patients from which the priors of these pairs are made)."""
    for source, target in split.floors:
        for c in range(len(records.findings)):
            pairs = (
                predicted_boxes.scored
                & (predicted_boxes.finding == c)
                & target[predicted_boxes.image_id, c]
            )
            boxes = records.boxes[source[:, c], c]
            if pairs.any() and len(boxes):
                yield pairs, boxes


def pointing_game(
    predicted_boxes: PredictedBoxes, records: Records, *, resamples: int = metrics.RESAMPLES
) -> Table:
    """The share of truth boxes that contain their map's peak; a map without a peak is a miss."""
    truth = records.boxes[predicted_boxes.image_id, predicted_boxes.finding]
    hit = np.full(len(truth), np.nan)
    hit[predicted_boxes.scored] = metrics.point_in_box(
        predicted_boxes.peak[predicted_boxes.scored], truth[predicted_boxes.scored]
    )
    return _pointing_table(hit, predicted_boxes, records, resamples)


def prior_pointing_game(
    predicted_boxes: PredictedBoxes,
    records: Records,
    split: Split,
    *,
    resamples: int = metrics.RESAMPLES,
) -> Table:
    """As `pointing_game` for the heat map of prior_map, which is made of other patients' boxes and no image."""
    truth = records.boxes[predicted_boxes.image_id, predicted_boxes.finding]
    hit = np.full(len(truth), np.nan)
    for pairs, boxes in _pairs_and_prior_boxes(predicted_boxes, records, split):
        hit[pairs] = metrics.point_in_box(metrics.prior_peak(boxes), truth[pairs])
    return _pointing_table(hit, predicted_boxes, records, resamples)


def _pointing_table(
    hit: np.ndarray, predicted_boxes: PredictedBoxes, records: Records, resamples: int
) -> Table:
    scored = predicted_boxes.scored
    return metrics.pointing_table(
        hit[scored],
        predicted_boxes.finding[scored],
        records.patients[predicted_boxes.image_id[scored]],
        n_findings=len(records.findings),
        resamples=resamples,
    )


def _accuracy_tables(
    predicted_boxes: PredictedBoxes,
    records: Records,
    overlaps: Overlaps,
    resamples: int,
) -> dict[str, Tables]:
    scored = predicted_boxes.scored

    def tables_of(measure: str, overlap: np.ndarray) -> tuple[Table, ...]:
        return metrics.localization_tables(
            overlap[scored],
            predicted_boxes.finding[scored],
            records.patients[predicted_boxes.image_id[scored]],
            n_findings=len(records.findings),
            thresholds=OVERLAP_THRESHOLDS[measure],
            resamples=resamples,
        )

    return {
        name: {measure: tables_of(measure, overlap) for measure, overlap in by_measure.items()}
        for name, by_measure in overlaps.items()
    }


def false_boxes_per_image(
    predicted_boxes: PredictedBoxes,
    outputs: Outputs,
    records: Records,
    split: Split,
    operating_points: tuple[OperatingPoint, ...],
    *,
    resamples: int = metrics.RESAMPLES,
) -> Table:
    """AFP (Wang et al. 2017): false boxes per image of the test part, rule `single`.

    A predicted-positive (image, finding) gives one box. It is false unless that pair has a scored
    truth box and IoU > 0.1. Pairs that have the label but no scored box cannot be judged: such an
    image counts neither in the numerator nor in the denominator of that finding.
    """
    ids = outputs.image_id[outputs.rows(split.test)]
    can_be_judged = (records.labels[ids] == 0) | split.scored[ids]
    false_box = np.zeros(can_be_judged.shape, bool)
    is_false = predicted_boxes.predicted & ~(predicted_boxes.iou > AFP_IOU)
    false_box[
        np.searchsorted(ids, predicted_boxes.image_id[is_false]), predicted_boxes.finding[is_false]
    ] = True
    counted = can_be_judged & np.isfinite([point.threshold for point in operating_points])
    reasons = [
        point.reason or ("" if n else "no image can be judged")
        for point, n in zip(operating_points, can_be_judged.sum(axis=0), strict=True)
    ]
    return metrics.false_box_table(
        false_box, counted, records.patients[ids], reasons, resamples=resamples
    )
