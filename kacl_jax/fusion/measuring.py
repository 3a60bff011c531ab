"""The radiomics of many images' grids: by worker processes, each cell once, with a memo on the disk."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np

from kacl_jax.feedback.feature_cache import FeatureCache
from kacl_jax.feedback.pool import RadiomicsPool
from kacl_jax.feedback.result import Result
from kacl_jax.fusion import grid as cells
from kacl_jax.images.reader import BrokenImage
from kacl_jax.radiomics import FEATURE_NAMES

_IMAGES_AHEAD = 16  # whose cells wait for the workers
_LOOK_AGAIN_S = 0.2  # whether the measuring was stopped
BROKEN = "the image cannot be read"


class MeasuredImage(NamedTuple):
    """results: of the cells. longest: px of the longer side of the picture; 0 if it cannot be read."""

    results: list[Result]
    longest: int


class Measured(NamedTuple):
    """features: float32 [n g² f], NaN in a missing cell. missing: reason → number of cells. longest: of all pictures.

    reproducible: False once a cell was given up because its workers died or hung.
    """

    features: np.ndarray
    missing: Counter[str]
    longest: int
    reproducible: bool


def collect(
    measured: Iterable[MeasuredImage],
    n_images: int,
    grid: int,
    count: Callable[[int, int], None],
) -> Measured:
    """The features of all images, from `measure`. count: called with the number of images done, and of all."""
    features = np.full((n_images, grid**2, len(FEATURE_NAMES)), np.nan, np.float32)
    missing: Counter[str] = Counter()
    longest, reproducible = 0, True
    for row, image in enumerate(measured):
        longest = max(longest, image.longest)
        for cell, result in enumerate(image.results):
            if result.features is not None:
                features[row, cell] = result.features
            missing[result.reason or ""] += 1
            reproducible &= result.deterministic
        count(row + 1, n_images)
    del missing[""]
    return Measured(features, missing, longest, reproducible)


def measure(
    read: Callable[[int], np.ndarray],
    images: Sequence[int],
    grid: int,
    pool: RadiomicsPool,
    memo: FeatureCache,
    *,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Iterator[MeasuredImage]:
    """Each image, in their order; the results of its cells are in the memo then.

    A thread reads the next image, and the workers have a few images to do.

    Args:
      read: an image → its pixels, uint8 [h w]. It may raise BrokenImage: then all cells of the image are missing.
      is_stopped: asked between two images, and while cells are waited for. If it says so, there is no further image.
    """
    waiting: deque[tuple[list[_Cell], int]] = deque()
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(_pixels, read, images[0]) if len(images) else None
        for place in range(len(images)):
            assert ahead is not None
            pixels = ahead.result()
            if is_stopped():
                return
            if place + 1 < len(images):
                ahead = thread.submit(_pixels, read, images[place + 1])
            longest = 0 if pixels is None else max(pixels.shape)
            waiting.append((_begin(pixels, grid, pool, memo), longest))
            if len(waiting) > _IMAGES_AHEAD:
                if not _are_answered(waiting[0][0], is_stopped):
                    return
                yield _finish(*waiting.popleft(), memo)
        while waiting and _are_answered(waiting[0][0], is_stopped):
            yield _finish(*waiting.popleft(), memo)


class _Cell(NamedTuple):
    """key: in the memo; empty for a cell that is not measured."""

    key: bytes
    answer: Result | Future[Result]


def _pixels(read: Callable[[int], np.ndarray], image: int) -> np.ndarray | None:
    try:
        return read(image)
    except BrokenImage:
        return None


def _begin(
    pixels: np.ndarray | None, grid: int, pool: RadiomicsPool, memo: FeatureCache
) -> list[_Cell]:
    if pixels is None:
        return [_Cell(b"", Result(None, BROKEN))] * grid**2
    begun = []
    for cell in cells.cut_cells(pixels, grid):
        if reason := cells.why_missing(cell):
            begun.append(_Cell(b"", Result(None, reason)))
            continue
        whole = np.ones(cell.shape, bool)
        key = memo.key(cell, whole)
        known = memo.get(key)
        begun.append(_Cell(key, pool.submit(cell, whole) if known is None else known))
    return begun


def _are_answered(begun: Sequence[_Cell], is_stopped: Callable[[], bool]) -> bool:
    """Wait for the cells of an image. False: stopped, though workers that stand back may need long for an answer."""
    futures = [cell.answer for cell in begun if isinstance(cell.answer, Future)]
    while not is_stopped():
        if not wait(futures, _LOOK_AGAIN_S).not_done:
            return True
    return False


def _finish(begun: Sequence[_Cell], longest: int, memo: FeatureCache) -> MeasuredImage:
    results = [
        cell.answer if isinstance(cell.answer, Result) else cell.answer.result() for cell in begun
    ]
    memo.put(
        (cell.key, result)
        for cell, result in zip(begun, results, strict=True)
        if isinstance(cell.answer, Future)
    )
    return MeasuredImage(results, longest)
