"""Logits and class maps of many images: the one path from a trained state to what is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kacl_jax.data.batches import BrokenFiles, eval_batches
from kacl_jax.data.nih import Records
from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.runtime import hosts
from kacl_jax.runtime.devices import DataParallel


class Inference:
    """Runs `Programs.eval_step` over images of a data root.

    Several processes share the images: each looks at its part, all call every method and get what all found, in the
    order that one process would have. Nothing passes between them until then, so none waits for another's batch.

    parallel: the devices of this process; batch_size: on them; eval_step: the per-device function; the rest as in
    `data.pipeline.eval_batches`.
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
        """Logits of the images, without their maps.

        state: a placed TrainState. ids: int64, indices into the records; broken images may be left out.
        """
        found = self._all_rows(state, ids, ("logits",))
        return Outputs(found["image_id"], found["logits"])

    def outputs(self, state: Any, ids: np.ndarray, *, center: np.ndarray | None) -> Outputs:
        """Logits and class maps of the images; `center` [c u v] is subtracted from every map if given."""
        found = self._all_rows(state, ids, ("logits", "maps"))
        maps = found["maps"]
        if center is not None:
            maps = maps - center
        return Outputs(found["image_id"], found["logits"], maps)

    def mean_map(self, state: Any, ids: np.ndarray) -> np.ndarray:
        """The mean raw class map of the images: float32 [c u v]."""
        total, count = np.zeros(()), 0
        for rows in self._rows(state, ids, ("maps",)):
            total = total + rows["maps"].sum(0, dtype=np.float64)
            count += len(rows["maps"])
        told = [t for t in hosts.gather(count, {"total": total}) if t.meta]
        whole = sum((t.arrays["total"] for t in told[1:]), told[0].arrays["total"])
        return (whole / sum(t.meta for t in told)).astype(np.float32)

    def _all_rows(
        self, state: Any, ids: np.ndarray, names: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        """image_id int [m] and the named outputs [m …], of all processes."""
        batches = list(self._rows(state, ids, names))
        joined = {
            name: np.concatenate([rows[name] for rows in batches])
            for name in (batches[0] if batches else ())
        }
        told = [t.arrays for t in hosts.gather(arrays=joined) if t.arrays]
        return {name: np.concatenate([arrays[name] for arrays in told]) for name in told[0]}

    def _rows(
        self, state: Any, ids: np.ndarray, names: tuple[str, ...]
    ) -> Iterator[dict[str, np.ndarray]]:
        """The rows of this process's part of the images, batch by batch."""
        own = np.array_split(ids, hosts.process_count())[hosts.process_index()]
        state = self._parallel.on_own_devices(state, "replicated")
        for batch in eval_batches(self._records, own, **self._options):
            (rows,) = self._step(state, self._parallel.shard({"image": batch["image"]}))
            host = self._parallel.fetch({name: rows[name] for name in names}, "sharded")
            valid = batch["valid"]
            yield {
                "image_id": batch["image_id"][valid],
                **{name: values[valid] for name, values in host.items()},
            }
