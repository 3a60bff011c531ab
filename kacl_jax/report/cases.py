"""Which images the page shows. Pure numpy; k pairs of an image and a finding, as in `localization.PredictedBoxes`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """A pair that the page shows: what kind of case it is (say 'best'), and its row among the k pairs."""

    kind: str
    row: int


def best_median_worst(
    iou: np.ndarray, finding: np.ndarray, names: np.ndarray, n_findings: int
) -> list[list[Case]]:
    """For each finding the best, the median and the worst of its pairs with scored truth boxes by IoU.

    The median of an even number of pairs is the lower one of the two in the middle. Equal IoUs are ordered by the
    images' names. A finding with fewer than three pairs has fewer cases.

    Args:
      iou: float [k], the largest of a pair; NaN where no truth box is scored. finding: int [k].
      names: str [k], of the images.
    """
    cases_of_finding = []
    for c in range(n_findings):
        rows = np.flatnonzero((finding == c) & np.isfinite(iou))
        order = rows[np.lexsort((names[rows], iou[rows]))]
        n = len(order)
        rank_of_kind = {"best": n - 1, "worst": 0, "median": (n - 1) // 2} if n else {}
        kind_of_rank: dict[int, str] = {}
        for kind, rank in rank_of_kind.items():
            kind_of_rank.setdefault(rank, kind)
        best_first = sorted(kind_of_rank.items(), reverse=True)
        cases_of_finding.append([Case(kind, int(order[rank])) for rank, kind in best_first])
    return cases_of_finding


def surest_predictions(
    score: np.ndarray, predicted: np.ndarray, positive: np.ndarray, finding: np.ndarray, n: int
) -> list[list[Case]]:
    """For each finding the true positive and the false positive with the highest probability, where there is one.

    Args:
      score: float [k]. predicted: bool [k], at the operating point. positive: bool [k], the image's label.
      finding: int [k]. n: number of findings.
    """
    cases_of_finding = []
    for c in range(n):
        cases = []
        for kind, truth in (("true positive", True), ("false positive", False)):
            rows = np.flatnonzero((finding == c) & predicted & (positive == truth))
            if len(rows):
                cases.append(Case(kind, int(rows[score[rows].argmax()])))
        cases_of_finding.append(cases)
    return cases_of_finding
