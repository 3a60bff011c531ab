"""A finished run's predictions on its test part, read from predictions.csv and boxes.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.files import file_sha256

# Tables of scores of one form: the network's, those with fusion, and those of fusion's control.
NETWORK, FUSED, CONTROL = "predictions.csv", "predictions_fused.csv", "predictions_control.csv"


@dataclass(frozen=True, eq=False)
class SavedPredictions:
    """The test part of one run, from its files. n images, m truth boxes, c findings."""

    findings: tuple[str, ...]
    images: tuple[str, ...]  # [n]
    patients: np.ndarray  # int64 [n]
    labels: np.ndarray  # int64 [n c]: 1, 0, or −1 where it is unknown
    scores: np.ndarray  # float64 [n c]
    box_image: np.ndarray  # int64 [m], a row of `images`
    box_finding: np.ndarray  # int64 [m]
    iou: np.ndarray  # float64 [m], of the predicted box
    # float64 [m], of the box of prior_map, which uses no image; NaN where there is none.
    prior_map_iou: np.ndarray


def read_predictions(
    workdir: Path, findings: Sequence[str], table: str = NETWORK
) -> SavedPredictions:
    """A table of scores and boxes.csv of a run, test part only.

    Raises:
      UserError: a file is missing, or a row or column does not fit.
    """
    try:
        rows = [row for row in _read_csv(workdir / table) if row["split"] == "test"]
        boxes = [row for row in _read_csv(workdir / "boxes.csv") if row["iou"]]
        image_row = {row["image"]: i for i, row in enumerate(rows)}
        finding_column = {name: c for c, name in enumerate(findings)}
        predictions = SavedPredictions(
            findings=tuple(findings),
            images=tuple(image_row),
            patients=_number_patients([row["patient"] for row in rows]),
            labels=np.array([[int(row[f"label_{f}"] or -1) for f in findings] for row in rows]),
            scores=np.array([[float(row[f"prob_{f}"]) for f in findings] for row in rows]),
            box_image=np.array([image_row[row["image"]] for row in boxes], np.int64),
            box_finding=np.array([finding_column[row["finding"]] for row in boxes], np.int64),
            iou=np.array([float(row["iou"]) for row in boxes]),
            prior_map_iou=np.array([float(row["prior_map_iou"] or math.nan) for row in boxes]),
        )
        if not (
            rows and np.isfinite(predictions.scores).all() and np.isfinite(predictions.iou).all()
        ):
            raise ValueError("no test image, or a value that is not finite")
        if len(image_row) < len(rows):
            raise ValueError("an image twice")
        return predictions
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{table} or boxes.csv in {workdir} has a row or column that does not fit ({error}); write them "
            "again with the run's own command and --mode=eval"
        ) from error


def _number_patients(names: list[str]) -> np.ndarray:
    """int64 [n]: the numbers themselves, as NIH has them; of other names the place in their order."""
    if all(name.isdecimal() and len(name) < 19 for name in names):
        return np.array(names, np.int64)
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def check_digests(workdir: Path, digests: Mapping[str, str] | None) -> None:
    """Raises UserError if a table is not the file that results.json was computed with.

    digests: of results.json; None in the results of earlier versions, which say nothing.
    """
    for name, digest in (digests or {}).items():
        try:
            found = file_sha256(workdir / name)
        except OSError as error:
            raise UserError(
                f"{workdir / name} cannot be read ({error.strerror}); restore it"
            ) from error
        if found != digest:
            raise UserError(
                f"{workdir / name} was changed after results.json was written. Restore it, or write both again with "
                "the run's own command and --mode=eval"
            )
