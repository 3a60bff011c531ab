"""Logits and class maps of many images: the one path from a trained state to what is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kacl_jax.data import pipeline
from kacl_jax.data.nih import Records
from kacl_jax.outputs import Outputs
from kacl_jax.parallel import DataParallel


class Inference:
    """Runs `Programs.eval_step` over images of a data root.

    parallel: where; eval_step: the per-device function; the rest as in `data.pipeline.eval_batches`.
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
        broken: pipeline.BrokenFiles,
    ) -> None:
        self._parallel = parallel
        self._step = parallel.run(eval_step, ("sharded",))
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
        found = list(self._rows(state, ids, ("logits",)))
        return Outputs(_joined(found, "image_id"), _joined(found, "logits"))

    def outputs(self, state: Any, ids: np.ndarray, *, center: np.ndarray | None) -> Outputs:
        """Logits and class maps of the images; `center` [c u v] is subtracted from every map if given."""
        found = list(self._rows(state, ids, ("logits", "maps")))
        maps = _joined(found, "maps")
        if center is not None:
            maps = maps - center
        return Outputs(_joined(found, "image_id"), _joined(found, "logits"), maps)

    def mean_map(self, state: Any, ids: np.ndarray) -> np.ndarray:
        """The mean raw class map of the images: float32 [c u v]."""
        total, count = np.zeros(()), 0
        for rows in self._rows(state, ids, ("maps",)):
            total = total + rows["maps"].sum(0, dtype=np.float64)
            count += len(rows["maps"])
        return (total / count).astype(np.float32)

    def _rows(
        self, state: Any, ids: np.ndarray, names: tuple[str, ...]
    ) -> Iterator[dict[str, np.ndarray]]:
        for batch in pipeline.eval_batches(self._records, ids, **self._options):
            (rows,) = self._step(state, self._parallel.shard({"image": batch["image"]}))
            host = self._parallel.fetch({name: rows[name] for name in names}, "sharded")
            valid = batch["valid"]
            yield {
                "image_id": batch["image_id"][valid],
                **{name: values[valid] for name, values in host.items()},
            }


def _joined(found: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    return np.concatenate([rows[name] for rows in found])
