"""Mutations of JPEG files, by segment and by bit, and of files that every format can hold."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.fuzz import formats, scene
from benchmarks.fuzz.judge import Bins, Case, same
from benchmarks.fuzz.scene import Kind, Mutant, Random, file_kind


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    return (
        pixels
        if pixels.dtype == np.uint8
        else (pixels >> max(int(pixels.max()).bit_length() - 8, 0)).astype(np.uint8)
    )


def _readings(data: bytes) -> list[np.ndarray]:
    """Pillow's grey picture; where Pillow reads the file, OpenCV's too, whose rounding may differ."""
    found = formats.by_pillow(data)
    if found:
        other = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
        )
        if other is not None and other.ndim == 2:
            found.append(other)
    return found


def _mutant(what: str, data: bytes, pictures: list[np.ndarray], may_refuse: bool = True) -> Mutant:
    return Mutant(what, data, pictures, may_refuse, ".jpg")


def _options(random: Random) -> dict[str, object]:
    return {
        "quality": int(random.choice([40, 90, 100])),
        "progressive": bool(random.random() < 0.3),
        "optimize": bool(random.random() < 0.3),
        "restart_marker_rows": int(random.choice([0, 1])),
    }


def harmless(random: Random, pixels: np.ndarray) -> Mutant:
    options = _options(random)
    if random.random() < 0.5:
        options["comment"] = b"grey"
    data = formats.jpeg(_eight_bits(pixels), **options)
    return _mutant(str(options), data, _readings(data), may_refuse=False)


def truncated(random: Random, pixels: np.ndarray) -> Mutant:
    data = formats.jpeg(_eight_bits(pixels), **_options(random))
    cut = int(random.integers(0, len(data) - 2))
    return _mutant(f"{cut} of {len(data)} bytes", data[:cut], [])


def bit(random: Random, pixels: np.ndarray) -> Mutant:
    data = bytearray(formats.jpeg(_eight_bits(pixels), **_options(random)))
    place = int(random.integers(0, len(data)))
    data[place] ^= 1 << int(random.integers(0, 8))
    return _mutant(f"bit at byte {place}", bytes(data), _readings(bytes(data)))


def segment(random: Random, pixels: np.ndarray) -> Mutant:
    """A segment is lost or twice there, or its frame says another size."""
    data = formats.jpeg(_eight_bits(pixels))
    segments = formats.jpeg_segments(data)
    start, end = segments[int(random.integers(0, len(segments)))]
    way = str(random.choice(["lost", "twice", "size"]))
    if way == "size":
        start = next(a for a, _ in segments if data[a + 1] == 0xC0)
        place = start + int(random.choice([5, 7]))
        size = int(random.choice([0, 1, 100, 65500])).to_bytes(2)
        new = data[:place] + size + data[place + 2 :]
    else:
        new = data[:start] + data[start:end] * (2 if way == "twice" else 0) + data[end:]
    return _mutant(f"{way} {data[start + 1]:x}", new, _readings(new))


def colour(random: Random, pixels: np.ndarray) -> Mutant:
    grey = _eight_bits(pixels)
    data = formats.jpeg(np.stack([grey, grey[::-1], grey[:, ::-1]], -1), quality=95)
    return Mutant("colour", data, suffix=".jpg", for_reader=formats.by_pillow(data))


def as_mask(random: Random, pixels: np.ndarray) -> Mutant:
    return _mutant("mask as JPEG", formats.jpeg(_eight_bits(pixels), **_options(random)), [])


def oriented(random: Random, folder: Path, turn: int) -> Case:
    """EXIF's orientation in the image and its mask, or in one of them, in any format."""
    pixels, orientation = scene.picture(random), int(random.integers(1, 9))
    mask = scene.region(random, pixels.shape)
    upright = {"images": pixels, "masks": scene.as_mask(random, mask)}
    which = str(random.choice(["both", "both", "images", "masks"]))
    choices = {"images": ["png", "jpg", "tif"], "masks": ["png", "tif"]}
    what = f"orientation {orientation} in {which}:"
    for place, picture in upright.items():
        value = orientation if which in ("both", place) else 1
        stored, suffix = formats.stored_for(value, picture), str(random.choice(choices[place]))
        what += f" {suffix}"
        if suffix == "png":
            head, *rest = formats.png_chunks(stored)
            data = formats.png([head, (b"eXIf", formats.exif(value)), *rest])
        elif suffix == "tif":
            data = formats.tiff([stored], tags={274: [value]})
        else:
            data = formats.jpeg(stored, quality=100, exif=b"Exif\0\0" + formats.exif(value))
            pixels = formats.by_pillow(data)[1]
        scene.write(folder, {f"{place}/a.{suffix}": data})
    rows = [same(pixels, mask), scene.with_bystander(random, folder)]
    return scene.measured(what, folder, rows, Bins(10.0))


def other_format(random: Random, pixels: np.ndarray) -> Mutant:
    """A file that is not what its name says: a sentence or its own values; an animation must be refused."""
    grey = Image.fromarray(_eight_bits(pixels))
    out, way = (
        io.BytesIO(),
        str(random.choice(["GIF", "WEBP", "BMP", "TIFF", "PPM", "animated GIF", "animated WEBP"])),
    )
    animated = way.startswith("animated")
    more = (
        {"save_all": True, "append_images": [grey.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]}
        if animated
        else {}
    )
    if way.endswith("WEBP"):
        more["lossless"] = True
    grey.save(out, way.removeprefix("animated "), **more)
    suffix = str(random.choice([".png", ".jpg", ".tif"]))
    pictures = [] if animated else [*formats.by_pillow(out.getvalue()), _eight_bits(pixels)]
    return Mutant(f"{way} named {suffix}", out.getvalue(), pictures, True, suffix)


KINDS: dict[str, Kind] = {
    "jpeg_harmless": file_kind(harmless, ("image",)),
    "jpeg_truncated": file_kind(truncated, ("image", "reader")),
    "jpeg_bit": file_kind(bit, ("image", "reader")),
    "jpeg_segment": file_kind(segment, ("image", "reader")),
    "jpeg_colour": file_kind(colour, ("image", "reader")),
    "jpeg_mask": file_kind(as_mask, ("mask",), whole_may_refuse=True),
    "oriented": oriented,
    "other_format": file_kind(other_format),
}
