"""Which images are shown. Pure numpy; k pairs of an image and a finding, as in `locate.Located`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """A pair that is shown: why, and its row among the k."""

    why: str
    row: int


def extremes(
    iou: np.ndarray, finding: np.ndarray, names: np.ndarray, n_findings: int
) -> list[list[Case]]:
    """Per finding the best, the median and the worst of its scored truth boxes by IoU.

    Of an even number the lower of the two in the middle; equal IoUs by name; fewer boxes, fewer cases.

    Args:
      iou: float [k], NaN where no truth box is scored. finding: int [k]. names: str [k], of the images.
    """
    found = []
    for c in range(n_findings):
        rows = np.flatnonzero((finding == c) & np.isfinite(iou))
        order = rows[np.lexsort((names[rows], iou[rows]))]
        n = len(order)
        places = {"best": n - 1, "worst": 0, "median": (n - 1) // 2} if n else {}
        shown: dict[int, str] = {}
        for why, place in places.items():
            shown.setdefault(place, why)
        ranked = sorted(shown.items(), reverse=True)
        found.append([Case(why, int(order[place])) for place, why in ranked])
    return found


def examples(
    score: np.ndarray, predicted: np.ndarray, positive: np.ndarray, finding: np.ndarray, n: int
) -> list[list[Case]]:
    """Per finding the true positive and the false positive with the highest probability, where there is one.

    Args:
      score: float [k]. predicted: bool [k], at the operating point. positive: bool [k], the image's label.
      finding: int [k]. n: number of findings.
    """
    found = []
    for c in range(n):
        cases = []
        for why, truth in (("true positive", True), ("false positive", False)):
            rows = np.flatnonzero((finding == c) & predicted & (positive == truth))
            if len(rows):
                cases.append(Case(why, int(rows[score[rows].argmax()])))
        found.append(cases)
    return found
