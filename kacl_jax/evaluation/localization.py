"""From class maps to boxes and points, and how they meet the truth: one function per table.

Nothing depends on the order of the rows of `Outputs`.

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
from kacl_jax.evaluation.metrics import T_IOBB, T_IOU, Table
from kacl_jax.evaluation.operating_points import OperatingPoint, decided
from kacl_jax.evaluation.outputs import Outputs, probabilities
from kacl_jax.step.regions import threshold_map

AFP_IOU = 0.1  # a predicted box is false unless it hits a truth box at IoU > this
FLOORS = ("random_map", "prior_box", "prior_map", "grid_ceiling")
RULES = ("single", "best_of")
Overlaps = dict[
    str, dict[str, np.ndarray]
]  # by floor, then measure: float64 [k], of each located pair
MEASURES: dict[str, tuple[float, ...]] = {"iou": T_IOU, "iobb": T_IOBB}

Tables = dict[str, tuple[Table, ...]]  # measure → one table per threshold of MEASURES


@dataclass(frozen=True, eq=False)
class Located:
    """Predicted boxes of k (image, finding) pairs of the test part, by image id, then finding.

    The pairs are those with a scored truth box and those predicted positive. Overlaps and peak are
    NaN where there is no scored truth box. `best_*` belong to the rule best_of: the best of all
    components, chosen with the truth in hand.
    """

    image_id: np.ndarray  # int64 [k]
    finding: np.ndarray  # int64 [k]
    score: np.ndarray  # float64 [k] probability
    predicted: np.ndarray  # bool [k]
    scored: np.ndarray  # bool [k]: has a truth box that the split scores
    box: np.ndarray  # float64 [k 4]: rule single
    fallback: (
        np.ndarray
    )  # bool [k]: the map marked nothing, the box is the image less a rim of 1 px
    iou: np.ndarray  # float64 [k]
    iobb: np.ndarray
    best_iou: np.ndarray
    best_iobb: np.ndarray
    peak: np.ndarray  # float64 [k 2] (x, y), fractions; NaN also where the map points nowhere


def locate(
    outputs: Outputs,
    records: Records,
    split: Split,
    points: tuple[OperatingPoint, ...],
    *,
    size: int,
    relu: bool,
    threshold: float,
) -> Located:
    """Map → box for every scored truth box and every predicted-positive pair of the test part.

    size, relu, threshold as in `regions.threshold_map`. Boxes are taken in float64.
    """
    maps, rows = outputs.class_maps(), outputs.rows(split.test)
    probability = probabilities(outputs, rows, records)
    predicted = decided(probability, points)
    scored = split.scored[outputs.image_id[rows]]
    pair = np.argwhere(predicted | scored)
    row, finding = rows[pair[:, 0]], pair[:, 1]
    at = tuple(pair.T)
    return _located(
        (maps[place] for place in zip(row, finding, strict=True)),
        records,
        image_id=outputs.image_id[row].astype(np.int64),
        finding=finding,
        score=probability[at],
        predicted=predicted[at],
        scored=scored[at],
        size=size,
        relu=relu,
        threshold=threshold,
    )


def locate_at_random(
    located: Located,
    records: Records,
    grid: tuple[int, int],
    *,
    size: int,
    relu: bool,
    threshold: float,
) -> Located:
    """What the same rule makes of `metrics.random_map`s on the same u × v `grid`, for the scored truth boxes."""
    at = located.scored
    image_id, finding = located.image_id[at], located.finding[at]
    pairs = zip(image_id.tolist(), finding.tolist(), strict=True)
    return _located(
        (metrics.random_map(*grid, (0, *pair)) for pair in pairs),
        records,
        image_id=image_id,
        finding=finding,
        score=located.score[at],
        predicted=located.predicted[at],
        scored=at[at],
        size=size,
        relu=relu,
        threshold=threshold,
    )


def _located(
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
) -> Located:
    """maps: one [u v] for each of the k pairs."""
    k = len(image_id)
    box, fallback, peak = np.zeros((k, 4)), np.zeros(k, bool), np.full((k, 2), np.nan)
    overlap = {name: np.full(k, np.nan) for name in ("iou", "iobb", "best_iou", "best_iobb")}
    for i, cam in enumerate(maps):
        found = threshold_map(cam, size=size, relu=relu, threshold=threshold)
        candidates = _component_boxes(found.labels)
        box[i], fallback[i] = candidates[found.peak - 1], found.fallback
        if scored[i]:
            peak[i] = _peak(cam, relu)
            truth = records.boxes[image_id[i], finding[i]]
            for name, measure in (("iou", metrics.iou), ("iobb", metrics.iobb)):
                values = measure(candidates, truth)
                overlap[name][i], overlap[f"best_{name}"][i] = values[found.peak - 1], values.max()
    return Located(image_id, finding, score, predicted, scored, box, fallback, **overlap, peak=peak)


def _peak(cam: np.ndarray, relu: bool) -> tuple[float, float]:
    """The centre (x, y) of the first highest cell; NaN where the map is flat or not finite: it points nowhere."""
    heat = np.maximum(cam, 0) if relu else cam
    if not np.isfinite(heat).all() or heat.min() == heat.max():
        return np.nan, np.nan
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    return (float(column) + 0.5) / heat.shape[1], (float(row) + 0.5) / heat.shape[0]


def _component_boxes(labels: np.ndarray) -> np.ndarray:
    """int32 [h w], components counted from 1 → float64 [components 4] in fractions."""
    h, w = labels.shape
    edges = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    return np.array(edges, np.float64) / [w, h, w, h]


def localization(
    located: Located, records: Records, *, resamples: int = metrics.RESAMPLES
) -> dict[str, Tables]:
    """Localization accuracy by rule: {'single' | 'best_of': {'iou' | 'iobb': tables}}."""
    overlaps = {
        "single": {"iou": located.iou, "iobb": located.iobb},
        "best_of": {"iou": located.best_iou, "iobb": located.best_iobb},
    }
    return _localization_tables(located, records, overlaps, resamples)


def floors(
    located: Located,
    records: Records,
    prior: Overlaps,
    grid: tuple[int, int],
    *,
    resamples: int = metrics.RESAMPLES,
) -> dict[str, Tables]:
    """What a box scores that looks at no image, and what the u × v `grid` of the map could score.

    prior: of `prior_overlaps`. The truth boxes and denominators are those of `localization`.
    """
    overlaps = dict(prior)
    scored = located.scored
    truth = records.boxes[located.image_id[scored], located.finding[scored]].astype(np.float64)
    ceilings = {"iou": metrics.grid_ceiling, "iobb": metrics.grid_ceiling_iobb}
    overlaps["grid_ceiling"] = {m: np.full(len(scored), np.nan) for m in MEASURES}
    for measure, ceiling in ceilings.items():
        overlaps["grid_ceiling"][measure][scored] = ceiling(truth, *grid)
    return _localization_tables(located, records, overlaps, resamples)


def above_prior_map(
    located: Located,
    records: Records,
    prior: Overlaps,
    *,
    resamples: int = metrics.RESAMPLES,
) -> Tables:
    """Localization accuracy of rule single less prior_map's on the same truth boxes, paired."""
    blind, at = prior["prior_map"], located.scored
    ours = {"iou": located.iou, "iobb": located.iobb}
    return {
        measure: metrics.localization_differences(
            ours[measure][at],
            blind[measure][at],
            located.finding[at],
            records.patients[located.image_id[at]],
            n_findings=len(records.findings),
            thresholds=thresholds,
            resamples=resamples,
        )
        for measure, thresholds in MEASURES.items()
    }


def prior_overlaps(located: Located, records: Records, split: Split) -> Overlaps:
    """What prior_box and prior_map overlap of the truth, NaN where none is due.

    They take, for each pair of split.floors, the boxes of the first mask and are scored on the second's.
    """
    truth = records.boxes[located.image_id, located.finding].astype(np.float64)
    overlaps = {
        name: {measure: np.full(len(truth), np.nan) for measure in MEASURES}
        for name in ("prior_box", "prior_map")
    }
    for ours, boxes in _others(located, records, split):
        for name, prior in (("prior_box", metrics.prior_box), ("prior_map", metrics.prior_map)):
            box = prior(boxes)
            overlaps[name]["iou"][ours] = metrics.iou(box, truth[ours])
            overlaps[name]["iobb"][ours] = metrics.iobb(box, truth[ours])
    return overlaps


def _others(
    located: Located, records: Records, split: Split
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(pairs bool [k], boxes float [m 4] of other patients that these pairs' priors are made of)."""
    for source, target in split.floors:
        for c in range(len(records.findings)):
            ours = located.scored & (located.finding == c) & target[located.image_id, c]
            boxes = records.boxes[source[:, c], c]
            if ours.any() and len(boxes):
                yield ours, boxes


def pointing_game(
    located: Located, records: Records, *, resamples: int = metrics.RESAMPLES
) -> Table:
    """The share of truth boxes that hold their map's peak; a map that points nowhere misses."""
    truth = records.boxes[located.image_id, located.finding]
    hit = np.full(len(truth), np.nan)
    hit[located.scored] = metrics.inside(located.peak[located.scored], truth[located.scored])
    return _pointing_table(hit, located, records, resamples)


def prior_pointing_game(
    located: Located,
    records: Records,
    split: Split,
    *,
    resamples: int = metrics.RESAMPLES,
) -> Table:
    """The same of prior_map's heat map, whose peak has seen other patients' boxes and no image."""
    truth = records.boxes[located.image_id, located.finding]
    hit = np.full(len(truth), np.nan)
    for ours, boxes in _others(located, records, split):
        hit[ours] = metrics.inside(metrics.prior_peak(boxes), truth[ours])
    return _pointing_table(hit, located, records, resamples)


def _pointing_table(hit: np.ndarray, located: Located, records: Records, resamples: int) -> Table:
    truth = located.scored
    return metrics.pointing_table(
        hit[truth],
        located.finding[truth],
        records.patients[located.image_id[truth]],
        n_findings=len(records.findings),
        resamples=resamples,
    )


def _localization_tables(
    located: Located,
    records: Records,
    overlaps: Overlaps,
    resamples: int,
) -> dict[str, Tables]:
    truth = located.scored

    def tables(measure: str, overlap: np.ndarray) -> tuple[Table, ...]:
        return metrics.localization_tables(
            overlap[truth],
            located.finding[truth],
            records.patients[located.image_id[truth]],
            n_findings=len(records.findings),
            thresholds=MEASURES[measure],
            resamples=resamples,
        )

    return {
        name: {measure: tables(measure, overlap) for measure, overlap in of.items()}
        for name, of in overlaps.items()
    }


def false_boxes(
    located: Located,
    outputs: Outputs,
    records: Records,
    split: Split,
    points: tuple[OperatingPoint, ...],
    *,
    resamples: int = metrics.RESAMPLES,
) -> Table:
    """AFP (Wang et al. 2017): false boxes per image of the test part, rule `single`.

    A predicted-positive (image, finding) gives one box. It is false unless that pair has a scored
    truth box and IoU > .1. Pairs that carry the label but no scored box cannot be judged: such
    images count neither above nor below the line.
    """
    ids = outputs.image_id[outputs.rows(split.test)]
    considered = (records.labels[ids] == 0) | split.scored[ids]
    false = np.zeros(considered.shape, bool)
    wrong = located.predicted & ~(located.iou > AFP_IOU)
    false[np.searchsorted(ids, located.image_id[wrong]), located.finding[wrong]] = True
    judged = considered & np.isfinite([point.threshold for point in points])
    reasons = [
        point.reason or ("" if n else "no image can be judged")
        for point, n in zip(points, considered.sum(axis=0), strict=True)
    ]
    return metrics.false_box_table(
        false, judged, records.patients[ids], reasons, resamples=resamples
    )
