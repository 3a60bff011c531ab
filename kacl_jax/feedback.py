"""The feedback loop's mechanism: when a region's radiomic features become visible to training.

THE VISIBILITY RULE. Regions proposed at step t are handed over with `submit(t, …)`. `lookup(s, …)`
shows, for every image, the result of its latest region with t ≤ s − lag, and nothing newer, however
fast or slow the workers are. So the same seed gives the same weights with 1 worker and with 40.
If such a result is not there yet, the lookup waits (late = 'wait', and counts the wait) or goes on
without it (late = 'drop', and counts that: such a run is not reproducible).

A region is proposed by Grad-CAM inside the train step; its features are computed by the workers of
pool.py, unless the memo of feature_cache.py knows them; the table they land in is what the train
step of a later step reads. That is the loop.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from kacl_jax.feature_cache import FeatureCache
from kacl_jax.pool import RadiomicsPool, Result
from kacl_jax.radiomics.host import crop

__all__ = ["FeatureCache", "Feedback", "Lookup", "RadiomicsPool", "Result"]

_LIVENESS_S = 1.0  # how often a wait looks whether the pool still lives


class Lookup(NamedTuple):
    radiomics: np.ndarray  # float32 [b f], raw features; zeros where not ready
    ready: np.ndarray  # bool [b]
    age: np.ndarray  # int32 [b], steps since the region was proposed; 0 where not ready


@dataclass(eq=False)
class _Region:
    """One submitted region until its result is in the table."""

    step: int
    image: int
    pixels: np.ndarray  # uint8, cropped
    mask: np.ndarray  # bool, cropped
    key: bytes
    answer: Result | Future[Result]  # known from the memo, or on its way
    late: bool = False

    def done(self) -> bool:
        return isinstance(self.answer, Result) or self.answer.done()

    def result(self) -> Result:
        return self.answer if isinstance(self.answer, Result) else self.answer.result(timeout=0)


class Feedback:
    """Pool and cache joined by the visibility rule. Used by one thread.

    lag: steps until a result is visible, ≥ 0; 0 is the paper's synchronous loop (submit(t), then
    lookup(t)). The order of calls that the rule needs: step t is submitted before any lookup that
    must show it; anything else raises ValueError.
    failures: how many regions ended without features, by reason; like the other counts of results
    it is exact after `settle` or `state` and trails the slowest worker in between.
    reproducible: False once a region was given up after deaths or time-outs, or was late or dropped.
    """

    def __init__(
        self,
        *,
        pool: RadiomicsPool,
        cache: FeatureCache,
        lag: int,
        late: Literal["wait", "drop"] = "wait",
    ) -> None:
        if lag < 0 or late not in ("wait", "drop"):
            raise ValueError(f"lag must be >= 0 and late 'wait' or 'drop', got {lag}, {late!r}")
        self._pool = pool
        self._cache = cache
        self._lag = lag
        self._late = late
        self._pending: list[_Region] = []  # ordered by (step, row): the order of publication
        self._submitted_step = -1
        self._seen_step = -1  # the latest step that was looked up
        self.reproducible = True
        self.failures: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._waits_s = 0.0

    def submit(
        self, step: int, image_id: np.ndarray, pixels: np.ndarray, masks: np.ndarray
    ) -> None:
        """Hand over the regions of one step: image_id int [b], pixels uint8 and masks bool [b h w].

        Of two rows of one image the later one counts. Unfinished work is bounded to lag + 2
        batches: beyond it this waits for the oldest (late = 'wait') or drops the row ('drop').
        """
        if step <= self._submitted_step or step <= self._seen_step - self._lag:
            raise ValueError(
                f"step {step} is submitted too late: step {self._submitted_step} was submitted and "
                f"step {self._seen_step} looked up (lag {self._lag})"
            )
        self._submitted_step = step
        last_row = {int(image): row for row, image in enumerate(image_id)}
        for row in sorted(last_row.values()):
            self._counts["submitted"] += 1
            if self._has_room((self._lag + 2) * len(image_id)):
                self._send(step, int(image_id[row]), *crop(pixels[row], masks[row]))
            else:
                self._counts["dropped"] += 1
                self.reproducible = False

    def lookup(self, step: int, image_id: np.ndarray) -> Lookup:
        """What is visible at `step` for the images image_id int [b].

        Raises RuntimeError when the workers cannot start any more.
        """
        if step < self._seen_step:
            raise ValueError(f"lookup of step {step} after one of step {self._seen_step}")
        self._pool.check()
        self._seen_step = step
        due = self._due(step)
        if self._late == "wait":
            latest = {region.image: region for region in due}
            self._wait_for(latest[int(i)] for i in image_id if int(i) in latest)
        else:
            self._count_late(due)
        self._publish(due)
        ready = self._cache.ready[image_id]
        age = np.where(ready, step - self._cache.step[image_id], 0).astype(np.int32)
        return Lookup(self._cache.features[image_id], ready, age)

    def settle(self, step: int) -> None:
        """Wait until the table holds everything that is visible at `step`, for all images."""
        due = self._due(step)
        self._wait_for(due)
        self._publish(due)

    # --- one region ---------------------------------------------------------------------------

    def _send(self, step: int, image: int, pixels: np.ndarray, mask: np.ndarray) -> None:
        key = self._cache.key(pixels, mask)
        answer = self._cache.recall(key) or self._pool.submit(pixels, mask)
        self._pending.append(_Region(step, image, pixels, mask, key, answer))

    def _has_room(self, limit: int) -> bool:
        unfinished = [region for region in self._pending if not region.done()]
        if len(unfinished) < limit:
            return True
        if self._late == "drop":
            return False
        self._wait_for(unfinished[: len(unfinished) - limit + 1])
        return True

    def _due(self, step: int) -> list[_Region]:
        return [region for region in self._pending if region.step <= step - self._lag]

    def _wait_for(self, regions: Iterable[_Region]) -> None:
        for region in regions:
            if region.done():
                continue
            assert isinstance(region.answer, Future)
            started = time.perf_counter()
            while True:
                try:
                    region.answer.result(timeout=_LIVENESS_S)
                    break
                except TimeoutError:
                    self._pool.check()
            self._counts["wait_count"] += 1
            self._waits_s += time.perf_counter() - started

    def _count_late(self, due: list[_Region]) -> None:
        for region in due:
            if not region.done() and not region.late:
                region.late = True
                self.reproducible = False
                self._counts["late"] += 1

    def _publish(self, due: list[_Region]) -> None:
        """Move finished due regions into table and memo. An older step never replaces a newer."""
        finished = [region for region in due if region.done()]
        self._cache.remember(
            (region.key, region.result())
            for region in finished
            if isinstance(region.answer, Future)
        )
        for region in finished:
            result = region.result()
            known = isinstance(region.answer, Result)
            self._counts["memo_hits" if known else "computed"] += 1
            self.reproducible &= result.deterministic
            if result.reason is not None:
                self.failures[result.reason] += 1
            if region.step > self._cache.step[region.image]:
                self._cache.set(region.image, result, region.step)
        gone = set(map(id, finished))
        self._pending = [region for region in self._pending if id(region) not in gone]

    # --- counters and checkpoints ---------------------------------------------------------------

    @property
    def counters(self) -> dict[str, int | float]:
        """Totals since step 0 (restored with `restore`), the workers' own since this process.

        worker_busy_s against the run's wall time shows how far radiomics overlaps the train step;
        waits_s is what did not overlap.
        """
        names = ("submitted", "computed", "memo_hits", "late", "dropped", "wait_count")
        return {
            **{name: self._counts[name] for name in names},
            "failed": self.failures.total(),
            "waits_s": self._waits_s,
            "pending": len(self._pending),
            "corrupt_rows": self._cache.corrupt_rows,
            "restarts": self._pool.restarts,
            "worker_busy_s": self._pool.worker_busy_s,
        }

    def state(self, step: int) -> dict[str, np.ndarray]:
        """All that later lookups depend on, after step `step` was submitted.

        The table as visible at `step` (waits for it) and the regions whose time has not come, as
        crops: pending_shape int32 [p 2], their pixels and packed masks end to end in one uint8
        array each. Arrays of p regions start with one empty row, for no checkpoint array is empty.
        """
        cache = self._cache
        if self._seen_step > step or self._submitted_step > step:
            raise ValueError(f"the state of step {step} is gone: step {step + 1} has begun")
        self.settle(step)
        nothing = np.zeros((1, 1), np.uint8)
        pixels = [nothing, *(region.pixels for region in self._pending)]
        masks = [nothing.astype(bool), *(region.mask for region in self._pending)]
        counts = {
            "counts": dict(self._counts),
            "failures": dict(self.failures),
            "waits_s": self._waits_s,
            "reproducible": self.reproducible,
        }
        return {
            "step": np.array([step], np.int32),
            "features": cache.features.copy(),
            "ready": cache.ready.copy(),
            "features_step": cache.step.copy(),
            "pending_step": np.array([-1, *(r.step for r in self._pending)], np.int32),
            "pending_image": np.array([-1, *(r.image for r in self._pending)], np.int32),
            "pending_shape": np.array([array.shape for array in pixels], np.int32),
            "pending_pixels": np.concatenate([array.ravel() for array in pixels]),
            "pending_masks": np.concatenate([np.packbits(array) for array in masks]),
            "counters": np.frombuffer(json.dumps(counts, sort_keys=True).encode(), np.uint8).copy(),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from `state`: everything later is as if the run had not been interrupted.

        The pending regions are computed again, or recalled. Raises ValueError for another number
        of images or features.
        """
        cache = self._cache
        if state["features"].shape != cache.features.shape:
            raise ValueError(
                f"the checkpoint's feature table is {state['features'].shape}, this run's is "
                f"{cache.features.shape}"
            )
        for region in self._pending:
            if isinstance(region.answer, Future):
                region.answer.cancel()
        cache.features[:] = state["features"]
        cache.ready[:] = state["ready"]
        cache.step[:] = state["features_step"]
        self._submitted_step = self._seen_step = int(state["step"][0])
        counts = json.loads(state["counters"].tobytes())
        self._counts = Counter(counts["counts"])
        self.failures = Counter(counts["failures"])
        self._waits_s = counts["waits_s"]
        self.reproducible = counts["reproducible"]
        self._pending = []
        for step, image, pixels, mask in _unpacked(state):
            self._send(step, image, pixels, mask)


def _unpacked(
    state: dict[str, np.ndarray],
) -> Iterable[tuple[int, int, np.ndarray, np.ndarray]]:
    """The pending regions of a state, without its leading empty row."""
    at = at_bits = 0
    rows = zip(state["pending_step"], state["pending_image"], state["pending_shape"], strict=True)
    for step, image, (height, width) in rows:
        size = int(height) * int(width)
        pixels = state["pending_pixels"][at : at + size].reshape(height, width)
        packed = state["pending_masks"][at_bits : at_bits + (size + 7) // 8]
        mask = np.unpackbits(packed, count=size).astype(bool).reshape(height, width)
        at += size
        at_bits += (size + 7) // 8
        if step >= 0:
            yield int(step), int(image), pixels.copy(), mask
