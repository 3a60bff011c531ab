"""The features that a fusion needs of the images of a data root: radiomics of the grid, and starting image features."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from kacl_jax.data.records import Records
from kacl_jax.evaluation.inference import Inference
from kacl_jax.feedback.feature_cache import FeatureCache
from kacl_jax.feedback.pool import RadiomicsPool
from kacl_jax.fusion import grid, measuring
from kacl_jax.fusion.measuring import MeasuredImage
from kacl_jax.fusion.scores import IMAGE, RADIOMICS, SOURCES, Fusion
from kacl_jax.runtime import processes
from kacl_jax.runtime.progress import image_progress_bar
from kacl_jax.step.state import TrainState
from kacl_jax.train import checkpoint, network
from kacl_jax.train.experiment import Experiment

_LAST_IN_LINE = 19  # the highest nice(1)


@dataclass(frozen=True, eq=False)
class Collected:
    """The features of images, a row for each image of the data root; NaN where it has none.

    columns: float32 [n p], by source. missing: cells without features, by reason.
    longest: px of the longer side of the largest picture that was measured; 0 without radiomics.
    reproducible: see `Measured`. start: see `SavedFusion`.
    """

    columns: dict[str, np.ndarray]
    missing: Counter[str]
    longest: int
    reproducible: bool
    start: str

    def of(self, fusion: Fusion, images: np.ndarray) -> dict[str, np.ndarray]:
        """Of these images, for the regressions of a fusion."""
        return {source: self.columns[source][images] for source in fusion.ridges}


@dataclass(frozen=True, eq=False)
class Grids:
    """How to measure the grids of images.

    images: int [m], those of all processes. side: cells along one side of the grid.
    longest: px; a picture with a longer side shrinks to it.
    open: starts the workers with this niceness and opens the memo; both end with the stack.
    """

    records: Records
    images: np.ndarray
    side: int
    longest: int
    open: Callable[[contextlib.ExitStack, int], tuple[RadiomicsPool, FeatureCache]]

    @property
    def own(self) -> np.ndarray:
        """This process's part of the images."""
        parts = np.array_split(self.images, processes.process_count())
        return parts[processes.process_index()]

    @contextlib.contextmanager
    def results(
        self, *, nice: int = 0, is_stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Iterator[MeasuredImage]]:
        """Each own image; its cells are measured as it is asked for."""
        with contextlib.ExitStack() as stack:
            pool, memo = self.open(stack, nice)
            yield measuring.measure(
                lambda image: self.records.images.read_shrunk(image, self.longest),
                self.own.tolist(),
                self.side,
                pool,
                memo,
                is_stopped=is_stopped,
            )


def grids_of(experiment: Experiment) -> Grids | None:
    """Of all images of the run; None if its fusion has no radiomics."""
    fusion = experiment.config.fusion
    if RADIOMICS not in SOURCES.get(fusion.kind, ()):
        return None
    return Grids(
        experiment.records,
        _images_of(experiment),
        fusion.grid,
        grid.LONGEST_SIDE,
        experiment.open_grid,
    )


@contextlib.contextmanager
def measuring_beside(experiment: Experiment) -> Iterator[None]:
    """While the block runs, workers with a low priority measure the grids; what they have not done by its end waits."""
    grids = grids_of(experiment)
    if grids is None:
        yield
        return
    stop = threading.Event()

    def fill_memo() -> None:
        with grids.results(nice=_LAST_IN_LINE, is_stopped=stop.is_set) as results:
            for _ in results:
                pass

    with ThreadPoolExecutor(1, "grid") as thread:
        done = thread.submit(fill_memo)
        try:
            yield
        finally:
            stop.set()
    done.result()


def collect_of_run(experiment: Experiment) -> Collected:
    """Of all images of the run. All processes call it."""
    start = network.state_for_start_features(experiment.programs, experiment.config)
    state = experiment.parallel.replicate(start)
    return collect(
        experiment.records,
        _images_of(experiment),
        experiment.inference,
        state,
        grids_of(experiment),
        encoder_digest(start),
    )


def collect(
    records: Records,
    images: np.ndarray,
    inference: Inference,
    start: Any,
    grids: Grids | None,
    start_digest: str,
) -> Collected:
    """All processes call it.

    Args:
      images: int [m]. start: the starting state on the devices. grids: of the same images; None: no radiomics.
    """
    n = len(records.names)
    embeddings, rows = inference.embeddings(start, images)
    columns = {IMAGE: _scatter(n, rows, embeddings)}
    missing: Counter[str] = Counter()
    longest, reproducible = 0, True
    if grids is not None:
        with grids.results() as results, image_progress_bar("Measuring radiomics") as count:
            measured = measuring.collect(results, len(grids.own), grids.side, count)
        meta = measured._asdict()
        del meta["features"]
        arrays = {"images": grids.own, "columns": grid.as_columns(measured.features)}
        parts = processes.gather(meta, arrays)
        columns[RADIOMICS] = _scatter(
            n,
            np.concatenate([part.arrays["images"] for part in parts]),
            np.concatenate([part.arrays["columns"] for part in parts]),
        )
        for part in parts:
            missing.update(part.meta["missing"])
            longest = max(longest, part.meta["longest"])
            reproducible &= part.meta["reproducible"]
    return Collected(columns, missing, longest, reproducible, start_digest)


def _images_of(experiment: Experiment) -> np.ndarray:
    split = experiment.split
    return np.unique(np.concatenate([split.train, split.val, split.test]))


def encoder_digest(state: TrainState) -> str:
    """Of the weights and statistics of the image encoder."""
    encoder = (state.params["image_encoder"], state.batch_stats["image_encoder"])
    return checkpoint.digest(checkpoint.to_arrays(encoder, ""))


def _scatter(n: int, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    columns = np.full((n, values.shape[1]), np.nan, np.float32)
    columns[rows] = values
    return columns
