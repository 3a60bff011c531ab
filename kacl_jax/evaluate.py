"""From a network's outputs to the tables, one function per table.

What is judged here was computed elsewhere: `Outputs` holds logits and class maps, `Records` the
labels and truth boxes, `Split` says which image and which box may be scored. Nothing depends on the
order of the rows of `Outputs`. results.py writes what comes out.

Axes: m images with outputs · n images of the root · c findings · u v map cells · k pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.special import expit

from kacl_jax import metrics
from kacl_jax.data.nih import Records
from kacl_jax.data.splits import Split
from kacl_jax.gradcam import regions
from kacl_jax.metrics import T_IOBB, T_IOU, Table

AFP_IOU = 0.1  # a predicted box is false unless it hits a truth box at IoU > this
FLOORS = ("prior_box", "prior_map", "grid_ceiling")
RULES = ("single", "best_of")
MEASURES: dict[str, tuple[float, ...]] = {"iou": T_IOU, "iobb": T_IOBB}

Tables = dict[str, tuple[Table, ...]]  # measure → one table per threshold of MEASURES


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the network says about m images, in any order.

    image_id: int [m], distinct. logits: float32 [m c]. maps: float32 [m c u v], the raw class maps
    (centred where cam.center says so) in the frame of the original image; None where only the
    classification is wanted.
    """

    image_id: np.ndarray
    logits: np.ndarray
    maps: np.ndarray | None = None

    def __post_init__(self) -> None:
        m = len(self.image_id)
        maps_fit = self.maps is None or self.maps.shape[:2] == self.logits.shape
        if self.logits.shape[:1] != (m,) or self.logits.ndim != 2 or not maps_fit:
            raise ValueError("image_id [m], logits [m c] and maps [m c u v] do not fit together")
        if len(np.unique(self.image_id)) != m:
            raise ValueError("an image has more than one row of outputs")

    def class_maps(self) -> np.ndarray:
        """float32 [m c u v]; raises ValueError where they were not computed."""
        if self.maps is None:
            raise ValueError("localization needs the class maps")
        return self.maps

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """The rows of these images, ascending by id; images without outputs are left out."""
        order = np.argsort(self.image_id)
        return order[np.isin(self.image_id[order], ids)]


@dataclass(frozen=True)
class OperatingPoint:
    """A finding is predicted where its probability ≥ threshold (NaN with a reason: never)."""

    threshold: float
    youden_j: float
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Located:
    """Predicted boxes of k (image, finding) pairs of the test part, by image id, then finding.

    The pairs are those with a scored truth box and those predicted positive. Overlaps are NaN
    where there is no scored truth box. `best_*` belong to the rule best_of: the best of all
    components, chosen with the truth in hand.
    """

    image_id: np.ndarray  # int64 [k]
    finding: np.ndarray  # int64 [k]
    score: np.ndarray  # float64 [k] probability
    predicted: np.ndarray  # bool [k]
    scored: np.ndarray  # bool [k]: has a truth box that the split scores
    box: np.ndarray  # float64 [k 4]: rule single
    fallback: np.ndarray  # bool [k]: the map marked nothing, the box is the whole image
    iou: np.ndarray  # float64 [k]
    iobb: np.ndarray
    best_iou: np.ndarray
    best_iobb: np.ndarray


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything that one evaluation found; results.py turns it into files."""

    val: Outputs
    test: Outputs
    points: tuple[OperatingPoint, ...]
    auroc: Table
    located: Located
    accuracy: dict[str, Tables]  # by rule
    floors: dict[str, Tables]  # by floor
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

    size, relu, threshold as in `gradcam.regions`. `val` needs no maps.
    """
    points = operating_points(val, records, split)
    located = locate(test, records, split, points, size=size, relu=relu, threshold=threshold)
    return Evaluation(
        val=val,
        test=test,
        points=points,
        auroc=classification(test, records, split.test, resamples=resamples),
        located=located,
        accuracy=localization(located, records, resamples=resamples),
        floors=floors(located, records, split, test.class_maps().shape[2:], resamples=resamples),
        afp=false_boxes(located, test, records, split, points, resamples=resamples),
        resamples=resamples,
    )


def operating_points(
    outputs: Outputs, records: Records, split: Split
) -> tuple[OperatingPoint, ...]:
    """Per finding the threshold with the highest Youden J (TPR − FPR) on the validation part.

    Of several the highest is taken: fewer positives for the same J.
    """
    rows = outputs.rows(split.val)
    probability = probabilities(outputs, rows, records)
    labels = records.labels[outputs.image_id[rows]]
    return tuple(
        _youden(probability[:, i], labels[:, i] == 1) for i in range(len(records.findings))
    )


def _youden(scores: np.ndarray, positive: np.ndarray) -> OperatingPoint:
    reason = metrics.one_class(int(positive.sum()), int((~positive).sum()))
    if reason:
        nan = float("nan")
        return OperatingPoint(nan, nan, f"{reason} in the validation part")
    levels, group = np.unique(scores, return_inverse=True)
    gain = np.bincount(group, positive, len(levels)) / positive.sum()
    gain -= np.bincount(group, ~positive, len(levels)) / (~positive).sum()
    youden = np.cumsum(gain[::-1])[::-1]  # J of "score ≥ level"
    best = len(levels) - 1 - int(youden[::-1].argmax())
    return OperatingPoint(float(levels[best]), float(youden[best]))


def classification(
    outputs: Outputs,
    records: Records,
    ids: np.ndarray,
    *,
    resamples: int = metrics.RESAMPLES,
    seed: int = 0,
) -> Table:
    """AUROC per finding and mean over the images `ids` (split.test, or split.val in training)."""
    rows = outputs.rows(ids)
    image_id = outputs.image_id[rows]
    return metrics.auroc_table(
        probabilities(outputs, rows, records),
        records.labels[image_id],
        records.patients[image_id],
        resamples=resamples,
        seed=seed,
    )


def probabilities(outputs: Outputs, rows: np.ndarray, records: Records) -> np.ndarray:
    """float64 [rows c]. Every figure is taken from what predictions.csv shows."""
    probability = expit(outputs.logits[rows].astype(np.float64))
    if not np.isfinite(probability).all():
        row, finding = np.argwhere(~np.isfinite(probability))[0]
        name = records.names[outputs.image_id[rows[row]]]
        raise ValueError(f"the logit of {records.findings[finding]} is not finite for {name}")
    return probability


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

    size, relu, threshold as in `gradcam.regions`. Boxes are taken in float64.
    """
    maps = outputs.class_maps()
    rows = outputs.rows(split.test)
    probability = probabilities(outputs, rows, records)
    predicted = probability >= [point.threshold for point in points]  # NaN: never
    scored = split.scored[outputs.image_id[rows]]
    pair = np.argwhere(predicted | scored)
    image_id, finding = outputs.image_id[rows[pair[:, 0]]].astype(np.int64), pair[:, 1]

    box, fallback = np.zeros((len(pair), 4)), np.zeros(len(pair), bool)
    overlap = {
        name: np.full(len(pair), np.nan) for name in ("iou", "iobb", "best_iou", "best_iobb")
    }
    for k, (row, c) in enumerate(zip(rows[pair[:, 0]], finding, strict=True)):
        found = regions(maps[row, c], size=size, relu=relu, threshold=threshold)
        candidates = _component_boxes(found.labels)
        box[k], fallback[k] = candidates[found.peak - 1], found.fallback
        if scored[pair[k, 0], c]:
            truth = records.boxes[image_id[k], c]
            for name, measure in (("iou", metrics.iou), ("iobb", metrics.iobb)):
                values = measure(candidates, truth)
                overlap[name][k], overlap[f"best_{name}"][k] = values[found.peak - 1], values.max()
    at = tuple(pair.T)
    return Located(
        image_id, finding, probability[at], predicted[at], scored[at], box, fallback, **overlap
    )


def _component_boxes(labels: np.ndarray) -> np.ndarray:
    """int32 [h w], components counted from 1 → float64 [components 4] in fractions."""
    h, w = labels.shape
    edges = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    return np.array(edges, np.float64) / [w, h, w, h]


def localization(
    located: Located, records: Records, *, resamples: int = metrics.RESAMPLES, seed: int = 0
) -> dict[str, Tables]:
    """Localization accuracy by rule: {'single' | 'best_of': {'iou' | 'iobb': tables}}."""
    overlaps = {
        "single": {"iou": located.iou, "iobb": located.iobb},
        "best_of": {"iou": located.best_iou, "iobb": located.best_iobb},
    }
    return _localization_tables(located, records, overlaps, resamples, seed)


def floors(
    located: Located,
    records: Records,
    split: Split,
    grid: tuple[int, int],
    *,
    resamples: int = metrics.RESAMPLES,
    seed: int = 0,
) -> dict[str, Tables]:
    """What a box scores that looks at no image, and what the u × v `grid` of the map could score.

    prior_box and prior_map take, for each pair of split.floors, the boxes of the first mask and
    are scored on the second's. The truth boxes and denominators are those of `localization`.
    """
    truth = records.boxes[located.image_id, located.finding].astype(np.float64)
    overlaps = {
        name: {measure: np.full(len(truth), np.nan) for measure in MEASURES} for name in FLOORS
    }
    for source, target in split.floors:
        for c in range(len(records.findings)):
            ours = located.scored & (located.finding == c) & target[located.image_id, c]
            boxes = records.boxes[source[:, c], c]
            if not ours.any() or not len(boxes):
                continue
            for name, prior in (("prior_box", metrics.prior_box), ("prior_map", metrics.prior_map)):
                box = prior(boxes)
                overlaps[name]["iou"][ours] = metrics.iou(box, truth[ours])
                overlaps[name]["iobb"][ours] = metrics.iobb(box, truth[ours])
    scored, ceiling = located.scored, overlaps["grid_ceiling"]
    ceiling["iou"][scored] = metrics.grid_ceiling(truth[scored], *grid)
    ceiling["iobb"][scored] = metrics.grid_ceiling_iobb(truth[scored], *grid)
    return _localization_tables(located, records, overlaps, resamples, seed)


def _localization_tables(
    located: Located,
    records: Records,
    overlaps: dict[str, dict[str, np.ndarray]],
    resamples: int,
    seed: int,
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
            seed=seed,
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
    seed: int = 0,
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
        false, judged, records.patients[ids], reasons, resamples=resamples, seed=seed
    )
