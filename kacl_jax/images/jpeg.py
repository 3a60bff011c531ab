"""JPEG files (ITU-T T.81, annexes B and G).

A JPEG file has no checksums, and libjpeg invents what is missing and says so nowhere. So this file checks that all
parts are there; a flipped bit inside a part can pass.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from kacl_jax.images.picture import Header, Kind, Unreadable
from kacl_jax.images.tiff_fields import exif_orientation

_END, _SCAN, _RESTARTS, _EXIF = 0xD9, 0xDA, 0xDD, 0xE1
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
# In the data of a scan 0xFF stands before 0, a restart marker or the marker that ends the scan.
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_SCAN_END = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_FILL = b"\xfe" * 64


class _Frame(NamedTuple):
    """Pixels, and for each component its sampling factors, horizontal and vertical."""

    height: int
    width: int
    sampling: dict[int, tuple[int, int]]


class _Segment(NamedTuple):
    """A marker, its parameters, and for a scan the place of its data in the file."""

    marker: int
    parameters: bytes
    start: int
    end: int


def _header(data: bytes) -> Header:
    orientation, interval, frame = 1, 0, None
    missing: set[tuple[int, int]] = (
        set()
    )  # (component, coefficient) that no scan has to its last bit
    for segment in _segments(data):
        if segment.marker == _EXIF and segment.parameters.startswith(b"Exif\0\0"):
            orientation = exif_orientation(segment.parameters[6:])
        elif segment.marker == _RESTARTS:
            interval = int.from_bytes(segment.parameters)
        elif segment.marker in _FRAMES and frame is None:
            frame = _read_frame(segment.parameters)
            missing = {(component, k) for component in frame.sampling for k in range(64)}
        elif segment.marker == _SCAN and frame is not None:
            missing -= _finished_by_scan(segment.parameters)
            _check_restarts(data[segment.start : segment.end], segment.parameters, frame, interval)
    if frame is None:
        raise Unreadable("is damaged (it has no frame)")
    if missing:
        raise Unreadable("is truncated (it lacks a scan)")
    return Header(frame.height, frame.width, orientation, lossy=True)


def _decode(data: bytes) -> np.ndarray:
    """The pixels, by Pillow.

    With more bytes at the end of data that are too short libjpeg invents other pixels; at complete data it does not
    look at these bytes.
    """
    filled, done = [], 0
    for segment in _segments(data):
        if segment.marker == _SCAN:
            scan = _RESTART.sub(rb"%b\g<0>" % _FILL, data[segment.start : segment.end])
            filled += [data[done : segment.start], scan, _FILL]
            done = segment.end
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


def _segments(data: bytes) -> Iterator[_Segment]:
    """The segments up to the end marker.

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
        start = end = at + 2 + (0 if marker in _ALONE else int.from_bytes(data[at + 2 : at + 4]))
        if marker == _SCAN:
            found = _SCAN_END.search(data, start)
            end = found.start() if found else len(data)
        yield _Segment(marker, data[at + 4 : start], start, end)
        at = end
    raise Unreadable("is truncated")


def _read_frame(parameters: bytes) -> _Frame:
    if len(parameters) < 6 or len(parameters) < 6 + 3 * parameters[5]:
        raise Unreadable("is damaged (its frame is not complete)")
    count = parameters[5]
    if count not in (1, 3):
        raise Unreadable("has CMYK colours" if count == 4 else f"has {count} planes")
    components = [parameters[6 + 3 * k : 9 + 3 * k] for k in range(count)]
    sampling = {component: (factors >> 4, factors & 15) for component, factors, _ in components}
    if not all(1 <= factor <= 4 for pair in sampling.values() for factor in pair):
        raise Unreadable("is damaged (its sampling factors)")
    return _Frame(int.from_bytes(parameters[1:3]), int.from_bytes(parameters[3:5]), sampling)


def _components_of_scan(parameters: bytes) -> tuple[int, ...]:
    count = parameters[0] if parameters else 0
    if count == 0 or len(parameters) < 4 + 2 * count:
        raise Unreadable("is damaged (a scan is not complete)")
    return tuple(parameters[1 : 1 + 2 * count : 2])


def _finished_by_scan(parameters: bytes) -> set[tuple[int, int]]:
    """(component, coefficient) whose last bit is in this scan: all of them in a file that is not progressive."""
    components = _components_of_scan(parameters)
    first, last, bits = parameters[-3:]
    lowest_bit = bits & 15
    return {(c, k) for c in components for k in range(first, last + 1) if lowest_bit == 0}


def _check_restarts(scan: bytes, parameters: bytes, frame: _Frame, interval: int) -> None:
    """Counts the restart markers, `interval` blocks apart; without them (0) there is nothing to count."""
    if interval == 0:
        return
    components = _components_of_scan(parameters)
    highest = [max(pair[i] for pair in frame.sampling.values()) for i in (0, 1)]
    own = frame.sampling.get(components[0], (1, 1)) if len(components) == 1 else (1, 1)
    columns, rows = (
        -(-side * factor // (8 * largest))
        for side, factor, largest in zip((frame.width, frame.height), own, highest, strict=True)
    )
    found = [marker[1] & 7 for marker in _RESTART.findall(scan)]
    if found != [k % 8 for k in range(-(-columns * rows // interval) - 1)]:
        raise Unreadable("is damaged (parts of its data are missing)")


KIND = Kind(lambda data: data.startswith(b"\xff\xd8\xff"), _header, _decode)
