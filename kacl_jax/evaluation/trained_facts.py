"""What a finished run keeps beside its checkpoints so that its network can be applied to other images.

calibration.json      Platt scaling of each finding
familiarity.json      the distance to the training images
map_center.json       the mean map that is subtracted from every map, with cam.center=mean
training_images.csv   image,patient,part,pixels: the images it was trained (train) and tuned (val) on

Each JSON file names the step of its checkpoint and has a digest of its content.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.evaluation.familiarity import Familiarity
from kacl_jax.evaluation.platt import PlattScaling
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.sealed_json import decode_float32, encode_float32, read_sealed, write_sealed

_COLUMNS = ("image", "patient", "part", "pixels")  # of training_images.csv
_FIX = "write it again with the run's own command and --mode=eval"


@dataclass(frozen=True)
class TrainingImages:
    """The images of the training and the validation part. name_of_pixels: by `inference.hash_pixels` in hex."""

    names: frozenset[str]
    patients: frozenset[str]
    name_of_pixels: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class TrainedFacts:
    """scalings: by finding. map_center: float32 [c u v], None where maps are not centred."""

    scalings: Mapping[str, PlattScaling]
    familiarity: Familiarity
    map_center: np.ndarray | None
    training_images: TrainingImages


def write_trained_facts(
    workdir: Path,
    *,
    step: int,
    scalings: Mapping[str, PlattScaling],
    familiarity: Familiarity,
    map_center: np.ndarray | None,
    training_images: Sequence[tuple[str, str, str, str]],
) -> None:
    """step: of the checkpoint. training_images: rows of training_images.csv."""
    by_finding = {name: dataclasses.asdict(scaling) for name, scaling in scalings.items()}
    write_sealed(workdir / "calibration.json", {"step": step, "findings": by_finding})
    lower = np.tril_indices(len(familiarity.mean))
    write_sealed(
        workdir / "familiarity.json",
        {
            "step": step,
            "threshold": familiarity.threshold,
            "scale": familiarity.scale,
            "mean": encode_float32(familiarity.mean),
            "factor": encode_float32(familiarity.factor[lower]),
        },
    )
    if map_center is not None:
        content = {
            "step": step,
            "shape": list(map_center.shape),
            "values": encode_float32(map_center),
        }
        write_sealed(workdir / "map_center.json", content)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *training_images])
    files.write_text(workdir / "training_images.csv", text.getvalue())


def read_trained_facts(
    workdir: Path, *, step: int, findings: Sequence[str], centred: bool
) -> TrainedFacts:
    """The facts of the checkpoint of `step`. centred: whether maps are.

    Raises:
      UserError: a file is missing, damaged, or belongs to another checkpoint.
    """
    calibration = _read(workdir / "calibration.json", step)
    familiarity = _read(workdir / "familiarity.json", step)
    center = _read(workdir / "map_center.json", step) if centred else None
    try:
        by_finding = calibration["findings"]
        return TrainedFacts(
            scalings={name: PlattScaling(**by_finding[name]) for name in findings},
            familiarity=_to_familiarity(familiarity),
            map_center=None
            if center is None
            else decode_float32(center["values"]).reshape(center["shape"]),
            training_images=_read_training_images(workdir / "training_images.csv"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"calibration.json, familiarity.json or map_center.json in {workdir} was written by another version "
            f"({error!r}); {_FIX}"
        ) from error


def _read(path: Path, step: int) -> dict[str, Any]:
    content = read_sealed(path, _FIX)
    if content.get("step") != step:
        raise UserError(
            f"{path} belongs to the checkpoint of step {content.get('step')}, but the run's best step is {step}; "
            f"{_FIX}"
        )
    return content


def _to_familiarity(content: Mapping[str, Any]) -> Familiarity:
    mean = decode_float32(content["mean"])
    factor = np.zeros((len(mean), len(mean)), np.float32)
    factor[np.tril_indices(len(mean))] = decode_float32(content["factor"])
    return Familiarity(float(content["scale"]), mean, factor, float(content["threshold"]))


def _read_training_images(path: Path) -> TrainingImages:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file, strict=True)
        if tuple(header) != _COLUMNS or any(len(row) != len(_COLUMNS) for row in rows):
            raise ValueError(f"not rows of {','.join(_COLUMNS)}")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); {_FIX}") from error
    return TrainingImages(
        frozenset(name for name, *_ in rows),
        frozenset(patient for _, patient, *_ in rows),
        {pixels: name for name, *_, pixels in rows},
    )
