"""Windows bitmaps without opacity."""

from __future__ import annotations

import struct

import cv2
import numpy as np

from kacl_jax.images.picture import Header, Kind, Unreadable


def _header(data: bytes) -> Header:
    try:
        size, width, height, _, bits = struct.unpack_from("<IiiHH", data, 14)
    except struct.error as error:
        raise Unreadable("is truncated") from error
    if size < 40 or width < 1 or height == 0:
        raise Unreadable("is damaged (its header)")
    if bits > 24:
        raise Unreadable("may have opacity (32 bits); save it in 24 bits, or as PNG")
    return Header(abs(height), width)


def _decode(data: bytes) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise Unreadable(f"cannot be decoded ({error.err})") from error
    if pixels is None:
        raise Unreadable("has pixels that cannot be decoded, or is truncated")
    return pixels if pixels.ndim == 2 else pixels[..., ::-1]


KIND = Kind(lambda data: data.startswith(b"BM"), _header, _decode)
