"""The fused scores of images, as the run tested them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit

from kacl_jax.evaluation.platt import PlattScaling, calibrate
from kacl_jax.fusion import grid
from kacl_jax.fusion.fused_file import SavedFusion
from kacl_jax.fusion.scores import IMAGE, RADIOMICS
from kacl_jax.fusion.shares import Explanation, explain
from kacl_jax.images.resizing import shrink
from kacl_jax.predict import region_features
from kacl_jax.predict.region_features import MarkedRegion
from kacl_jax.radiomics import FEATURE_NAMES

_IMAGES_FOR_PROCESSES = 8  # for fewer images, starting worker processes takes longer than measuring


class Moved(NamedTuple):
    """What fusion did to one image. explanations: by finding. notes: what a reader must know, each one clause."""

    explanations: Mapping[str, Explanation]
    notes: tuple[str, ...]


class Decided(NamedTuple):
    """What a run decides by. scores, probabilities: float64 [n c]. thresholds: float64 [c], on the scores.

    thresholds_shown: the same on the probabilities. moved: what moved the scores of each image.
    """

    scores: np.ndarray
    probabilities: np.ndarray
    thresholds: np.ndarray
    thresholds_shown: np.ndarray
    moved: Sequence[Moved]


def decide(
    logits: np.ndarray,
    scalings: Sequence[PlattScaling],
    thresholds: np.ndarray,
    moved: Sequence[Moved],
) -> Decided:
    """logits: float64 [n c], of which the scores are made. scalings: by finding."""
    return Decided(
        scores=expit(logits),
        probabilities=calibrate(logits, scalings),
        thresholds=thresholds,
        thresholds_shown=calibrate(logit(thresholds)[None], scalings)[0],
        moved=moved,
    )


def fuse(
    saved: SavedFusion,
    findings: Sequence[str],
    logits: np.ndarray,
    pictures: Sequence[np.ndarray],
    embed: Callable[[], np.ndarray],
) -> tuple[np.ndarray, list[Moved]]:
    """Fused logits float64 [n c], and what moved those of each image.

    Args:
      logits: the network's own, [n c]. pictures: uint8 [h w], the n images as they were given.
      embed: makes the starting image features of the n images, float32 [n k].
    """
    fusion = saved.fused.fusion
    columns = {}
    if IMAGE in fusion.ridges:
        columns[IMAGE] = embed()
    if RADIOMICS in fusion.ridges:
        columns[RADIOMICS] = grid.as_columns(_measure(saved, pictures))
    moved = []
    for row in range(len(logits)):
        features = {source: values[row] for source, values in columns.items()}
        told = explain(fusion, saved.grid, logits[row], features)
        moved.append(Moved(dict(zip(findings, told, strict=True)), _notes(features, saved.grid)))
    return fusion.fuse(logits, columns), moved


def _notes(features: Mapping[str, np.ndarray], side: int) -> tuple[str, ...]:
    """Whether cells are missing."""
    if RADIOMICS not in features:
        return ()
    n_missing = int(grid.count_missing(features[RADIOMICS][None])[0])
    if not n_missing:
        return ()
    why = f"they have no pixels or fewer than {grid.MIN_LEVELS} grey values"
    return (
        f"{n_missing} of {side**2} cells of the grid have no radiomics, so they move no score: {why}",
    )


def _measure(saved: SavedFusion, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """The radiomics of each image's cells, as the run measured them: float32 [n g² f], NaN in a missing cell."""
    cells = [
        cell
        for picture in pictures
        for cell in grid.cut_cells(shrink(picture, saved.longest), saved.grid)
    ]
    there = [place for place, cell in enumerate(cells) if not grid.why_missing(cell)]
    workers = (os.cpu_count() or 1) if len(pictures) >= _IMAGES_FOR_PROCESSES else 1
    measured = region_features.measure(
        [MarkedRegion(cells[place], np.ones(cells[place].shape, bool)) for place in there],
        saved.bin_width,
        workers,
    )
    features = np.full((len(cells), len(FEATURE_NAMES)), np.nan, np.float32)
    for place, found in zip(there, measured, strict=True):
        values = found.features.astype(np.float32)
        if np.isfinite(values).all():
            features[place] = values
    return features.reshape(len(pictures), saved.grid**2, len(FEATURE_NAMES))
