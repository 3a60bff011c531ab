"""A picture whose region is known, the files that hold it, and the three doors of the program that read them."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from benchmarks.fuzz import formats
from benchmarks.fuzz.judge import REFUSED, Answer, Bins, Case, Region, Row, same
from kacl_jax.radiomics import FEATURE_NAMES

Random = np.random.Generator
# (generator of the case, its empty folder, number of the case within its kind) → the case
Kind = Callable[[Random, Path, int], Case]


class Mutant(NamedTuple):
    """A file. pictures: the grey pictures [h w] that may come out of it; none: it must be refused.

    for_reader: pictures that only training's reader may give, which turns colour into grey.
    """

    what: str
    data: bytes
    pictures: Sequence[np.ndarray] = ()
    may_refuse: bool = True
    suffix: str = ".png"
    for_reader: Sequence[np.ndarray] = ()


def take(ways: Iterable[str], turn: int) -> str:
    """One after the other, so that the cases of a kind meet all its ways."""
    ways = list(ways)
    return ways[turn % len(ways)]


def picture(random: Random, *, bits: int = 8) -> np.ndarray:
    """uint8 or uint16 [h w], smooth with noise, over most of the range of `bits`."""
    h, w = (int(side) for side in random.integers(24, 49, 2))
    smooth = cv2.GaussianBlur(random.normal(size=(h, w)), (0, 0), random.uniform(1, 6))
    grey = (
        cv2.normalize(smooth, None, 0.05, 0.95, cv2.NORM_MINMAX) + random.normal(size=(h, w)) / 60
    )
    top = 2**bits - 1
    return (np.clip(grey, 0, 1) * top).astype(np.uint8 if bits <= 8 else np.uint16)


def region(random: Random, shape: tuple[int, ...]) -> np.ndarray:
    """bool [h w]: a box or an ellipse off the middle, with a notch, that touches no side."""
    h, w = shape
    y0, x0 = random.integers(1, h // 4), random.integers(1, w // 4)
    y1, x1 = random.integers(h // 2, h - 2), random.integers(w // 2, w - 2)
    y, x = np.mgrid[:h, :w]
    inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
    if random.random() < 0.5:
        inside &= ((2 * y - y0 - y1) / (y1 - y0)) ** 2 + ((2 * x - x0 - x1) / (x1 - x0)) ** 2 <= 1.1
    inside[y0 : y0 + (y1 - y0) // 3, x0 : x0 + (x1 - x0) // 4] = False
    return inside


def region_of(mask_picture: np.ndarray) -> np.ndarray | None:
    """bool [h w] where the picture is a mask: 0 and one other value. None for any other picture."""
    return mask_picture != 0 if len(np.unique(mask_picture[mask_picture != 0])) == 1 else None


def as_mask(random: Random, mask: np.ndarray) -> np.ndarray:
    return mask.astype(np.uint8) * np.uint8(random.choice([1, 255]))


def plain_png(pixels: np.ndarray) -> bytes:
    return formats.png(formats.png_chunks(pixels))


# ---- the doors -------------------------------------------------------------------------------------------------


def command(*arguments: object) -> Answer:
    """`python -m kacl_jax.radiomics` with --out=<folder of --images>/../out.csv unless --out is given."""
    from kacl_jax.radiomics.__main__ import main

    given = dict(str(a).removeprefix("--").split("=", 1) for a in arguments)
    out = Path(given.get("out", Path(given["images"]).parent / "out.csv"))
    flags = [*map(str, arguments), *([] if "out" in given else [f"--out={out}"])]
    code, text = listen(lambda: main(flags))
    if code != 0:
        return Answer(None, text)
    with out.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    values = [
        np.array([float(row[name] or "nan") for name in FEATURE_NAMES])
        if row["ready"] == "True"
        else None
        for row in rows
    ]
    reasons = [row["reason"] for row in rows]
    return Answer(list(zip(values, reasons, strict=True)), text + " ".join(reasons))


def reader(path: Path) -> Answer:
    """The reader that training uses."""
    from kacl_jax.images.reader import BrokenImage, read_image

    try:
        return Answer([(np.asarray(read_image(path)), "")], "")
    except BrokenImage as error:
        return Answer([(None, str(error))], str(error))


@functools.cache
def command_flags() -> str:
    """The command's help: flags differ between versions."""
    from kacl_jax.radiomics.__main__ import main

    return listen(lambda: main(["--help"]))[1]


def listen(call: Callable[[], int]) -> tuple[int, str]:
    """(exit code, all that the user could read)."""
    text = io.StringIO()
    with (
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(text),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        try:
            code = call()
        except SystemExit as end:  # argparse
            code = end.code if isinstance(end.code, int) else 2
    return code, text.getvalue() + "".join(f"warning: {w.message}" for w in caught)


# ---- scenes ----------------------------------------------------------------------------------------------------


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def with_bystander(random: Random, folder: Path) -> Row:
    """A healthy image `z.png` and its mask; a fault of another file must not cost its row."""
    pixels = picture(random)
    mask = region(random, pixels.shape)
    write(
        folder, {"images/z.png": plain_png(pixels), "masks/z.png": plain_png(as_mask(random, mask))}
    )
    return same(pixels, mask)


def measured(
    what: str, folder: Path, rows: list[Row], bins: Bins, *more: str, whole_may_refuse: bool = False,
    must_say: str = "",
) -> Case:  # fmt: skip
    """The command on folder/images and folder/masks."""
    flags = [f"--images={folder / 'images'}"]
    if not any(flag.startswith(("--boxes", "--masks")) for flag in more):
        flags.append(f"--masks={folder / 'masks'}")
    flags.append(f"--bin_width={bins.width}" if bins.count is None else f"--bin_count={bins.count}")
    # A flag in `more` replaces the one that is made here.
    flags = [*{flag.split("=")[0]: flag for flag in (*flags, *more)}.values()]
    return Case(what, lambda: command(*flags), rows, bins, whole_may_refuse, must_say)


def file_kind(
    mutate: Callable[[Random, np.ndarray], Mutant],
    roles: tuple[str, ...] = ("image", "mask", "reader"),
    whole_may_refuse: bool = False,
) -> Kind:
    """A mutation of one file, which is an image or a mask of the command, or an image of training.

    whole_may_refuse: it makes a mask of another sort, which may need a flag of the whole call.
    """

    def kind(random: Random, folder: Path, turn: int) -> Case:
        role = str(random.choice(roles))
        # Training scales 16 bits by the whole range; the command measures any depth.
        depths = {"reader": [8, 16], "mask": [8], "image": [8, 8, 8, 12, 14, 16]}
        bits = int(random.choice(depths[role]))
        pixels = picture(random, bits=bits)
        mask = region(random, pixels.shape)
        bins = Bins(count=16) if bits > 8 else Bins(float(random.choice([5, 10, 25])))
        mutant = mutate(random, as_mask(random, mask) if role == "mask" else pixels)
        what = f"{role}: {mutant.what}"
        image = f"a{mutant.suffix}" if role != "mask" else "a.png"
        if role == "reader":
            write(folder, {image: mutant.data})
            grey = [_to_8_bits(p) for p in (*mutant.pictures, *mutant.for_reader)]
            may_refuse = mutant.may_refuse or mutant.suffix != ".png"
            row = Row(tuple(Region(p, np.zeros(0, bool)) for p in grey), may_refuse)
            return Case(what, lambda: reader(folder / image), [row])
        if role == "mask":
            write(
                folder, {"images/a.png": plain_png(pixels), f"masks/a{mutant.suffix}": mutant.data}
            )
            masks = [region_of(p) for p in mutant.pictures]
            truths = [Region(pixels, m) for m in masks if m is not None and m.shape == pixels.shape]
        else:
            write(
                folder,
                {f"images/{image}": mutant.data, "masks/a.png": plain_png(as_mask(random, mask))},
            )
            truths = [Region(p, mask) for p in mutant.pictures if p.shape == mask.shape]
        row = Row(tuple(truths), mutant.may_refuse) if truths else REFUSED
        rows = [row, with_bystander(random, folder)]
        whole = whole_may_refuse and role == "mask"
        return measured(what, folder, rows, bins, whole_may_refuse=whole)

    return kind


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.int64) + 128) // 257).astype(np.uint8)
