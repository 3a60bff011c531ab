"""PNG files (W3C PNG, third edition)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import cv2
import numpy as np

from kacl_jax.images.picture import Header, Kind, Unreadable
from kacl_jax.images.tiff_fields import exif_orientation

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_GREY = 0  # the colour type


def _header(data: bytes) -> Header:
    """Checks the length and the checksum of every chunk, which takes less than 1 ms.

    libpng fills a truncated picture with grey and reports no error.
    """
    orientation, size = 1, None
    for kind, chunk in _chunks(data):
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
            raise Unreadable(
                f"is damaged (checksum of its {kind.decode('latin-1')!r} part is wrong)"
            )
        if size is None:
            if kind != b"IHDR" or len(chunk) != 25:
                raise Unreadable("is damaged (it does not begin with its 'IHDR' part)")
            size = (int.from_bytes(chunk[12:16]), int.from_bytes(chunk[8:12]))
        if kind == b"acTL":
            raise Unreadable("is an animation")
        if kind == b"eXIf":
            orientation = exif_orientation(bytes(chunk[8:-4]))
        if kind == b"IEND":
            return Header(*size, orientation)
    raise Unreadable("is truncated")


def _decode(data: bytes) -> np.ndarray:
    """The pixels, by cv2.

    It gets only the chunks that the pixels need: NIH's RGBA files have a colour profile that makes libpng print a
    warning on stderr at every read.
    """
    chunks = [(kind, chunk) for kind, chunk in _chunks(data) if kind in _PIXEL_CHUNKS]
    try:
        encoded = np.frombuffer(b"".join([_SIGNATURE, *(chunk for _, chunk in chunks)]), np.uint8)
        pixels = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise Unreadable(f"cannot be decoded ({error.err})") from error
    if pixels is None:
        raise Unreadable("has pixels that cannot be decoded")
    bits, colour_type = chunks[0][1][16:18]
    see_through = dict(chunks).get(b"tRNS")
    if see_through is not None and colour_type == _GREY:  # cv2 ignores the grey that is transparent
        level = int.from_bytes(see_through[8:10])
        if (pixels == (level if bits >= 8 else level * (255 // (2**bits - 1)))).any():
            raise Unreadable("has transparent pixels")
    return pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, whole chunk) of each complete chunk, up to the end chunk."""
    view = memoryview(data)
    start = len(_SIGNATURE)
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(view[start : start + 4])
        kind = bytes(view[start + 4 : start + 8])
        if end > len(data):
            return
        yield kind, view[start:end]
        if kind == b"IEND":
            return
        start = end


KIND = Kind(lambda data: data.startswith(_SIGNATURE), _header, _decode)
