"""Reads one PNG file as a grey uint8 picture, or says why it cannot be read."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_MAX_PIXELS = 1 << 27  # more than any radiograph has; a malicious header could ask for terabytes


class BrokenImage(Exception):
    """A file that cannot be read as a grey picture: its `path` and the `reason`, one clause."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason


def read_image(path: Path | str) -> np.ndarray:
    """The picture in a PNG file as uint8 [h w], 0 black … 255 white.

    Grey of 1, 2, 4, 8 bits (fewer bits span the full range) and 16 bits (divided by 257, rounded),
    palette, RGB (ITU-R 601 luma, as Pillow's `convert('L')`), and grey or RGB with an opaque alpha.

    Raises:
        BrokenImage: the file is unreadable, truncated, damaged or not a PNG; it has more than 2^27 pixels; or it has
            transparent pixels, which have no defined grey level.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BrokenImage(path, f"cannot be opened ({error.strerror})") from error
    chunks, reason = _pixel_chunks(data)
    if reason:
        raise BrokenImage(path, reason)
    try:
        pixels = cv2.imdecode(np.frombuffer(b"".join(chunks), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BrokenImage(path, f"cannot be decoded ({error.err})") from error
    if pixels is None:
        raise BrokenImage(path, "its pixels cannot be decoded")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        opaque = 255 if pixels.dtype == np.uint8 else 65535
        if pixels[..., 3].min() < opaque:
            raise BrokenImage(path, "has transparent pixels")
        pixels = pixels[..., :3]
    return _to_8_bit(_to_grey(pixels))


def _pixel_chunks(data: bytes) -> tuple[list[bytes | memoryview], str]:
    """The PNG chunks that the pixels need, and '' or the reason why these bytes are not one complete PNG file.

    Some decoders fill a truncated picture with grey and report no error, so this checks the length and the checksum
    of every chunk, which takes less than 1 ms. It leaves out colour profiles, times and texts: NIH's RGBA files have
    a profile that makes libpng print a warning on stderr at every read.
    """
    if not data:
        return [], "is empty (zero bytes)"
    if not data.startswith(_SIGNATURE):
        return [], "is not a PNG file"
    view = memoryview(data)
    start = len(_SIGNATURE)
    chunks: list[bytes | memoryview] = [_SIGNATURE]
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(view[start : start + 4])
        kind = bytes(view[start + 4 : start + 8])
        if end > len(data):
            break
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            return [], f"is damaged (checksum of its {kind.decode('latin-1')!r} part is wrong)"
        if kind == b"IHDR":
            width, height = (int.from_bytes(view[start + i : start + i + 4]) for i in (8, 12))
            if width * height > _MAX_PIXELS:
                return [], f"is too large ({width} x {height} pixels)"
        if kind in _PIXEL_CHUNKS:
            chunks.append(view[start:end])
        if kind == b"IEND":
            return chunks, ""
        start = end
    return [], "is truncated"


def _to_grey(pixels: np.ndarray) -> np.ndarray:
    """[h w] or BGR [h w 3], 8 or 16 bits → [h w] of the same dtype."""
    if pixels.ndim == 2:
        return pixels
    blue, green, red = (pixels[..., i] for i in range(3))
    if np.array_equal(blue, green) and np.array_equal(green, red):
        return np.ascontiguousarray(blue)
    luma = 19595 * red.astype(np.uint64) + 38470 * green.astype(np.uint64)
    luma += 7471 * blue.astype(np.uint64) + 0x8000
    return (luma >> 16).astype(pixels.dtype)


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """Scales 16-bit values to 8 bits; clips no value."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
