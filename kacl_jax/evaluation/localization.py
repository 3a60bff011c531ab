"""Predicted boxes and points from class maps, and their agreement with the truth boxes: one function per table.

Each truth box counts once: the one predicted box of its image and finding is compared with each of their truth boxes.
No result depends on the order of the rows of `Outputs`.

Axes: c findings · u v map cells · k pairs of an image and a finding · m truth boxes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from kacl_jax.data.records import Records
from kacl_jax.data.splits import Split
from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics import IOBB_THRESHOLDS, IOU_THRESHOLDS, Table, TruthBoxes
from kacl_jax.evaluation.operating_points import OperatingPoint, is_predicted_positive
from kacl_jax.evaluation.outputs import Outputs, probabilities
from kacl_jax.evaluation.results import Accuracy, Localization, MapAccuracy
from kacl_jax.step.regions import Components, threshold_map

AFP_IOU = 0.1  # a predicted box is false unless its IoU with any truth box of its pair is greater than this


@dataclass(frozen=True)
class Reading:
    """How a map becomes boxes: size, relu and threshold as in `regions.threshold_map`."""

    size: int
    relu: bool
    threshold: float

    def components(self, class_map: np.ndarray) -> Components:
        return threshold_map(class_map, size=self.size, relu=self.relu, threshold=self.threshold)


class Overlaps(NamedTuple):
    """Overlaps of boxes with the truth boxes: float64 [m]; NaN where there is no box to compare."""

    iou: np.ndarray
    iobb: np.ndarray


@dataclass(frozen=True, eq=False)
class PredictedBoxes:
    """Predicted boxes of k (image, finding) pairs of the test part, by image id, then finding; their m truth boxes.

    The pairs are those with scored truth boxes and those predicted positive. The truth boxes are those that the split
    scores, by pair, then in the order of `Records.boxes`. `best_*` belong to the rule best_of: the largest overlap of
    any component with the truth box, which needs to know the truth.
    """

    image_id: np.ndarray  # int64 [k]
    finding: np.ndarray  # int64 [k]
    score: np.ndarray  # float64 [k] probability
    predicted: np.ndarray  # bool [k]
    box: np.ndarray  # float64 [k 4]: rule single
    # bool [k]: no pixel is above the threshold; the box is the image without a rim of 1 px.
    fallback: np.ndarray
    peak: np.ndarray  # float64 [k 2] (x, y), fractions; NaN where the map has no peak
    truth_pair: np.ndarray  # int64 [m]: the row of the truth box's pair, ascending
    truth: np.ndarray  # float64 [m 4]
    iou: np.ndarray  # float64 [m]: of the truth box with the predicted box of its pair
    iobb: np.ndarray
    best_iou: np.ndarray
    best_iobb: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        """bool [k]: which pairs have scored truth boxes."""
        return np.isin(np.arange(len(self.box)), self.truth_pair)

    @property
    def largest_iou(self) -> np.ndarray:
        """float64 [k]: the largest IoU of the predicted box with a truth box of its pair; NaN where none is scored."""
        largest = np.full(len(self.box), np.nan)
        np.fmax.at(largest, self.truth_pair, self.iou)
        return largest

    @property
    def hit(self) -> np.ndarray:
        """bool [m]: whether the truth box contains the peak of its pair's map; a map without a peak hits none."""
        return np.asarray(metrics.point_in_box(self.peak[self.truth_pair], self.truth))


def predict_boxes(
    outputs: Outputs,
    records: Records,
    split: Split,
    operating_points: tuple[OperatingPoint, ...],
    reading: Reading,
) -> PredictedBoxes:
    """Class map → box for every pair of the test part that has scored truth boxes or is predicted positive.

    Boxes are computed in float64.
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
        reading,
        image_id=outputs.image_id[output_row].astype(np.int64),
        finding=finding,
        score=probability[kept],
        predicted=predicted[kept],
        scored=scored[kept],
    )


def predict_boxes_from_random_maps(
    predicted_boxes: PredictedBoxes,
    records: Records,
    grid: tuple[int, int],
    reading: Reading,
) -> PredictedBoxes:
    """The boxes that the same rule predicts from `metrics.random_map`s on the same u × v `grid`.

    Only for the pairs with scored truth boxes, of which there are the same m.
    """
    scored = predicted_boxes.scored
    image_id, finding = predicted_boxes.image_id[scored], predicted_boxes.finding[scored]
    pairs = zip(image_id.tolist(), finding.tolist(), strict=True)
    return _boxes_from_maps(
        (metrics.random_map(*grid, (0, *pair)) for pair in pairs),
        records,
        reading,
        image_id=image_id,
        finding=finding,
        score=predicted_boxes.score[scored],
        predicted=predicted_boxes.predicted[scored],
        scored=scored[scored],
    )


def _boxes_from_maps(
    maps: Iterable[np.ndarray],
    records: Records,
    reading: Reading,
    *,
    image_id: np.ndarray,
    finding: np.ndarray,
    score: np.ndarray,
    predicted: np.ndarray,
    scored: np.ndarray,
) -> PredictedBoxes:
    """maps: one [u v] for each of the k pairs."""
    k = len(image_id)
    box, fallback, peak = np.zeros((k, 4)), np.zeros(k, bool), np.full((k, 2), np.nan)
    is_truth = records.is_box[image_id, finding] & scored[:, None]
    truth_pair = np.nonzero(is_truth)[0]
    truth = records.boxes[image_id, finding][is_truth].astype(np.float64)
    overlaps = {name: np.zeros(len(truth)) for name in ("iou", "iobb", "best_iou", "best_iobb")}
    for i, class_map in enumerate(maps):
        components = reading.components(class_map)
        component_boxes = _component_boxes(components.labels)
        box[i], fallback[i] = component_boxes[components.peak - 1], components.fallback
        peak[i] = _peak(class_map, reading.relu)
        own = slice(*np.searchsorted(truth_pair, [i, i + 1]))
        for name, overlap_of in (("iou", metrics.iou), ("iobb", metrics.iobb)):
            values = overlap_of(component_boxes[:, None], truth[own])
            overlaps[name][own] = values[components.peak - 1]
            overlaps[f"best_{name}"][own] = values.max(axis=0)
    return PredictedBoxes(
        image_id, finding, score, predicted, box, fallback, peak, truth_pair, truth, **overlaps
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


@dataclass(frozen=True, eq=False)
class ScoredTruth:
    """The m truth boxes that the split scores, as in PredictedBoxes."""

    pair: np.ndarray  # int64 [m], ascending: equal for the boxes of one image and finding
    image_id: np.ndarray  # int64 [m]
    box: np.ndarray  # float64 [m 4]
    of: TruthBoxes  # their findings and patients

    def tables(self, overlaps: Overlaps) -> dict[str, dict[float, Table]]:
        """The fields of an `Accuracy`."""
        return {
            "iou": metrics.localization_tables(overlaps.iou, self.of, IOU_THRESHOLDS),
            "iobb": metrics.localization_tables(overlaps.iobb, self.of, IOBB_THRESHOLDS),
        }

    def difference(self, overlaps: Overlaps, baseline: Overlaps) -> Accuracy:
        """Accuracy minus that of a baseline, paired by truth box."""
        return Accuracy(
            metrics.localization_differences(overlaps.iou, baseline.iou, self.of, IOU_THRESHOLDS),
            metrics.localization_differences(
                overlaps.iobb, baseline.iobb, self.of, IOBB_THRESHOLDS
            ),
        )

    def pointing_game(self, hit: np.ndarray) -> Table:
        """The share of pairs of an image and a finding whose map's peak lies in any of their truth boxes.

        hit: float or bool [m], whether the truth box contains the peak; NaN where there is no map to compare with.
        """
        _, first = np.unique(self.pair, return_index=True)
        pairs = dataclasses.replace(
            self.of, finding=self.of.finding[first], patients=self.of.patients[first]
        )
        return metrics.pointing_table(np.maximum.reduceat(hit, first), pairs)


def scored_truth(predicted_boxes: PredictedBoxes, records: Records, resamples: int) -> ScoredTruth:
    pair = predicted_boxes.truth_pair
    image_id, finding = predicted_boxes.image_id[pair], predicted_boxes.finding[pair]
    return ScoredTruth(
        pair,
        image_id,
        predicted_boxes.truth,
        TruthBoxes(finding, records.patients[image_id], len(records.findings), resamples),
    )


@dataclass(frozen=True, eq=False)
class Priors:
    """What other patients' boxes reach on the truth boxes, without any image; NaN where a box has no prior."""

    box: Overlaps  # of their mean box
    map: Overlaps  # of their heat map, read like a network's map
    hit: np.ndarray  # float64 [m], 1 where the truth box contains the peak of the heat map


def score_priors(truth: ScoredTruth, records: Records, split: Split) -> Priors:
    """For each pair of masks in split.floors, the priors are made of the boxes of the first mask and scored on those
    of the second."""
    m, is_box = len(truth.box), records.is_box
    mean_box, heat_map = (Overlaps(np.full(m, np.nan), np.full(m, np.nan)) for _ in range(2))
    hit = np.full(m, np.nan)
    for source, target in split.floors:
        for c in range(len(records.findings)):
            rows = (truth.of.finding == c) & target[truth.image_id, c]
            boxes = records.boxes[:, c][source[:, c, None] & is_box[:, c]]
            if not (rows.any() and len(boxes)):
                continue
            for overlaps, prior in (
                (mean_box, metrics.prior_box(boxes)),
                (heat_map, metrics.prior_map(boxes)),
            ):
                overlaps.iou[rows] = metrics.iou(prior, truth.box[rows])
                overlaps.iobb[rows] = metrics.iobb(prior, truth.box[rows])
            hit[rows] = metrics.point_in_box(metrics.prior_peak(boxes), truth.box[rows])
    return Priors(mean_box, heat_map, hit)


def score_boxes(
    predicted_boxes: PredictedBoxes,
    random_boxes: PredictedBoxes,
    truth: ScoredTruth,
    priors: Priors,
    *,
    grid: tuple[int, int],
    afp: Table,
) -> Localization:
    """All tables about boxes. grid_ceiling is the best accuracy that the u × v `grid` of the maps allows.

    random_boxes: from `predict_boxes_from_random_maps`. afp: from `false_boxes_per_image`.
    """
    single = Overlaps(predicted_boxes.iou, predicted_boxes.iobb)
    best = Overlaps(predicted_boxes.best_iou, predicted_boxes.best_iobb)
    ceiling = Overlaps(
        metrics.grid_ceiling(truth.box, *grid), metrics.grid_ceiling_iobb(truth.box, *grid)
    )
    return Localization(
        **truth.tables(single),
        best_of=Accuracy(**truth.tables(best)),
        afp=afp,
        pointing_game=truth.pointing_game(predicted_boxes.hit),
        random_map=MapAccuracy(
            **truth.tables(Overlaps(random_boxes.iou, random_boxes.iobb)),
            pointing_game=truth.pointing_game(random_boxes.hit),
        ),
        prior_box=Accuracy(**truth.tables(priors.box)),
        prior_map=MapAccuracy(
            **truth.tables(priors.map),
            pointing_game=truth.pointing_game(priors.hit),
        ),
        grid_ceiling=Accuracy(**truth.tables(ceiling)),
        above_prior_map=truth.difference(single, priors.map),
    )


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

    A predicted-positive (image, finding) gives one box. It is false unless its IoU with a scored truth box of that pair
    is > 0.1. Pairs that have the label but no scored box cannot be judged: such an image counts neither in the
    numerator nor in the denominator of that finding.
    """
    ids = outputs.image_id[outputs.rows(split.test)]
    can_be_judged = (records.labels[ids] == 0) | split.scored[ids]
    false_box = np.zeros(can_be_judged.shape, bool)
    is_false = predicted_boxes.predicted & ~(predicted_boxes.largest_iou > AFP_IOU)
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
