"""The data of one process: its shards of the training images, side by side.

A global batch is the concatenation of one batch from each shard, so the batches of a run depend on the number of
shards and not on how many processes share them. Process i of n serves the i-th n-th of the shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kacl_jax.data.batches import Batch, TrainBatches


def own_shards(shards: int, *, index: int, processes: int) -> range:
    """The shards of process `index`; `shards` is a multiple of `processes`."""
    each = shards // processes
    return range(index * each, (index + 1) * each)


def own_images(train: np.ndarray, own: range, shards: int) -> np.ndarray:
    """The training images of the shards `own`: int [m], as `TrainBatches` cuts them."""
    return np.concatenate([train[shard::shards] for shard in own])


class ShardedBatches:
    """Endless batches of this process: rows of its shards, in their order."""

    def __init__(self, shards: list[TrainBatches]) -> None:
        self._shards = shards
        self.steps_per_epoch = shards[0].steps_per_epoch
        self.broken = shards[0].broken

    @property
    def n_shards(self) -> int:
        """How many shards' rows a batch of this process holds."""
        return len(self._shards)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batches = [next(shard) for shard in self._shards]
        if len(batches) == 1:
            return batches[0]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def unreadable(self) -> dict[str, str]:
        """Path → reason of the files that could not be read."""
        return {path: why for shard in self._shards for path, why in shard.broken.as_dict().items()}

    def get_state(self) -> list[dict[str, Any]]:
        """Where each shard's next batch starts; JSON-able."""
        return [shard.get_state() for shard in self._shards]

    def set_state(self, states: list[dict[str, Any]]) -> None:
        """Continues with the very batch that followed `get_state`."""
        for shard, state in zip(self._shards, states, strict=True):
            shard.set_state(state)
