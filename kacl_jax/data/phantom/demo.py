"""The embedded demo set: a procedural chest phantom on disk in NIH's own layout.

It replaces NIH's X-rays where they are not available; all code after the reader is the same for both.
`anatomy` has the body, `film` the X-ray, `findings` the signs and their boxes. This module plans
patients and studies at random, renders the images and writes the files.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from kacl_jax.data.findings import FINDINGS_8
from kacl_jax.data.phantom import anatomy, film, findings
from kacl_jax.data.phantom.anatomy import Anatomy, Frame, Pose
from kacl_jax.data.phantom.findings import Finding
from kacl_jax.data.records import to_nih_pixels
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError

DRAWING_VERSION = (
    2  # increase it when any picture changes, so that no old set on disk is taken for a new one
)
MANIFEST_FILE = "phantom.json"
# The main finding of each pair of patients, in turn, so that small sets have every finding too. None: healthy.
FINDING_DECK = (
    "Infiltration", None, "Effusion", "Nodule", None, "Cardiomegaly", "Pneumothorax", None,
    "Atelectasis", "Mass", None, "Pneumonia", None, "Infiltration", "Effusion", None,
    "Atelectasis", "Nodule", None, "Cardiomegaly", None, "Mass", "Pneumonia", None, "Pneumothorax",
)  # fmt: skip
BOXED_SHARE = 0.75  # share of a test image's findings that get a box in the CSV
ENTRY_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


@dataclass(frozen=True)
class Study:
    """Everything that determines one image."""

    name: str
    patient: int
    follow_up: int
    anatomy: Anatomy
    view: str  # 'PA' | 'AP'
    pose: Pose
    exposure: film.Exposure
    findings: tuple[Finding, ...]
    findings_with_box: tuple[str, ...]  # findings whose box is in BBox_List_2017.csv
    seed: tuple[int, ...]


@dataclass(frozen=True)
class _Patient:
    """What all studies of a patient have in common."""

    number: int
    anatomy: Anatomy
    shift: tuple[float, float]
    scale: float
    portable: bool  # most of the films are taken in bed
    chronic: tuple[Finding, ...]


def plan_patient(number: int, seed: int) -> tuple[Study, ...]:
    """All studies of one patient (numbered from 1); depends on nothing but the two numbers."""
    rng = np.random.default_rng([seed, number])
    patient = _Patient(
        number=number,
        anatomy=anatomy.draw_anatomy(rng),
        shift=(rng.normal(0, 0.02), rng.normal(0.01, 0.025)),
        scale=rng.uniform(0.92, 1.24),
        portable=bool(rng.random() < 0.35),
        chronic=_chronic_findings(rng, FINDING_DECK[(number // 2) % len(FINDING_DECK)]),
    )
    count = int(min(rng.geometric(0.45) + (rng.random() < 0.4), 7))
    return tuple(_plan_study(patient, follow_up, seed) for follow_up in range(count))


def is_test_patient(number: int) -> bool:
    """Whether a patient is in the official test list."""
    return number % 2 == 0


def _chronic_findings(rng: np.random.Generator, main: str | None) -> tuple[Finding, ...]:
    if main is None:
        return ()
    count = int(rng.choice([0, 1, 2], p=[0.5, 0.35, 0.15]))
    secondary = rng.permutation([name for name in FINDINGS_8 if name != main])[:count]
    # mostly in opposite lungs, so that one finding seldom hides another
    side = int(rng.choice(anatomy.SIDES))
    sides = (side, -side if rng.random() < 0.8 else side, int(rng.choice(anatomy.SIDES)))
    return tuple(
        Finding(str(name), float(rng.uniform(0.15, 1)), side, int(rng.integers(2**31)))
        for name, side in zip((main, *secondary), sides, strict=False)
    )


def _plan_study(patient: _Patient, follow_up: int, seed: int) -> Study:
    rng = np.random.default_rng([seed, patient.number, follow_up])
    portable = patient.portable != (rng.random() < 0.2)
    study_findings = tuple(
        replace(f, severity=float(np.clip(f.severity + rng.normal(0, 0.12), 0.05, 1)))
        for f in patient.chronic
        if rng.random() < 0.85
    )
    rise = rng.uniform(0.02, 0.07) if portable else rng.uniform(-0.005, 0.015)
    shift = np.asarray(patient.shift) + rng.normal(0, 0.012, 2)
    is_test = is_test_patient(patient.number)
    return Study(
        name=f"{patient.number:08d}_{follow_up:03d}.png",
        patient=patient.number,
        follow_up=follow_up,
        anatomy=anatomy.raise_diaphragm(patient.anatomy, rise),
        view="AP" if portable else "PA",
        pose=Pose(
            rotation=rng.normal(0, 2.5 if portable else 1.2),
            shift=(float(shift[0]), float(shift[1])),
            scale=patient.scale * rng.uniform(0.98, 1.02) * (1.04 if portable else 1.0),
        ),
        exposure=film.draw_exposure(rng, portable),
        findings=study_findings,
        findings_with_box=tuple(
            f.name for f in study_findings if is_test and rng.random() < BOXED_SHARE
        ),
        seed=(seed, patient.number, follow_up),
    )


def render(
    study: Study, size: int, *, without: tuple[str, ...] = ()
) -> tuple[np.ndarray, dict[str, tuple[float, float, float, float]]]:
    """Image uint8 [size size] and the box of each visible finding (fractions, half-open).

    `without` leaves findings out; body, exposure and noise stay the same.
    """
    a, frame = study.anatomy, Frame(size, study.pose)
    portable = study.view == "AP"
    visible = [f for f in study.findings if f.name not in without]
    ratio = a.heart_ratio + (0.03 if portable else 0.0)
    boxes = {}
    for finding in visible:
        if finding.name == "Cardiomegaly":
            ratio = findings.cardiomegaly_ratio(finding) + (0.03 if portable else 0.0)
            boxes[finding.name] = findings.heart_box(a, frame, ratio)
    chest = film.draw_chest(a, frame, heart_ratio=ratio, raised_arms=not portable)
    air_left = np.ones((size, size), np.float32)
    lucency, lines = np.zeros_like(air_left), np.zeros_like(air_left)
    for finding in visible:
        if finding.name != "Cardiomegaly":
            sign = findings.draw_finding(finding, a, frame, chest)
            boxes[finding.name] = sign.box
            air_left *= 1 - sign.opacification
            lucency = np.maximum(lucency, sign.lucency)
            lines += sign.lines
    air = chest.air * air_left * (1 + 0.4 * lucency)
    markings = chest.markings * (1 - lucency) * (0.4 + 0.6 * air_left)
    opacity = chest.rest - film.LUNG_AIR_OPACITY * air + markings + lines
    rng = np.random.default_rng([*study.seed, 1])
    opacity = opacity + film.draw_devices(rng, frame, a, portable)
    marker = film.draw_marker(rng, size, portable)
    return film.develop(opacity, marker, study.exposure, [*study.seed, 2]), boxes


def write_demo_set(root: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes the set of configs/demo.py: 1,174 images of 470 patients, 45 MB, in half a minute."""
    write_phantom(root, patients=470, size=256, seed=1, progress=progress)


def write_phantom(
    root: Path,
    *,
    patients: int,
    size: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a phantom set in NIH's layout: images/, Data_Entry_2017.csv, BBox_List_2017.csv, both lists.

    The same arguments give the same bytes. `root` gets its name only when the set is complete; a root
    that already holds the same set is not changed. `progress` is called with (images done, all images).

    Raises:
        UserError: `root` holds anything else, or a number is out of range.
    """
    if patients < 2 or size < 64 or seed < 0:
        raise UserError(
            f"The phantom needs patients >= 2, size >= 64 and seed >= 0; "
            f"got patients={patients}, size={size}, seed={seed}."
        )
    root = Path(root).absolute()
    manifest = {"drawing": DRAWING_VERSION, "patients": patients, "size": size, "seed": seed}
    if _holds_same_set(root, manifest):
        return
    partial = root.with_name(f".{root.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_files(partial, patients, size, seed, progress)
        (partial / MANIFEST_FILE).write_text(json.dumps(manifest) + "\n", encoding="utf-8")
        try:
            partial.replace(root)
        except OSError:
            # another process may have finished the same set meanwhile
            if not _holds_same_set(root, manifest):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _holds_same_set(root: Path, manifest: dict[str, int]) -> bool:
    """Whether `root` holds this set; False if it is empty or missing, UserError if it holds something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    manifest_path = root / MANIFEST_FILE
    if not manifest_path.is_file():
        raise UserError(f"{root} holds other files; name an empty or new folder for the phantom.")
    existing = files.read_json(manifest_path)
    if existing != manifest:
        raise UserError(
            f"{root} holds another phantom ({existing} instead of {manifest}); remove it or name a new "
            f"folder."
        )
    return True


def _write_files(
    folder: Path,
    patients: int,
    size: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    studies = [s for p in range(1, patients + 1) for s in plan_patient(p, seed)]
    (folder / "images").mkdir()
    box_rows: list[list[str]] = []
    for done, study in enumerate(studies, 1):
        image, boxes = render(study, size)
        success, png = cv2.imencode(".png", image)
        if not success:
            raise OSError(f"cv2 could not encode {study.name}")
        (folder / "images" / study.name).write_bytes(png.tobytes())
        for name in study.findings_with_box:
            label = "Infiltrate" if name == "Infiltration" else name
            box = to_nih_pixels(np.asarray(boxes[name], np.float64))
            box_rows.append([study.name, label, *(f"{float(x):.6f}" for x in box), "", "", ""])
        if progress is not None:
            progress(done, len(studies))
    _write_tables(folder, studies, box_rows, size)


def _write_tables(folder: Path, studies: list[Study], box_rows: list[list[str]], size: int) -> None:
    with (folder / "Data_Entry_2017.csv").open("w", encoding="utf-8", newline="") as file:
        file.write(ENTRY_HEADER + "\n")
        writer = csv.writer(file, lineterminator="\n")
        spacing = round(0.143 * 2500 / size, 6)
        for s in studies:
            labels = "|".join(sorted(f.name for f in s.findings)) or "No Finding"
            person = [s.patient, s.anatomy.age, s.anatomy.sex]
            writer.writerow(
                [s.name, labels, s.follow_up, *person, s.view, size, size, spacing, spacing]
            )
    with (folder / "BBox_List_2017.csv").open("w", encoding="utf-8", newline="") as file:
        file.write(BOX_HEADER + "\n")
        csv.writer(file, lineterminator="\n").writerows(box_rows)
    for name, test in (("train_val_list.txt", False), ("test_list.txt", True)):
        names = [s.name for s in studies if is_test_patient(s.patient) is test]
        (folder / name).write_text("\n".join(names), encoding="utf-8")
