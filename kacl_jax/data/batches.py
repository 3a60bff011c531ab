"""Records + Split → batches of uint8 pictures, made by grain: seeded, sharded, resumable.

Pictures are read and resized in threads (cv2 frees the interpreter lock) and stay uint8;
normalisation and augmentation happen on the device.

A global batch is the concatenation of one batch from each shard of the training images, so the
batches of a run depend on the number of shards and not on the number of processes. With p processes
and s shards, process i reads the shards i·s/p … (i+1)·s/p − 1.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kacl_jax.data.image_facts import image_facts
from kacl_jax.data.records import Records
from kacl_jax.data.splits import Split
from kacl_jax.images.reader import BrokenImage, Grey8
from kacl_jax.runtime.errors import UserError

# image uint8 [b h w 1] · labels float32 [b c] · boxes float32 [b c k 4] (as in Records; 0 where
# has_box is False) · has_box bool [b c] · image_id int32 [b] · patient_id int32 [b].
# The batches of `eval_batches` have valid bool [b] instead of boxes and has_box.
Batch = dict[str, np.ndarray]
OnError = Literal["raise", "skip"]

_log = logging.getLogger(__name__)


class BrokenFiles:
    """Collects the files that cannot be read, with the reasons; logs each file once. Safe to use from threads."""

    def __init__(self) -> None:
        self._reasons: dict[Path, str] = {}
        self._lock = threading.Lock()

    def add(self, error: BrokenImage) -> None:
        with self._lock:
            if error.path in self._reasons:
                return
            self._reasons[error.path] = error.reason
        _log.warning("left out, cannot be read: %s %s", error.path, error.reason)

    def as_dict(self) -> dict[str, str]:
        """Path → reason, sorted by path."""
        with self._lock:
            return {str(path): reason for path, reason in sorted(self._reasons.items())}


class ShardBatches:
    """Endless batches of one shard of the training images, in a new order every epoch.

    The shard is `split.train[shard::shards]`: it is the same for the whole run, and shuffling happens
    inside it. An epoch has `steps_per_epoch` batches, the same number in every shard. Images that do
    not fill a batch are left out of this epoch; every epoch leaves out different ones.
    With on_error='skip' the next image takes the place of a broken one, so from then on an epoch
    begins a little earlier than every `steps_per_epoch` steps.

    The state is a few integers, so calling `get_state` after each batch is cheap.

    Args:
        batch_size: images per batch of this shard (not of all shards).
        seed: any integer ≥ 0; together with the shard it decides the orders.
        threads: number of decoding threads; it does not change the batches.

    Raises:
        UserError: the shard has fewer images than one batch. `__next__` raises it for a broken file
            with on_error='raise', or with 'skip' when too few images are left to fill a batch.
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
        # The split's patient checks hold only if it was made from these records.
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
        loader = _Loader(
            records, image_size, on_error, self.broken, max_broken=len(ids) - batch_size
        )
        per_epoch = self.steps_per_epoch * batch_size
        self._iterator = _batch_iterator(
            ids,
            loader,
            batch_size,
            threads,
            shuffle_seed=_shuffle_seed(seed, shard),
            per_epoch=per_epoch,
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        ids, images = next(self._iterator)
        batch = _assemble_batch(self._records, ids, images)
        has_box = self._annotated[ids]
        batch["has_box"] = has_box
        # Training must never see the other truth boxes, so they are set to 0 here.
        batch["boxes"] = np.where(has_box[..., None, None], self._records.boxes[ids], np.float32(0))
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the next batch starts, as a JSON-able dictionary."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the position that `get_state` returned: the same batches follow."""
        self._iterator.set_state(state)


class ProcessBatches:
    """Endless batches of this process: the batches of its shards, concatenated in shard order."""

    def __init__(self, shards: list[ShardBatches]) -> None:
        self._shards = shards
        self._batches_checked = self._too_narrow = 0
        self.steps_per_epoch = shards[0].steps_per_epoch
        self.broken = shards[0].broken

    @property
    def n_shards(self) -> int:
        """The number of this process's shards."""
        return len(self._shards)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batches = [next(shard) for shard in self._shards]
        batch = batches[0]
        if len(batches) > 1:
            batch = {name: np.concatenate([one[name] for one in batches]) for name in batch}
        self._check_grey(batch["image"])
        return batch

    def _check_grey(self, images: np.ndarray) -> None:
        """Refuses a first batch without pictures; logs after the first epoch how many images have a narrow range.

        images: uint8 [b h w 1].

        Raises:
            UserError: more than half of the first batch's images have one grey value only.
        """
        if self._batches_checked == self.steps_per_epoch:
            return
        facts = [image_facts(Grey8(image[..., 0], 8)) for image in images]
        constant = sum(one.is_constant for one in facts)
        if not self._batches_checked and 2 * constant > len(facts):
            raise UserError(
                f"{constant} of the first {len(facts)} images have one grey value only; --mode=verify lists such files"
            )
        self._batches_checked += 1
        self._too_narrow += constant + sum(one.is_nearly_black for one in facts)
        if self._batches_checked == self.steps_per_epoch and self._too_narrow:
            _log.warning(
                "%d of the first epoch's images are constant or nearly black; --mode=verify lists them and says why.",
                self._too_narrow,
            )

    def broken_files(self) -> dict[str, str]:
        """Path → reason of the files that could not be read."""
        return {
            path: reason
            for shard in self._shards
            for path, reason in shard.broken.as_dict().items()
        }

    def get_state(self) -> list[dict[str, Any]]:
        """Where each shard's next batch starts, JSON-able."""
        return [shard.get_state() for shard in self._shards]

    def set_state(self, states: list[dict[str, Any]]) -> None:
        """Restores the position that `get_state` returned: the same batches follow."""
        for shard, state in zip(self._shards, states, strict=True):
            shard.set_state(state)


def shards_of_process(shards: int, *, index: int, n_processes: int) -> range:
    """The shards that process `index` reads; `shards` is a multiple of `n_processes`."""
    per_process = shards // n_processes
    return range(index * per_process, (index + 1) * per_process)


def images_of_shards(train: np.ndarray, selected: range, shards: int) -> np.ndarray:
    """The training images of the shards `selected` (of `shards`): int [m], cut as in `ShardBatches`."""
    return np.concatenate([train[shard::shards] for shard in selected])


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
    """Batches of the images `ids` in this order, each image once. All batches have `batch_size` rows.

    The last batch is padded: padding has `valid` False, black pixels, no labels and ids −1. A broken
    file raises UserError; with on_error='skip' it is left out and added to `broken`.
    """
    loader = _Loader(records, image_size, on_error, BrokenFiles() if broken is None else broken)
    iterator = _batch_iterator(np.asarray(ids, np.int64), loader, batch_size, threads)
    for batch_ids, images in iterator:
        batch = _assemble_batch(records, batch_ids, images)
        pad = batch_size - len(batch_ids)
        batch["valid"] = np.arange(batch_size) < len(batch_ids)
        for key, fill in (("image", 0), ("labels", 0), ("image_id", -1), ("patient_id", -1)):
            array = batch[key]
            batch[key] = np.pad(
                array, [(0, pad)] + [(0, 0)] * (array.ndim - 1), constant_values=fill
            )
        yield batch


def _assemble_batch(records: Records, ids: np.ndarray, images: np.ndarray) -> Batch:
    return {
        "image": images[..., None],
        "labels": records.labels[ids].astype(np.float32),
        "image_id": ids.astype(np.int32),
        "patient_id": records.patients[ids].astype(np.int32),
    }


class _Loader:
    """Image id → (id, uint8 [size size]), or None for a broken file with on_error='skip'.

    max_broken: how many images may be broken before UserError is raised; None for no limit.
    """

    def __init__(
        self,
        records: Records,
        size: int,
        on_error: OnError,
        broken: BrokenFiles,
        max_broken: int | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise UserError(f"--config.data.on_error must be 'raise' or 'skip', not {on_error!r}")
        self._images, self._size = records.images, size
        self._skip, self._broken, self._max_broken = on_error == "skip", broken, max_broken
        # Only of this loader; other loaders may share `broken`.
        self._broken_paths: set[Path] = set()

    def __call__(self, image_id: np.int64) -> tuple[np.int64, np.ndarray] | None:
        try:
            return image_id, self._images.read(image_id, self._size)
        except BrokenImage as error:
            if not self._skip:
                raise UserError(
                    f"{error}; repair or remove it, or leave such files out with "
                    "--config.data.on_error=skip (--mode=verify lists them all)"
                ) from error
            self._broken.add(error)
            self._broken_paths.add(error.path)
            # Without this check the endless iterator never returns if too many files are broken.
            if self._max_broken is not None and len(self._broken_paths) > self._max_broken:
                raise UserError(
                    f"{len(self._broken_paths)} image files cannot be read, and the others do not "
                    f"fill a batch; the first: {min(self._broken_paths)}"
                ) from error
            return None


def _batch_iterator(
    ids: np.ndarray,
    loader: Callable[[np.int64], tuple[np.int64, np.ndarray] | None],
    batch_size: int,
    threads: int,
    *,
    shuffle_seed: int | None = None,
    per_epoch: int = 0,
) -> Any:
    """grain iterator over (ids [b], images [b h w]); with a `shuffle_seed` it is endless and shuffled."""
    import grain  # takes 2 s and imports jax: import only where pictures are read

    data = grain.MapDataset.source(ids)
    if shuffle_seed is not None:
        # Cut after the shuffle, so that every epoch leaves out different images.
        data = data.shuffle(seed=shuffle_seed)[:per_epoch].repeat()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * batch_size)
    pictures = data.map(loader).to_iter_dataset(options)  # skips None, that is a broken file
    return iter(pictures.batch(batch_size, drop_remainder=shuffle_seed is not None))


def _shuffle_seed(seed: int, shard: int) -> int:
    """A hash, because grain shuffles epoch e by seed + e: unhashed, seed 1 would repeat the orders of seed 0."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{shard}".encode()).digest()[:4])
