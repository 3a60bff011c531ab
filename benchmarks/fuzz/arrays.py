"""Arrays and arguments of `kacl_jax.radiomics.extract`."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz import scene
from benchmarks.fuzz.judge import REFUSED, Answer, Bins, Case, Region, Row, either, same
from benchmarks.fuzz.scene import Kind, Random

DEFAULT = Bins()


def _extracted(
    what: str,
    random: Random,
    images: list[Any],
    masks: list[Any],
    rows: list[Row],
    bins: Bins = DEFAULT,
    **more: Any,
) -> Case:
    """The call with one of the two backends.

    more: `whole_may_refuse` and `must_say` of the case; the rest goes to `extract`.
    """
    options = {
        "backend": str(random.choice(["jax", "pyradiomics"])),
        "dtype": str(random.choice(["float32", "float64"])),
        "bin_width": bins.width,
        "bin_count": bins.count,
    }
    whole, hint = more.pop("whole_may_refuse", False), more.pop("must_say", "")
    options |= more

    def call() -> Answer:
        from kacl_jax.radiomics import extract
        from kacl_jax.runtime.errors import UserError

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                answer = extract(images, masks, **options)
            except UserError as error:
                return Answer(None, str(error))
        text = " ".join([*answer.reasons, *(f"warning: {w.message}" for w in caught)])
        values = [
            v if ready else None for v, ready in zip(answer.features, answer.ready, strict=True)
        ]
        return Answer(list(zip(values, answer.reasons, strict=True)), text)

    return Case(f"{what} {options}", call, rows, bins, whole, hint)


def _regions(random: Random, n: int) -> tuple[list[np.ndarray], list[np.ndarray], list[Row]]:
    images = [scene.picture(random) for _ in range(n)]
    masks = [scene.region(random, image.shape) for image in images]
    return images, masks, [same(*pair) for pair in zip(images, masks, strict=True)]


def plain(random: Random, folder: Path, turn: int) -> Case:
    """Sane regions of any dtype that is accepted, with any sane bins."""
    images, masks, _ = _regions(random, int(random.integers(1, 4)))
    dtype = random.choice(["uint8", "float32", "float64"])
    images = [image if dtype == "uint8" else (image / 1.7).astype(dtype) for image in images]
    bins = (
        Bins(float(random.choice([1, 5, 25, 100])))
        if random.random() < 0.6
        else Bins(count=int(random.integers(2, 100)))
    )
    return _extracted(
        f"{dtype} {bins}",
        random,
        images,
        masks,
        [same(*pair) for pair in zip(images, masks, strict=True)],
        bins,
    )


def many_bins(random: Random, folder: Path, turn: int) -> Case:
    """Range ÷ width beyond what 16 bits hold: the true values or a sentence. A second region is sane."""
    h, w = (int(side) for side in random.integers(6, 20, 2))
    grey = (random.random((h, w)) * 200).astype(np.float32)
    mask = np.zeros((h, w), bool)
    mask[1:-1, 1:-1] = True
    width = float(random.choice([1, 25, 0.5, 1e3]))
    sizes = [48_000, 65_536, 40_000, 32_768, 65_535, 20_000, 32_766, 65_537, 131_072, 1_000_000]
    bins = sizes[turn % len(sizes)]
    way = scene.take(["patch", "two values", "few low values and one high"], turn)
    if way == "patch":
        grey[2:6, 2:6] = bins * width
    elif way == "two values":
        grey = np.where(random.random((h, w)) < 0.5, 0, bins * width).astype(np.float32)
        grey[1, 1], grey[1, 2] = 0, bins * width
    else:
        grey = (random.integers(0, 10, (h, w)) * width).astype(np.float32)
        grey[2, 2] = bins * width
    sane = (random.random((12, 12)) * 200 * min(width, 25)).astype(np.float32)
    rows = [either(Region(grey, mask)), same(sane, np.ones((12, 12), bool))]
    masks = [mask, np.ones((12, 12), bool)]
    return _extracted(
        f"{way}, {bins} bins of {width:g}", random, [grey, sane], masks, rows, Bins(width)
    )


def ranges(random: Random, folder: Path, turn: int) -> Case:
    """Grey values and widths of any size up to 1e12, with at most 1,500 bins in the region."""
    width = float(10 ** random.uniform(-4, 12))
    span = width * float(10 ** random.uniform(-1, 3))
    offset = float(random.choice([0, 0, 1, -1])) * span * float(10 ** random.uniform(-2, 3))
    grey = (offset + span * random.random((14, 17))).astype(random.choice(["float32", "float64"]))
    mask = scene.region(random, (28, 34))[:14, :17]
    mask[3:9, 4:11] = True
    rows = [either(Region(grey, mask))]
    if abs(offset) < 1e3 * span and span / width < 1000:
        rows = [same(grey, mask)]
    return _extracted(f"span {span:g} from {offset:g}", random, [grey], [mask], rows, Bins(width))


def fine_float(random: Random, folder: Path, turn: int) -> Case:
    """A range so fine that float32 has hardly any values in it, beside a sane region."""
    images, masks, rows = _regions(random, 1)
    base, step = float(random.choice([1e6, 1e7, -1e6])), float(random.choice([1e-3, 1e-2, 0.06, 1]))
    grey = base + step * random.random((12, 12))
    mask = np.ones((12, 12), bool)
    width = float(step * random.choice([0.5, 0.1, 2]))
    fine = either(Region(grey, mask))
    # pyradiomics takes 40 s for 1,000 levels.
    images[0] = (images[0] * min(1.0, 200 * width / 255)).astype(np.float32)
    rows = [same(images[0], masks[0])]
    return _extracted(
        f"{base:g} + {step:g}",
        random,
        [grey, images[0]],
        [mask, masks[0]],
        [fine, *rows],
        Bins(width),
        dtype="float64",
    )


def not_finite(random: Random, folder: Path, turn: int) -> Case:
    """NaN or inf inside of a region refuses that row alone; outside of it, it does not matter."""
    images, masks, rows = _regions(random, 3)
    images = [image.astype(np.float32) for image in images]
    rows = [same(*pair) for pair in zip(images, masks, strict=True)]
    item, bad = int(random.integers(0, 3)), float(random.choice([np.nan, np.inf, -np.inf]))
    inside = bool(random.random() < 0.5)
    places = np.argwhere(masks[item] == inside)
    dirty = images[item].copy()
    chosen = places[random.integers(0, len(places), int(random.choice([1, 20])))]
    dirty[chosen[:, 0], chosen[:, 1]] = bad
    images[item] = dirty
    if inside:
        rows[item] = REFUSED
    return _extracted(
        f"{bad} {'in' if inside else 'out'}side of item {item}", random, images, masks, rows
    )


def small_masks(random: Random, folder: Path, turn: int) -> Case:
    """A region with nothing to measure among others; frames, crosses and full images."""
    images, masks, rows = _regions(random, 3)
    item, shape = int(random.integers(0, 3)), images[0].shape
    shape = images[item].shape
    mask = np.zeros(shape, bool)
    way = scene.take(
        [
            "empty",
            "one pixel",
            "a line",
            "two pixels",
            "diagonal",
            "frame",
            "all",
            "chess",
            "two corners",
        ],
        turn,
    )
    if way == "one pixel":
        mask[4, 4] = True
    elif way == "a line":
        mask[4, 3:9] = True
    elif way == "two pixels":
        mask[4, 4] = mask[5, 5] = True
    elif way == "diagonal":
        np.fill_diagonal(mask, True)
    elif way == "frame":
        mask[[0, -1]] = mask[:, [0, -1]] = True
    elif way == "all":
        mask[:] = True
    elif way == "chess":
        mask[::2, ::2] = mask[1::2, 1::2] = True
    elif way == "two corners":
        mask[0, 0] = mask[-1, -1] = True
    masks[item] = mask
    rows[item] = REFUSED
    if way not in ("empty", "one pixel", "a line"):
        # pyradiomics refuses some of them; where it does, the judge compares what numpy computes.
        rows[item] = (
            same(images[item], mask)
            if way in ("frame", "all", "chess")
            else either(Region(images[item], mask))
        )
    return _extracted(f"{way}, item {item}", random, images, masks, rows)


def few_levels(random: Random, folder: Path, turn: int) -> Case:
    """Regions of one or two levels: values with a warning where the image is scaled to [0, 1] or z-scored."""
    images, masks, _ = _regions(random, 2)
    way = scene.take(["[0, 1]", "z-score", "constant", "two greys"], turn)
    grey = images[0].astype(np.float32)
    if way == "[0, 1]":
        grey /= 255
    elif way == "z-score":
        grey = (grey - grey.mean()) / grey.std()
    elif way == "constant":
        grey[:] = float(random.choice([0, 7, 50, 128.5]))
    else:
        grey = np.where(grey > np.median(grey), 40.0, 60.0).astype(np.float32)
    images[0] = grey
    rows = [same(*pair) for pair in zip(images, masks, strict=True)]
    hint = "warn" if way in ("[0, 1]", "z-score") else ""
    return _extracted(way, random, images, masks, rows, must_say=hint)


def dtypes(random: Random, folder: Path, turn: int) -> Case:
    """Dtypes and shapes that the function may refuse: a sentence, or the values of these numbers."""
    images, masks, rows = _regions(random, 2)
    image, mask = images[0], masks[0]
    doubled, doubled_mask = np.repeat(image, 2, 1), np.repeat(mask, 2, 1)
    perhaps: dict[str, tuple[Any, Any]] = {
        **{f"image {d}": (image.astype(d), mask) for d in ("uint16", "int16", "int64", "float16", "object", ">f4")},
        **{f"mask {d}": (image, mask.astype(d)) for d in ("uint8", "int64", "float32", "object")},
        "mask 255": (image, mask * np.uint8(255)),
        "lists": (image.tolist(), mask.tolist()),
        "Fortran": (np.asfortranarray(image), np.asfortranarray(mask)),
        "strided": (doubled[:, ::2], doubled_mask[:, ::2]),
        "read-only": (np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape), mask),
    }  # fmt: skip
    refused: dict[str, tuple[Any, Any]] = {
        **{f"image {d}": (image.astype(d), mask) for d in ("complex64", "U8")},
        "image bool": (image > 100, mask),
        "mask of labels": (image, mask * (image % 3 + 1)),
        "mask of another shape": (image, mask[:-1]),
        "three axes": (np.stack([image] * 3, -1), mask),
        "no axis": (np.float32(3), mask),
        "no pixels": (image[:0], mask[:0]),
        "None": (None, mask),
    }
    way = scene.take([*perhaps, *refused, "fewer masks", "no images"], turn)
    if way == "no images":
        images, masks, rows = [], [], []
    elif way == "fewer masks":
        masks, rows = masks[:1], [REFUSED, REFUSED]
    else:
        images[0], masks[0] = {**perhaps, **refused}[way]
        first = rows[0]._replace(may_refuse=True) if way in perhaps else REFUSED
        rows = [first, rows[1]]
    return _extracted(way, random, images, masks, rows, whole_may_refuse=True)


def arguments(random: Random, folder: Path, turn: int) -> Case:
    """Odd widths, counts, backends and numbers of workers."""
    images, masks, rows = _regions(random, 2)
    perhaps, refused = [row._replace(may_refuse=True) for row in rows], [REFUSED] * 2
    ways: list[tuple[list[Row], Bins, dict[str, Any]]] = [
        *((rows, Bins(), {"workers": v}) for v in (1, 2)),
        *((refused, Bins(), {"workers": v}) for v in (0, 1.5)),
        *(
            (refused, Bins(v), {})
            for v in (0, -5.0, float("nan"), float("-inf"), "25", None, 1j, [25.0])
        ),
        *((perhaps, Bins(v), {}) for v in (float("inf"), 1e-12, 1e-320, 1e300, True)),
        *((rows, Bins(v), {}) for v in (1e12, 25, np.float32(25))),
        *(
            (refused, Bins(count=v), {})
            for v in (0, -3, 2.5, "16", float("nan"), float("inf"), [16])
        ),
        *(
            (perhaps, Bins(count=v), {})
            for v in (16.0, 10**9, 10**20, 50_000, 32_768, 65_536, True)
        ),
        *((rows, Bins(count=v), {}) for v in (1, 2, 3, 100, 300)),
        *((refused, Bins(), {"backend": v}) for v in ("torch", None, "")),
        *((refused, Bins(), {"dtype": v}) for v in ("float16", "int32")),
    ]
    expected, bins, more = ways[turn % len(ways)]
    from kacl_jax.radiomics import extract

    if "workers" in more and "workers" not in inspect.signature(extract).parameters:
        expected, more = rows, {}
    if turn % 4 != 1:  # the jax backend has more of its own code to go wrong
        more = {"backend": "jax", **more}
    return _extracted(
        "arguments",
        random,
        images,
        masks,
        expected,
        bins,
        whole_may_refuse=expected is not rows,
        **more,
    )


KINDS: dict[str, Kind] = {
    "extract_plain": plain,
    "extract_many_bins": many_bins,
    "extract_ranges": ranges,
    "extract_fine_float": fine_float,
    "extract_not_finite": not_finite,
    "extract_small_masks": small_masks,
    "extract_few_levels": few_levels,
    "extract_dtypes": dtypes,
    "extract_arguments": arguments,
}
