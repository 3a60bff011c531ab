"""Reads one image file for everybody, or says why it cannot be read.

Two rules for grey values:
* Training, evaluation and prepared data scale a file to 8 bits, or show it as its DICOM says: `read_image`.
* Radiomics measures a file's own values and scales nothing, as pyradiomics does: `read_grey`.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kacl_jax.images import bmp, dicom, jpeg, png, tiff
from kacl_jax.images.picture import Kind, Unreadable
from kacl_jax.images.tiff_fields import exif_orientation

# The first that matches reads the file.
KINDS: dict[str, Kind] = {"PNG": png.KIND, "JPEG": jpeg.KIND, "TIFF": tiff.KIND, "BMP": bmp.KIND}
FILE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MAX_MEGAPIXELS = 64  # a radiograph of 5000×4000 has 20
_MAX_BYTES_PER_PIXEL = 8  # RGBA in 16 bits, without compression


class BrokenImage(Exception):
    """A file that cannot be read as a grey picture: its `path` and the `reason`, one clause."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason


class Grey8(NamedTuple):
    """A picture in grey levels of 8 bits. pixels: uint8 [h w], 0 black … 255 white. bits: of a value in the file."""

    pixels: np.ndarray
    bits: int


class Picture(NamedTuple):
    """A decoded file, turned as its orientation says. It has no transparent pixel.

    values: [h w], or [h w 3] RGB if the planes differ: uint8, uint16, int32 or float32, as in the file.
    lossy: see `Header`.
    """

    values: np.ndarray
    lossy: bool


def read_picture(path: Path | str, max_megapixels: int = MAX_MEGAPIXELS) -> Picture:
    """The picture in a PNG, JPEG, TIFF or BMP file; the content says which, not the name.

    Looks at the file's type, bytes and header before it decodes a pixel.

    Raises:
        BrokenImage: the file is no regular file, unreadable, truncated, damaged or of no known kind; it has more than
            `max_megapixels` · 10^6 pixels, or more than 8 bytes for each of these; it is an animation, has several
            pages or CMYK colours; or it has transparent pixels, which have no defined grey level.
    """
    try:
        return _decode(_bytes_of(path, max_megapixels), max_megapixels)
    except Unreadable as error:
        raise BrokenImage(path, str(error)) from error


def read_image(path: Path | str, max_megapixels: int = MAX_MEGAPIXELS) -> np.ndarray:
    """The picture as uint8 [h w], 0 black … 255 white: training's rule.

    Fewer than 8 bits span the full range, 16 bits are divided by 257 and rounded; no value is clipped. RGB becomes
    ITU-R 601 luma, as Pillow's `convert('L')`. A DICOM file is shown with its window: `dicom.decode`.

    Raises:
        BrokenImage: as `read_picture`; or the file holds neither 8 nor 16 bits; or a DICOM is no frontal chest X-ray.
        UserError: it is a DICOM file, and the packages that read these are not installed.
    """
    return read_grey8(path, max_megapixels).pixels


def read_grey8(path: Path | str, max_megapixels: int = MAX_MEGAPIXELS) -> Grey8:
    """`read_image`, and how many bits a value had before: 8 or 16; 8 for DICOM. Raises the same."""
    try:
        return _grey8(_bytes_of(path, max_megapixels), max_megapixels)
    except Unreadable as error:
        raise BrokenImage(path, str(error)) from error


def read_size(path: Path | str, max_megapixels: int = MAX_MEGAPIXELS) -> tuple[int, int]:
    """(width, height) in pixels of a picture as it is seen, DICOM included. Reads the header alone.

    Raises:
        BrokenImage: the header cannot be read.
        UserError: it is a DICOM file, and the packages that read these are not installed.
    """
    try:
        data = _bytes_of(path, max_megapixels)
        if dicom.is_dicom(data):
            return dicom.size(data)
        kind = _kind_of(data)
        header = kind.header(data)
        # Pillow turns a TIFF picture while it decodes, so that its Header leaves nothing to be turned.
        orientation = exif_orientation(data) if kind is tiff.KIND else header.orientation
    except Unreadable as error:
        raise BrokenImage(path, str(error)) from error
    sides = (header.width, header.height)
    return sides if orientation < 5 else sides[::-1]


def decode_image(data: bytes, max_megapixels: int = MAX_MEGAPIXELS) -> np.ndarray:
    """`read_image` of a file's bytes. Raises Unreadable where that raises BrokenImage."""
    return _grey8(data, max_megapixels).pixels


def _grey8(data: bytes, max_megapixels: int) -> Grey8:
    if dicom.is_dicom(data):
        return Grey8(dicom.decode(data, max_megapixels).pixels, 8)
    values = _decode(data, max_megapixels).values
    if values.dtype not in (np.uint8, np.uint16):
        raise Unreadable(f"holds {values.dtype} values; save it in 8 or 16 bits")
    return Grey8(to_8_bit(_luma(values)), 8 * values.dtype.itemsize)


def read_bytes(path: Path | str, max_megapixels: int = MAX_MEGAPIXELS) -> bytes:
    """The bytes of an image file of any kind.

    Raises:
        BrokenImage: it is no regular file, empty, unreadable, or has over `max_megapixels` · 8 · 10^6 bytes.
    """
    try:
        return _bytes_of(path, max_megapixels)
    except Unreadable as error:
        raise BrokenImage(path, str(error)) from error


def read_grey(path: Path | str, max_megapixels: int = MAX_MEGAPIXELS) -> np.ndarray:
    """The picture's own grey values [h w], never scaled: uint8, or float32 for any other type in the file.

    Raises:
        BrokenImage: as `read_picture`; or the planes of a coloured picture differ, so that it has no grey value; or
            float32 cannot hold a value of the file.
    """
    values = read_picture(path, max_megapixels).values
    if values.ndim == 3:
        raise BrokenImage(path, "has colours, which have no grey value; save it in grey")
    if values.dtype == np.uint8:
        return values
    grey = values.astype(np.float32)
    if values.dtype.kind != "f" and (grey.astype(np.int64) != values).any():
        raise BrokenImage(path, "has grey values over 2^24, which float32 cannot hold")
    return grey


def _bytes_of(path: Path | str, max_megapixels: int) -> bytes:
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise Unreadable(f"cannot be opened (it is {what})")
        if status.st_size > max_megapixels * 10**6 * _MAX_BYTES_PER_PIXEL:
            limit = f"the limit is max_megapixels={max_megapixels}"
            raise Unreadable(f"is too large ({status.st_size / 1e6:,.0f} MB; {limit})")
        data = Path(path).read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror})") from error
    if not data:
        raise Unreadable("is empty (zero bytes)")
    return data


def _decode(data: bytes, max_megapixels: int) -> Picture:
    if dicom.is_dicom(data):
        raise Unreadable("is a DICOM file; save the grey values that you want to measure as PNG")
    kind = _kind_of(data)
    header = kind.header(data)
    if not 0 < header.height * header.width <= max_megapixels * 10**6:
        size = f"{header.width} x {header.height} pixels"
        limit = f"the limit is max_megapixels={max_megapixels}"
        raise Unreadable(f"is too large ({size}; {limit})")
    pixels = kind.decode(data)
    values = _turn(_merge_equal_planes(_without_opacity(pixels)), header.orientation)
    return Picture(np.ascontiguousarray(values), header.lossy)


def _kind_of(data: bytes) -> Kind:
    kind = next((kind for kind in KINDS.values() if kind.matches(data)), None)
    if kind is None:
        *names, last = KINDS
        raise Unreadable(f"is not a {', '.join(names)} or {last} file")
    return kind


def _without_opacity(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return pixels
    if pixels[..., 3].min() < np.iinfo(pixels.dtype).max:
        raise Unreadable("has transparent pixels")
    return pixels[..., :3]


def _merge_equal_planes(pixels: np.ndarray) -> np.ndarray:
    """[h w] or RGB [h w 3] → [h w] if the three planes are equal."""
    if pixels.ndim == 2:
        return pixels
    red, green, blue = (pixels[..., i] for i in range(3))
    return red if np.array_equal(red, green) and np.array_equal(green, blue) else pixels


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as it is meant to be seen, from how it is stored (EXIF 2.3, tag 274)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _luma(pixels: np.ndarray) -> np.ndarray:
    """[h w] or RGB [h w 3], 8 or 16 bits → [h w] of the same dtype."""
    if pixels.ndim == 2:
        return pixels
    red, green, blue = (pixels[..., i] for i in range(3))
    luma = 19595 * red.astype(np.uint32)  # the weights sum to 2^16, so that 32 bits hold the sum
    luma += 38470 * green.astype(np.uint32)
    luma += 7471 * blue.astype(np.uint32) + 0x8000
    return (luma >> 16).astype(pixels.dtype)


def to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 → uint8: 16-bit values are divided by 257 and rounded; no value is clipped."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
