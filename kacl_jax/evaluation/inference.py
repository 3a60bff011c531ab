"""Logits, class maps and embeddings of many images, computed from a trained state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from kacl_jax.data.batches import BrokenFiles, eval_batches
from kacl_jax.data.records import Records
from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.runtime import processes
from kacl_jax.runtime.devices import DataParallel


class Survey(NamedTuple):
    """The m images of one part: their logits, embeddings and hashes, and their mean map.

    embeddings: float32 [m k]. pixel_hashes: uint8 [m 16], from `hash_pixels`. mean_map: float32 [c u v], raw.
    """

    outputs: Outputs
    embeddings: np.ndarray
    pixel_hashes: np.ndarray
    mean_map: np.ndarray


def hash_pixels(pixels: np.ndarray) -> np.ndarray:
    """A digest uint8 [16] of the uint8 pixels that a network sees."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=16).digest()
    return np.frombuffer(digest, np.uint8)


class Inference:
    """Runs `Programs.eval_step` over images of a data root.

    Several processes share the images. All of them must call each method. Each one computes its own part and all
    return the outputs of all images, in the order that a single process would give. The processes exchange data only
    at the end of a method, so that none waits for another's batch.

    Args:
      parallel: the devices of this process.
      eval_step: the per-device function.
      batch_size: images per batch, on all devices of this process together.
      The others are as in `data.batches.eval_batches`.
    """

    def __init__(
        self,
        parallel: DataParallel,
        eval_step: Callable[[Any, Any], Any],
        records: Records,
        *,
        image_size: int,
        batch_size: int,
        on_error: str,
        threads: int,
        broken: BrokenFiles,
    ) -> None:
        self._parallel = parallel
        self._step = parallel.compile(eval_step, ("sharded",))
        self._records = records
        self._options: dict[str, Any] = {
            "image_size": image_size,
            "batch_size": batch_size,
            "on_error": on_error,
            "threads": threads,
            "broken": broken,
        }

    def logits(self, state: Any, ids: np.ndarray) -> Outputs:
        """Logits of the images, without their class maps.

        state: a TrainState on the devices. ids: int64 indices into the records; broken images may be missing from the
        result.
        """
        arrays = self._collect_outputs(state, ids, ("logits",))
        return Outputs(arrays["image_id"], arrays["logits"])

    def embeddings(self, state: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings float32 [m k] of the images, and the image of each row; the other arguments as in `logits`."""
        arrays = self._collect_outputs(state, ids, ("embedding",))
        return arrays["embedding"], arrays["image_id"]

    def outputs(self, state: Any, ids: np.ndarray, *, center: np.ndarray | None) -> Outputs:
        """Logits and class maps of the images; `center` [c u v] is subtracted from every map if given."""
        arrays = self._collect_outputs(state, ids, ("logits", "maps"))
        maps = arrays["maps"]
        if center is not None:
            maps = maps - center
        return Outputs(arrays["image_id"], arrays["logits"], maps)

    def hashed_outputs(
        self, state: Any, ids: np.ndarray, *, center: np.ndarray | None
    ) -> tuple[Outputs, np.ndarray]:
        """`outputs`, and pixel_hash uint8 [m 16] of the same images, from `hash_pixels`."""
        arrays = self._gather_rows(
            list(self._output_batches(state, ids, ("logits", "maps"), hashes=True))
        )
        maps = arrays["maps"] if center is None else arrays["maps"] - center
        return Outputs(arrays["image_id"], arrays["logits"], maps), arrays["pixel_hash"]

    def survey(self, state: Any, ids: np.ndarray) -> Survey:
        """What is kept of the images a network was trained or tuned on, in one pass over them."""
        total, batches = np.zeros(()), []
        for batch in self._output_batches(state, ids, ("logits", "maps", "embedding"), hashes=True):
            total = total + batch.pop("maps").sum(0, dtype=np.float64)
            batches.append(batch)
        arrays = self._gather_rows(batches)
        gathered = processes.gather(len(batches), {"total": total})
        totals = [process.arrays["total"] for process in gathered if process.meta]
        sum_of_maps = sum(totals[1:], totals[0])
        return Survey(
            Outputs(arrays["image_id"], arrays["logits"]),
            arrays["embedding"],
            arrays["pixel_hash"],
            (sum_of_maps / len(arrays["image_id"])).astype(np.float32),
        )

    def _collect_outputs(
        self, state: Any, ids: np.ndarray, names: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        """image_id int [m] and the named outputs [m …] of the images of all processes."""
        return self._gather_rows(list(self._output_batches(state, ids, names)))

    def _gather_rows(self, batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The rows of all processes' batches, in one order."""
        joined = {
            name: np.concatenate([batch[name] for batch in batches])
            for name in (batches[0] if batches else ())
        }
        gathered = [process.arrays for process in processes.gather(arrays=joined) if process.arrays]
        return {name: np.concatenate([arrays[name] for arrays in gathered]) for name in gathered[0]}

    def _output_batches(
        self, state: Any, ids: np.ndarray, names: tuple[str, ...], *, hashes: bool = False
    ) -> Iterator[dict[str, np.ndarray]]:
        """As `_collect_outputs`, batch by batch, for this process's part of the images only.

        hashes: add pixel_hash uint8 [m 16], from `hash_pixels`.
        """
        own = np.array_split(ids, processes.process_count())[processes.process_index()]
        state = self._parallel.local_view(state, "replicated")
        for batch in eval_batches(self._records, own, **self._options):
            (outputs,) = self._step(state, self._parallel.shard({"image": batch["image"]}))
            arrays = self._parallel.fetch({name: outputs[name] for name in names}, "sharded")
            valid = batch["valid"]
            if hashes:
                arrays["pixel_hash"] = np.stack([hash_pixels(image) for image in batch["image"]])
            yield {
                "image_id": batch["image_id"][valid],
                **{name: values[valid] for name, values in arrays.items()},
            }
