"""The images to predict: which ones a command names, and how each becomes grey pixels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kacl_jax.images import dicom, file_names, reader
from kacl_jax.images.picture import Unreadable
from kacl_jax.images.reader import MAX_MEGAPIXELS, BrokenImage
from kacl_jax.runtime.errors import UserError

_MIN_IDENTIFIER = 3  # characters; a shorter one is in too many names by chance
_UID = re.compile(r"\d+(\.\d+){4,}")


class Xray(NamedTuple):
    """An image that was read.

    name: as it stands in the outputs. pixels: uint8 [h w], 0 black … 255 white. notes: what a reader must know of it.
    ids: patient, study and instance of a DICOM, for --keep_ids; empty for other files.
    """

    name: str
    pixels: np.ndarray
    notes: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


class Failed(NamedTuple):
    """An image without a prediction. reason: why, one clause."""

    name: str
    reason: str


class Listed(NamedTuple):
    """An image to predict: its name, relative to the folder or as the list has it, and its file."""

    name: str
    file: Path


def list_images(images: Path, out: Path) -> list[Listed]:
    """All files of a folder and its folders, sorted, without hidden ones; the files that a .txt names; or one file.

    Raises:
      UserError: there is none, one is named twice or as a formula, or `out` lies in the folder.
    """
    if images.is_dir():
        if out.resolve().is_relative_to(images.resolve()):
            raise UserError(f"--out={out} is inside --images={images}; choose another folder")
        listed = _files_of(images)
    elif images.suffix.lower() == ".txt":
        listed = _listed_in(images)
    elif images.exists():
        listed = [Listed(images.name, images)]
    else:
        raise UserError(f"--images={images} does not exist")
    if not listed:
        raise UserError(f"--images={images} names no image")
    for name, _ in listed:
        if wrong := file_names.objection(name):
            raise UserError(f"the image name {name!r} {wrong}; rename the file")
    return listed


def _files_of(folder: Path) -> list[Listed]:
    try:
        paths = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
    except OSError as error:
        raise UserError(f"--images={folder} cannot be read ({error.strerror})") from error
    visible = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    return sorted(Listed(path.as_posix(), folder / path) for path in visible)


def _listed_in(file: Path) -> list[Listed]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"--images={file} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--images={file} is not in UTF-8; save it as UTF-8") from error
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if name and first_line.setdefault(name, number) != number:
            raise UserError(
                f"{file} names {name} in line {first_line[name]} and in line {number}; delete one of them"
            )
    return [Listed(name, file.parent / name) for name in first_line]


def read(
    listed: Listed,
    *,
    any_view: bool = False,
    keep_ids: bool = False,
    max_megapixels: int = MAX_MEGAPIXELS,
) -> Xray:
    """The image in 8 bits, by training's rule or as a DICOM says.

    keep_ids: keep a name that holds an identifier of its DICOM. Otherwise such an image is called dicom_ and the first
    16 hex digits of the BLAKE2b-64 digest of its file.

    Raises:
      BrokenImage: it cannot be read. Its `path` is the image's name in the outputs.
    """
    name = listed.name
    try:
        data = reader.read_bytes(listed.file, max_megapixels)
        if not dicom.is_dicom(data):
            return Xray(name, reader.decode_image(data, max_megapixels))
        if not keep_ids and _names_someone(name, dicom.identifiers(data)):
            name = f"dicom_{hashlib.blake2b(data, digest_size=8).hexdigest()}"
        xray = dicom.decode(data, max_megapixels, any_view=any_view)
    except BrokenImage as error:
        raise BrokenImage(name, error.reason) from error
    except Unreadable as error:
        raise BrokenImage(name, str(error)) from error
    ids = (xray.patient_id, xray.study_uid, xray.instance_uid) if keep_ids else ()
    for wrong in filter(None, map(file_names.objection, ids)):
        raise BrokenImage(name, f"has an identifier that {wrong}; leave out --keep_ids")
    return Xray(name, xray.pixels, xray.notes, ids)


def read_all(images: Sequence[str | Path | np.ndarray], any_view: bool) -> list[Xray]:
    """Paths and arrays of a call in Python. Names keep what they hold: they stay with the caller.

    Raises:
      UserError: one cannot be read, or is no image.
    """
    return [_read_one(image, number, any_view) for number, image in enumerate(images)]


def _read_one(image: str | Path | np.ndarray, number: int, any_view: bool) -> Xray:
    name = f"image {number}"
    try:
        if isinstance(image, str | Path):
            path = Path(image).expanduser()
            return read(Listed(str(image), path), any_view=any_view, keep_ids=True)
        if not isinstance(image, np.ndarray) or image.ndim != 2 or not image.size:
            shape = getattr(image, "shape", type(image).__name__)
            raise BrokenImage(
                name, f"is {shape}; give a path, or an array [h w] of uint8 or uint16"
            )
        if image.dtype not in (np.uint8, np.uint16):
            raise BrokenImage(name, f"is {image.dtype}; give uint8 in 0–255 or uint16 in 0–65535")
        return Xray(name, reader.to_8_bit(image))
    except BrokenImage as error:
        raise UserError(str(error)) from error


def _names_someone(name: str, identifiers: Sequence[str]) -> bool:
    """Whether a file's name holds an identifier of its DICOM, or a UID."""
    lowered = name.lower()
    return bool(_UID.search(name)) or any(
        len(text) >= _MIN_IDENTIFIER and text.lower() in lowered for text in identifiers
    )
