"""The outputs of a network for many images, and the selection of those that a table needs.

Axes: m images with outputs · n selected images · c findings · u v map cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from kacl_jax.data.records import Records


@dataclass(frozen=True, eq=False)
class Outputs:
    """A network's outputs for m images, in any order.

    image_id: int [m], distinct. logits: float32 [m c]. maps: float32 [m c u v], the raw class maps
    (centred if cam.center is set) in the frame of the original image; None if they were not
    computed.
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
        """float32 [m c u v]; raises ValueError if they were not computed."""
        if self.maps is None:
            raise ValueError("localization needs the class maps")
        return self.maps

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Row numbers of the images `ids`, ascending by id; images without outputs are omitted."""
        order = np.argsort(self.image_id)
        return order[np.isin(self.image_id[order], ids)]


def probabilities(outputs: Outputs, rows: np.ndarray, records: Records) -> np.ndarray:
    """Probabilities float64 [rows c]: those of predictions.csv, from which all tables are computed.

    Raises ValueError on a logit that is not finite.
    """
    probability = expit(outputs.logits[rows].astype(np.float64))
    if not np.isfinite(probability).all():
        row, finding = np.argwhere(~np.isfinite(probability))[0]
        name = records.names[outputs.image_id[rows[row]]]
        raise ValueError(f"the logit of {records.findings[finding]} is not finite for {name}")
    return probability


class LabelledScores(NamedTuple):
    """Probabilities, labels and patients of n images, ascending by image id."""

    image_id: np.ndarray  # int [n]
    probability: np.ndarray  # float64 [n c]
    labels: np.ndarray  # int8 [n c]: 1, 0, or −1 where it is unknown
    patients: np.ndarray  # int64 [n]


def labelled_scores(outputs: Outputs, records: Records, ids: np.ndarray) -> LabelledScores:
    """Scores and labels of those images among `ids` that have outputs."""
    rows = outputs.rows(ids)
    image_id = outputs.image_id[rows]
    return LabelledScores(
        image_id,
        probabilities(outputs, rows, records),
        records.labels[image_id],
        records.patients[image_id],
    )
