"""What is measured: AUROC, box overlap, localization accuracy, image-free priors, intervals.

Pure numpy and scipy. Boxes are float (x0, y0, x1, y1) fractions of the image's side, half-open;
all arithmetic on them is float64. Every interval is a percentile interval over resamples of whole
*patients*: images of one patient are not independent. One resample serves all findings, so the
interval of a mean over findings is right although the findings share images. What cannot be
computed is NaN with a reason, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse

T_IOU = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
T_IOBB = (0.1, 0.25, 0.5, 0.75, 0.9)
RESAMPLES = 2000
MAX_LEFT_OUT = 0.1  # share of undefined resamples above which no interval is given
PRIOR_GRID = 256
_CHUNK = 250  # resamples in memory at once: [patients, 250] float64


@dataclass(frozen=True)
class Estimate:
    """A figure with its uncertainty. `value` is NaN exactly when `reason` says why."""

    value: float
    ci95: tuple[float, float] | None  # None: `ci_reason` (or `reason`) says why
    counts: dict[str, int]  # what it rests on: n_pos and n_neg, or n; n_findings for a mean
    reason: str = ""
    ci_reason: str = ""
    left_out: int = 0  # resamples in which the figure was undefined


@dataclass(frozen=True)
class Table:
    """One estimate per finding and their unweighted mean over the findings that are defined."""

    findings: tuple[Estimate, ...]
    mean: Estimate


def auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve, a tie between a positive and a negative counting one half.

    Args: scores float [n], finite; labels [n] of 0 and 1; weights float [n] ≥ 0 (default 1).
    Returns: Σ w_i w_j ([s_i > s_j] + ½ [s_i = s_j]) / Σ w_i w_j over positives i and negatives j;
    NaN where either class weighs nothing. Raises ValueError on a score that is not finite.
    """
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    positive = _classes(scores, labels)
    values, group = np.unique(np.asarray(scores), return_inverse=True)
    w_pos = np.bincount(group, weights * positive, len(values))
    w_neg = np.bincount(group, weights * ~positive, len(values))
    total = w_pos.sum() * w_neg.sum()
    if not total > 0:
        return float("nan")
    return float(w_pos @ (np.cumsum(w_neg) - 0.5 * w_neg) / total)


def auroc_table(
    scores: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Table:
    """AUROC per finding and mean, with patient-cluster intervals.

    Args: scores float [n c], labels [n c] of 0 and 1, patients int [n].
    Returns: counts n_pos and n_neg are images (summed over findings in the mean).
    """
    cluster, n_clusters = _clusters(patients)
    ranked = [
        _Ranked(scores[:, i], labels[:, i], cluster, n_clusters) for i in range(labels.shape[1])
    ]

    def replicate(counts: np.ndarray) -> np.ndarray:
        return np.stack([r.auroc(counts) for r in ranked])[..., None]

    counts = [{"n_pos": int(r.n_pos), "n_neg": int(r.n_neg)} for r in ranked]
    values = replicate(np.ones((n_clusters, 1)))[:, 0, :]
    reasons = [one_class(r.n_pos, r.n_neg) for r in ranked]
    draws = _bootstrap(replicate, n_clusters, resamples, seed)
    return _table(values[:, 0], draws[:, :, 0], counts, reasons, n_clusters)


class _Ranked:
    """One finding's ROC as sparse matrices over patients, so that a resample is two products.

    Rows are the distinct scores that some positive has, ascending. `positives` holds each one's
    positives per patient; `upto` the negatives above the row before and not above this one;
    `tied` those of them that share the row's score.
    """

    def __init__(
        self, scores: np.ndarray, labels: np.ndarray, cluster: np.ndarray, n_clusters: int
    ) -> None:
        positive = _classes(scores, labels)
        levels, row = np.unique(scores[positive], return_inverse=True)
        negatives, owner = scores[~positive], cluster[~positive]
        below = np.searchsorted(levels, negatives, side="left")
        within = below < len(levels)  # the rest scores above every positive: adds nothing
        tied = within.copy()
        tied[within] = levels[below[within]] == negatives[within]

        def count(rows: np.ndarray, columns: np.ndarray) -> sparse.csr_array:
            shape = (len(levels), n_clusters)
            return sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape).tocsr()

        self.positives = count(row, cluster[positive])
        self.upto = count(below[within], owner[within])
        self.tied = count(below[tied], owner[tied])
        self.pos_per_patient = np.bincount(cluster[positive], minlength=n_clusters).astype(float)
        self.neg_per_patient = np.bincount(owner, minlength=n_clusters).astype(float)
        self.n_pos, self.n_neg = int(positive.sum()), len(negatives)

    def auroc(self, counts: np.ndarray) -> np.ndarray:
        """AUROC [k] with each patient counted counts [patients k] times; NaN where undefined."""
        total = (self.pos_per_patient @ counts) * (self.neg_per_patient @ counts)
        below = np.cumsum(self.upto @ counts, axis=0)
        below -= 0.5 * (self.tied @ counts)
        wins = np.einsum("gk,gk->k", self.positives @ counts, below)
        return _divide(wins, total)


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union, elementwise. Boxes float [... 4] → float64 [...] in [0, 1].

    Raises ValueError on a box that is empty or not finite: it has no overlap to speak of.
    """
    boxes, others, shared = _shared_area(boxes, others)
    return shared / (_area(boxes) + _area(others) - shared)


def iobb(detected: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over the area of the *detected* box (Wang et al. 2017), as `iou`."""
    detected, _, shared = _shared_area(detected, truth)
    return shared / _area(detected)


def localization_tables(
    overlap: np.ndarray,
    finding: np.ndarray,
    patients: np.ndarray,
    *,
    n_findings: int,
    thresholds: tuple[float, ...],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Table, ...]:
    """Localization accuracy: the share of a finding's truth boxes with overlap > T, strictly.

    Args: overlap float64 [m], one per truth box (IoU or IoBB; NaN: this box has no detection to be
    judged, it leaves the denominator); finding int [m]; patients int [m].
    Returns: one table per threshold; count n is the number of truth boxes judged.
    """
    judged = np.isfinite(overlap)
    ours = finding[:, None] == np.arange(n_findings)
    hit = (overlap[:, None] > np.asarray(thresholds)) & judged[:, None]
    reasons = [_unjudged(ours[:, i], judged) for i in range(n_findings)]
    return _ratio_tables(
        ours[:, :, None] & hit[:, None, :],
        ours & judged[:, None],
        patients,
        reasons,
        resamples,
        seed,
    )


def false_box_table(
    false_box: np.ndarray,
    considered: np.ndarray,
    patients: np.ndarray,
    reasons: list[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Table:
    """AFP: mean number of false boxes per image, over the (image, finding) pairs considered.

    Args: false_box, considered bool [n c]; patients int [n]; reasons, per finding, why it cannot be
    judged at all ('' where it can). Count n is the number of images considered.
    """
    false = (false_box & considered)[:, :, None]
    return _ratio_tables(false, considered, patients, reasons, resamples, seed)[0]


def prior_box(boxes: np.ndarray) -> np.ndarray:
    """The class-mean box of float [m 4] boxes, m ≥ 1: float64 [4]. Looks at no image."""
    return _checked(boxes).mean(axis=0)


def prior_map(boxes: np.ndarray, grid: int = PRIOR_GRID) -> np.ndarray:
    """Box of the class heat map of float [m 4] boxes, m ≥ 1: float64 [4]. Looks at no image.

    The heat map is the mean of the boxes drawn on a grid × grid raster (a cell belongs to a box
    that holds its centre); the box is that of the 4-connected component, at half the maximum or
    more, of the first maximum in row order.
    """
    centre = (np.arange(grid) + 0.5) / grid
    boxes = _checked(boxes)
    columns = (boxes[:, 0, None] <= centre) & (centre < boxes[:, 2, None])
    rows = (boxes[:, 1, None] <= centre) & (centre < boxes[:, 3, None])
    heat = rows.T.astype(np.float64) @ columns.astype(np.float64)
    if heat.max() == 0:
        raise ValueError(f"no box covers the centre of a cell of the {grid} × {grid} raster")
    labels, _ = ndimage.label(2 * heat >= heat.max())
    where = ndimage.find_objects(labels)[labels.flat[heat.argmax()] - 1]
    return np.array([where[1].start, where[0].start, where[1].stop, where[0].stop]) / grid


def grid_ceiling(boxes: np.ndarray, u: int, v: int) -> np.ndarray:
    """IoU of each truth box with its best box made of whole cells of a u × v grid.

    Args: boxes float [m 4]; u rows, v columns. Returns float64 [m].
    With the other three edges fixed, IoU rises until an edge meets the truth's and falls after, so
    each edge of the best box is a grid line next to the truth's edge: 16 candidates.
    """
    boxes = _checked(boxes)
    cells = np.array([v, u, v, u], np.float64)
    best = np.zeros(len(boxes))
    for corner in range(16):
        up = np.array([corner >> edge & 1 for edge in range(4)])
        edges = np.clip(np.floor(boxes * cells) + up, 0, cells)
        whole = (edges[:, 2] > edges[:, 0]) & (edges[:, 3] > edges[:, 1])
        best[whole] = np.maximum(best[whole], iou(edges[whole] / cells, boxes[whole]))
    return best


def grid_ceiling_iobb(boxes: np.ndarray, u: int, v: int) -> np.ndarray:
    """As `grid_ceiling` for IoBB. A box's IoBB is the mean of its cells', so one cell is best."""
    boxes = _checked(boxes)

    def covered(low: np.ndarray, high: np.ndarray, cells: int) -> np.ndarray:
        line = np.arange(cells) / cells
        inside = np.minimum(high[:, None], line + 1 / cells) - np.maximum(low[:, None], line)
        return np.clip(inside, 0, None).max(axis=1) * cells

    share = covered(boxes[:, 0], boxes[:, 2], v) * covered(boxes[:, 1], boxes[:, 3], u)
    return np.minimum(share, 1.0)


def _classes(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    return np.asarray(labels) == 1


def one_class(n_pos: int, n_neg: int) -> str:
    """Why there is no AUROC and no operating point; "" where there is one."""
    if n_pos and n_neg:
        return ""
    return "no image" if not n_pos + n_neg else "no positive" if not n_pos else "no negative"


def _unjudged(ours: np.ndarray, judged: np.ndarray) -> str:
    if (ours & judged).any():
        return ""
    if ours.any():
        return "no other box of this finding to take the prior from"
    return "no truth box of this finding is scored"


def _checked(boxes: np.ndarray) -> np.ndarray:
    boxes = np.asarray(boxes, np.float64)
    if not ((boxes[..., 2:] > boxes[..., :2]).all() and np.isfinite(boxes).all()):
        raise ValueError("a box is empty or not finite")
    return boxes


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _shared_area(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b = _checked(a), _checked(b)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., 2:], b[..., 2:])
    return a, b, np.clip(high - low, 0, None).prod(axis=-1)


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def _clusters(patients: np.ndarray) -> tuple[np.ndarray, int]:
    values, index = np.unique(patients, return_inverse=True)
    return index, len(values)


def _resample_counts(n_clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Multinomial counts float64 [patients k]: how often each resample draws each patient."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        k = min(_CHUNK, resamples - start)
        drawn = rng.integers(n_clusters, size=(k, n_clusters))
        flat = np.bincount((drawn * k + np.arange(k)[:, None]).ravel(), minlength=n_clusters * k)
        yield flat.reshape(n_clusters, k).astype(np.float64)


def _bootstrap(
    replicate: Callable[[np.ndarray], np.ndarray], n_clusters: int, resamples: int, seed: int
) -> np.ndarray:
    """replicate: counts [patients k] → [c k t]. Returns [c resamples t]; no draws for 1 patient."""
    if n_clusters < 2 or not resamples:
        return replicate(np.ones((n_clusters, 1)))[:, :0, :]
    chunks = [replicate(counts) for counts in _resample_counts(n_clusters, resamples, seed)]
    return np.concatenate(chunks, axis=1)


def _ratio_tables(
    numerator: np.ndarray,
    denominator: np.ndarray,
    patients: np.ndarray,
    reasons: list[str],
    resamples: int,
    seed: int,
) -> tuple[Table, ...]:
    """Ratios of sums: numerator [n c t], denominator [n c], one table per t."""
    cluster, n_clusters = _clusters(patients)
    rows, c, t = numerator.shape
    member = sparse.coo_array((np.ones(rows), (cluster, np.arange(rows))), (n_clusters, rows))
    top = member.tocsr() @ numerator.reshape(rows, c * t).astype(np.float64)
    bottom = member.tocsr() @ denominator.astype(np.float64)

    def replicate(counts: np.ndarray) -> np.ndarray:
        tops = (counts.T @ top).reshape(-1, c, t)
        return _divide(tops, np.broadcast_to((counts.T @ bottom)[..., None], tops.shape)).swapaxes(
            0, 1
        )

    values = replicate(np.ones((n_clusters, 1)))[:, 0, :]
    draws = _bootstrap(replicate, n_clusters, resamples, seed)
    counts = [{"n": int(n)} for n in denominator.sum(axis=0)]
    return tuple(
        _table(values[:, i], draws[:, :, i], counts, reasons, n_clusters) for i in range(t)
    )


def _table(
    values: np.ndarray,
    draws: np.ndarray,
    counts: list[dict[str, int]],
    reasons: list[str],
    n_clusters: int,
) -> Table:
    """values [c], draws [c resamples] → estimates; the mean is over the defined findings."""
    findings = tuple(
        _estimate(float(value), draw, n, reason, n_clusters)
        for value, draw, n, reason in zip(values, draws, counts, reasons, strict=True)
    )
    defined = np.isfinite(values)
    total = {key: sum(n[key] for n in counts) for key in counts[0]}
    total["n_findings"] = int(defined.sum())
    if not defined.any():
        return Table(findings, Estimate(float("nan"), None, total, "no finding could be scored"))
    # A resample in which one of these findings is undefined would be a mean over other findings.
    mean_draws = draws[defined].mean(axis=0)
    return Table(
        findings, _estimate(float(values[defined].mean()), mean_draws, total, "", n_clusters)
    )


def _estimate(
    value: float, draws: np.ndarray, counts: dict[str, int], reason: str, n_clusters: int
) -> Estimate:
    if not np.isfinite(value):
        return Estimate(float("nan"), None, counts, reason or "undefined")
    usable = draws[np.isfinite(draws)]
    left_out = len(draws) - len(usable)
    if n_clusters < 2:
        why = "one patient only"
    elif not len(draws):
        why = "not resampled"
    elif left_out > MAX_LEFT_OUT * len(draws):
        why = f"undefined in {left_out} of {len(draws)} resamples of patients"
    elif usable.min() == usable.max():
        why = "the same in every resample of patients"
    else:
        low, high = np.percentile(usable, [2.5, 97.5])
        return Estimate(value, (float(low), float(high)), counts, left_out=left_out)
    return Estimate(value, None, counts, ci_reason=why, left_out=left_out)
