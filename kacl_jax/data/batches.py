"""Records + Split → batches of uint8 pictures, by grain: seeded, sharded, resumable.

Pictures are read and resized in threads (cv2 frees the interpreter lock) and stay uint8;
normalisation and augmentation happen on the device.

A global batch is the concatenation of one batch from each shard of the training images, so the
batches of a run depend on the number of shards and not on how many processes share them. Process i
of n serves the i-th n-th of the shards.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kacl_jax.data.nih import BrokenImage, Records
from kacl_jax.data.splits import Split
from kacl_jax.runtime.errors import UserError

# image uint8 [b h w 1] · labels float32 [b c] · boxes float32 [b c 4] (fractions; 0 where not
# has_box) · has_box bool [b c] · image_id int32 [b] · patient_id int32 [b];
# `eval_batches`: no boxes, no has_box, but valid bool [b].
Batch = dict[str, np.ndarray]
OnError = Literal["raise", "skip"]

_log = logging.getLogger(__name__)


class BrokenFiles:
    """Which files could not be read and why; each is logged once. Safe to use from threads."""

    def __init__(self) -> None:
        self._why: dict[Path, str] = {}
        self._lock = threading.Lock()

    def add(self, error: BrokenImage) -> None:
        with self._lock:
            if error.path in self._why:
                return
            self._why[error.path] = error.why
        _log.warning("left out, cannot be read: %s %s", error.path, error.why)

    def as_dict(self) -> dict[str, str]:
        """Path → reason, sorted by path."""
        with self._lock:
            return {str(path): why for path, why in sorted(self._why.items())}


class TrainBatches:
    """Endless batches of one shard of the training images, each epoch in another order.

    The shard is every `shards`-th training image from the `shard`-th on, fixed for the whole run,
    and is cut before shuffling. An epoch is `steps_per_epoch` batches, equal in every shard; the
    images that do not fill a batch wait for a later epoch (others are left over each time).
    With on_error='skip' a broken file is left out and the next one moves up, so from then on the
    epochs begin a little earlier than every `steps_per_epoch` steps.

    The state is a few integers and costs nothing to take: call `get_state` after each batch.

    Args:
        batch_size: images per batch of this shard (not of all shards).
        seed: any integer ≥ 0; decides the orders, together with the shard.
        threads: decoding threads; they do not influence what a batch holds.

    Raises:
        UserError: fewer images in the shard than fill a batch; from `__next__`, a broken file
            under on_error='raise', or so many under 'skip' that no batch is left.
    """

    def __init__(
        self,
        records: Records,
        split: Split,
        *,
        image_size: int,
        batch_size: int,
        seed: int,
        shard: int = 0,
        shards: int = 1,
        threads: int = 2,
        on_error: OnError = "raise",
    ) -> None:
        if not 0 <= shard < shards:
            raise ValueError(f"shard {shard} of {shards}")
        # A split checks patients, so it must be about the patients of these very images.
        for key in ("names", "patients"):
            if not np.array_equal(getattr(records, key), getattr(split, key)):
                raise ValueError(f"split {split.name} was made from other records ({key} differ)")
        per_shard = len(split.train) // shards
        if per_shard < batch_size:
            raise UserError(
                f"split {split.name} has {len(split.train)} training images, {per_shard} for each "
                f"of {shards} shard(s), which do not fill a batch of {batch_size}; use a "
                "smaller --config.train.batch_size"
            )
        self.steps_per_epoch = per_shard // batch_size
        self.broken = BrokenFiles()
        self._records, self._annotated = records, split.annotated
        ids = split.train[shard::shards]
        load = _Loader(records, image_size, on_error, self.broken, spare=len(ids) - batch_size)
        per_epoch = self.steps_per_epoch * batch_size
        self._iterator = _iterate(
            ids, load, batch_size, threads, shuffle_seed=_hashed(seed, shard), per_epoch=per_epoch
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        ids, images = next(self._iterator)
        batch = _batch(self._records, ids, images)
        has_box = self._annotated[ids]
        batch["has_box"] = has_box
        # Only what training may see leaves the data layer: other truth boxes are blanked.
        batch["boxes"] = np.where(has_box[..., None], self._records.boxes[ids], np.float32(0))
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the next batch starts; JSON-able."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues with the very batch that followed `get_state`."""
        self._iterator.set_state(state)


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


def own_shards(shards: int, *, index: int, processes: int) -> range:
    """The shards of process `index`; `shards` is a multiple of `processes`."""
    each = shards // processes
    return range(index * each, (index + 1) * each)


def own_images(train: np.ndarray, own: range, shards: int) -> np.ndarray:
    """The training images of the shards `own`: int [m], as `TrainBatches` cuts them."""
    return np.concatenate([train[shard::shards] for shard in own])


def eval_batches(
    records: Records,
    ids: np.ndarray,
    *,
    image_size: int,
    batch_size: int,
    on_error: OnError = "raise",
    threads: int = 2,
    broken: BrokenFiles | None = None,
) -> Iterator[Batch]:
    """Batches of the images `ids` in that order, each once; of equal size, the last one padded.

    Padding has `valid` False, black pixels, no labels and ids −1. A broken file raises UserError,
    or with on_error='skip' is left out (and is told to `broken`, where given).
    """
    load = _Loader(records, image_size, on_error, BrokenFiles() if broken is None else broken)
    for found, images in _iterate(np.asarray(ids, np.int64), load, batch_size, threads):
        batch = _batch(records, found, images)
        pad = batch_size - len(found)
        batch["valid"] = np.arange(batch_size) < len(found)
        for key, fill in (("image", 0), ("labels", 0), ("image_id", -1), ("patient_id", -1)):
            array = batch[key]
            batch[key] = np.pad(
                array, [(0, pad)] + [(0, 0)] * (array.ndim - 1), constant_values=fill
            )
        yield batch


def _batch(records: Records, ids: np.ndarray, images: np.ndarray) -> Batch:
    return {
        "image": images[..., None],
        "labels": records.labels[ids].astype(np.float32),
        "image_id": ids.astype(np.int32),
        "patient_id": records.patients[ids].astype(np.int32),
    }


class _Loader:
    """Image id → (id, uint8 [size size]), or None for a broken file that is left out."""

    def __init__(
        self,
        records: Records,
        size: int,
        on_error: OnError,
        broken: BrokenFiles,
        spare: int | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise UserError(f"--config.data.on_error must be 'raise' or 'skip', not {on_error!r}")
        self._images, self._size = records.images, size
        self._skip, self._broken, self._spare = on_error == "skip", broken, spare
        self._lost: set[Path] = set()  # of its own images; `broken` may hold others' too

    def __call__(self, image_id: np.int64) -> tuple[np.int64, np.ndarray] | None:
        try:
            return image_id, self._images.read(image_id, self._size)
        except BrokenImage as error:
            if not self._skip:
                raise UserError(
                    f"{error}; mend or remove it, or leave such files out with "
                    "--config.data.on_error=skip (--mode=verify lists them all)"
                ) from error
            self._broken.add(error)
            self._lost.add(error.path)
            # Without this, a root of broken files would be searched for ever.
            if self._spare is not None and len(self._lost) > self._spare:
                raise UserError(
                    f"{len(self._lost)} image files cannot be read, and the others do not fill a batch; the first: "
                    f"{min(self._lost)}"
                ) from error
            return None


def _iterate(
    ids: np.ndarray,
    load: Callable[[np.int64], tuple[np.int64, np.ndarray] | None],
    batch_size: int,
    threads: int,
    *,
    shuffle_seed: int | None = None,
    per_epoch: int = 0,
) -> Any:
    """grain iterator over (ids [b], images [b h w]); endless and shuffled where a seed is given."""
    import grain  # takes two seconds and imports jax: only where pictures are read

    data = grain.MapDataset.source(ids)
    if shuffle_seed is not None:
        # Cut after the shuffle, so that each epoch leaves other images over.
        data = data.shuffle(seed=shuffle_seed)[:per_epoch].repeat()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * batch_size)
    pictures = data.map(load).to_iter_dataset(options)  # leaves None, a broken file, out
    return iter(pictures.batch(batch_size, drop_remainder=shuffle_seed is not None))


def _hashed(seed: int, shard: int) -> int:
    """grain shuffles epoch e by seed + e; unhashed, seed 1 would repeat seed 0's orders."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{shard}".encode()).digest()[:4])
