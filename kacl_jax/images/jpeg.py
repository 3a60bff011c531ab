"""JPEG files (ITU-T T.81, annex B)."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from kacl_jax.images.picture import Header, Kind, Unreadable
from kacl_jax.images.tiff_fields import exif_orientation

_START, _END, _SCAN, _EXIF = 0xD8, 0xD9, 0xDA, 0xE1
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
# In the data of a scan 0xFF stands before 0, a restart marker or the marker that ends the scan.
_SCAN_END = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_FILL = b"\x5a\xa5" * 32


def _header(data: bytes) -> Header:
    orientation, frame = 1, None
    for marker, start, end in _segments(data):
        if marker == _EXIF and data.startswith(b"Exif\0\0", start):
            orientation = exif_orientation(data[start + 6 : end])
        if marker in _FRAMES:
            frame = data[start:end]
    if frame is None or len(frame) < 6:
        raise Unreadable("is damaged (it has no frame)")
    if frame[5] not in (1, 3):
        raise Unreadable(f"has {'CMYK colours' if frame[5] == 4 else f'{frame[5]} planes'}")
    return Header(int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5]), orientation, lossy=True)


def _decode(data: bytes) -> np.ndarray:
    """The pixels, by Pillow.

    libjpeg invents the end of a scan that is too short, and says so nowhere. With more bytes at the end of each scan
    it invents other pixels; where the scans are complete it does not look at these bytes.
    """
    filled, done = [], 0
    for marker, _, end in _segments(data):
        if marker == _SCAN:
            filled += [data[done:end], _FILL]
            done = end
    pixels = _decode_by_pillow(data)
    if not np.array_equal(pixels, _decode_by_pillow(b"".join([*filled, data[done:]]))):
        raise Unreadable("is damaged (its data end before the picture)")
    return pixels


def _decode_by_pillow(data: bytes) -> np.ndarray:
    try:
        with JpegImageFile(io.BytesIO(data)) as image:
            return np.asarray(image)
    except Exception as error:  # Pillow does not say which ones damaged files raise
        raise Unreadable(f"cannot be decoded ({error})") from error


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end of what follows it) up to the end marker; the data of a scan count as part of it.

    Raises:
        Unreadable: there is no end marker, or another picture follows it.
    """
    at = 2
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            raise Unreadable("is damaged (a part does not begin where the one before it ends)")
        marker = data[at + 1]
        if marker == 0xFF:  # one more byte of filling
            at += 1
            continue
        if marker == _END:
            if data[at + 2 :].lstrip(b"\0").startswith(b"\xff\xd8\xff"):
                raise Unreadable("holds more than one picture")
            return
        end = at + 2 if marker in _ALONE else at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == _SCAN:
            found = _SCAN_END.search(data, end)
            end = found.start() if found else len(data)
        yield marker, min(at + 4, end), end
        at = end
    raise Unreadable("is truncated")


KIND = Kind(lambda data: data.startswith(b"\xff\xd8\xff"), _header, _decode)
