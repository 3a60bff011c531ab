"""Mutations of TIFF files: by tag and by bit. They have no checksum, so another decoder says what may come out."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzz import formats
from benchmarks.fuzz.formats import DEFLATE, NONE, PACKBITS, tiff
from benchmarks.fuzz.scene import Kind, Mutant, Random, file_kind


def _mutant(
    what: str, data: bytes, pictures: Sequence[np.ndarray] = (), may_refuse: bool = True
) -> Mutant:
    return Mutant(what, data, pictures, may_refuse, ".tif")


def harmless(random: Random, pixels: np.ndarray) -> Mutant:
    if random.random() < 0.15:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "TIFF", compression="tiff_lzw")
        return _mutant("LZW", out.getvalue(), [pixels], may_refuse=False)
    compression = int(random.choice([NONE, DEFLATE, PACKBITS]))
    order, tile = str(random.choice(["<", ">"])), int(random.choice([0, 0, 0, 16, 64]))
    options: dict[str, Any] = {
        "order": order,
        "compression": compression,
        "rows_per_strip": int(random.choice([1, 5, 1 << 16])),
        "tile": tile,
        "predictor": bool(compression == DEFLATE and random.random() < 0.5),
        "directory_first": bool(random.random() < 0.5),
    }
    cube = np.stack([pixels] * 3, -1) if random.random() < 0.15 else pixels
    what, data = f"{cube.shape} {options}", tiff([cube], **options)
    # Colours of 16 bits are refused by name, even where the planes are equal: Pillow cannot read them.
    return _mutant(what, data, [pixels], may_refuse=cube.ndim == 3 and pixels.dtype == np.uint16)


def _plain(random: Random, pixels: np.ndarray, **more: Any) -> bytes:
    return tiff(
        [pixels],
        order=str(random.choice(["<", ">"])),
        compression=int(random.choice([NONE, DEFLATE])),
        rows_per_strip=int(random.choice([7, 1 << 16])),
        directory_first=bool(random.random() < 0.5),
        **more,
    )


def truncated(random: Random, pixels: np.ndarray) -> Mutant:
    data = _plain(random, pixels)
    while len(data) > 1 and data[-1] == 0:  # what pads the end belongs to nothing
        data = data[:-1]
    cut = int(random.integers(0, len(data) - 4))
    return _mutant(f"{cut} of {len(data)} bytes", data[:cut])


def bit(random: Random, pixels: np.ndarray) -> Mutant:
    data = bytearray(_plain(random, pixels))
    place = int(random.integers(0, len(data)))
    data[place] ^= 1 << int(random.integers(0, 8))
    return _mutant(f"bit at byte {place}", bytes(data), _readings(bytes(data), pixels))


def tag(random: Random, pixels: np.ndarray) -> Mutant:
    """One tag has another value."""
    number = int(random.choice([256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 317, 339]))
    value = int(random.choice([0, 1, 2, 3, 4, 5, 8, 16, 32, 255, 65535]))
    data = _plain(random, pixels, tags={number: [value]})
    return _mutant(f"tag {number} is {value}", data, _readings(data, pixels))


def _readings(data: bytes, pixels: np.ndarray) -> list[np.ndarray]:
    """What Pillow reads, as it is and inverted (white may be 0), and the true picture."""
    top = np.iinfo(pixels.dtype).max
    found = [p for p in formats.by_pillow(data) if p.ndim == 2]
    inverted = [(top - p).astype(p.dtype) for p in found if p.dtype == pixels.dtype]
    return [*found, *inverted, pixels]


def pages(random: Random, pixels: np.ndarray) -> Mutant:
    return _mutant("2 pages", tiff([pixels, pixels[::-1]], order=str(random.choice(["<", ">"]))))


def transparent(random: Random, pixels: np.ndarray) -> Mutant:
    top = np.iinfo(pixels.dtype).max
    alpha = np.where(pixels > np.median(pixels), 0, top).astype(pixels.dtype)
    if (alpha == top).all():
        alpha[: len(alpha) // 2] = 0
    planes = int(random.choice([1, 3]))
    return _mutant(f"{planes} planes and opacity", tiff([np.dstack([pixels] * planes + [alpha])]))


def colour(random: Random, pixels: np.ndarray) -> Mutant:
    data = tiff([np.stack([pixels, pixels[::-1], pixels[:, ::-1]], -1)], compression=DEFLATE)
    return Mutant("RGB", data, suffix=".tif", for_reader=formats.by_pillow(data))


def sorts(random: Random, pixels: np.ndarray) -> Mutant:
    """Values of another sort: a sentence, or the file's own values."""
    ways: dict[str, np.ndarray] = {
        "float32": pixels.astype(np.float32) / 2,
        "int16": pixels.astype(np.int16) - 1000,
        "uint32": pixels.astype(np.uint32) * 10,
        "float64": pixels.astype(np.float64) * 10,
    }
    way = str(random.choice([*ways, "white is 0", "BigTIFF"]))
    if way in ways:
        return _mutant(way, tiff([ways[way]]), [ways[way]])
    if way == "white is 0":
        top = np.iinfo(pixels.dtype).max
        return _mutant(
            way, tiff([pixels], tags={262: [0]}), [pixels, (top - pixels).astype(pixels.dtype)]
        )
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "TIFF", big_tiff=True)
    return _mutant(way, out.getvalue(), [pixels])


def soft(random: Random, pixels: np.ndarray) -> Mutant:
    """A mask of float values must be refused."""
    return _mutant("float mask", tiff([pixels.astype(np.float32) / np.float32(pixels.max())]))


def huge(random: Random, pixels: np.ndarray) -> Mutant:
    side = int(random.choice([60000, 2**31 - 1, 2**32 - 1]))
    data = bytearray(tiff([pixels], tags={256: [side], 257: [side]}))
    assert struct.pack("<I", side) in data
    return _mutant(f"header of {side} px", bytes(data))


KINDS: dict[str, Kind] = {
    "tiff_harmless": file_kind(harmless, ("image", "mask")),
    "tiff_truncated": file_kind(truncated),
    "tiff_bit": file_kind(bit, whole_may_refuse=True),
    "tiff_tag": file_kind(tag, whole_may_refuse=True),
    "tiff_pages": file_kind(pages),
    "tiff_transparent": file_kind(transparent),
    "tiff_colour": file_kind(colour, ("image", "reader")),
    "tiff_sorts": file_kind(sorts, ("image",)),
    "tiff_float_mask": file_kind(soft, ("mask",), whole_may_refuse=True),
    "tiff_huge": file_kind(huge),
}
