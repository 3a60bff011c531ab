"""The feedback loop's mechanism: when a region's radiomic features become visible to training.

THE VISIBILITY RULE. Regions proposed at step t are handed over with `submit(t, …)`. `lookup(s, …)`
shows, for every image, the result of its latest region with t ≤ s − lag, and nothing newer, however
fast or slow the workers are. So the same seed gives the same weights with 1 worker and with 40.
If such a result is not there yet, late = 'wait' lets the lookup wait and counts the wait; late = 'drop'
lets it go on without the result and counts that, and such a run is not reproducible.

Grad-CAM proposes a region inside the train step. The workers of pool.py compute its features, unless
feature_cache.py has them already. The features go into the table, and a later train step reads them
there. That is the loop.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from kacl_jax.feedback.checkpoint_state import (
    COUNTERS,
    Pending,
    decode_counters,
    encode_counters,
    pack_pending,
    unpack_pending,
)
from kacl_jax.feedback.feature_cache import FeatureCache
from kacl_jax.feedback.feature_table import FeatureTable
from kacl_jax.feedback.pool import RadiomicsPool
from kacl_jax.feedback.result import Result
from kacl_jax.radiomics.host import crop

_POOL_CHECK_S = 1.0  # how often a wait checks that the pool is still running


class Lookup(NamedTuple):
    radiomics: np.ndarray  # float32 [b f], raw features; zeros where not ready
    ready: np.ndarray  # bool [b]
    age: np.ndarray  # int32 [b], steps since the region was proposed; 0 where not ready


@dataclass(eq=False)
class _PendingRegion:
    """One submitted region until its result is in the table."""

    step: int
    image: int
    # A Result from the cache or a checkpoint, or a task of the pool.
    answer: Result | Future[Result]
    key: bytes = b""
    crop: tuple[np.ndarray, np.ndarray] | None = None  # pixels, mask; None once it is answered
    late: bool = False

    def done(self) -> bool:
        return isinstance(self.answer, Result) or self.answer.done()

    def result(self) -> Result:
        return self.answer if isinstance(self.answer, Result) else self.answer.result(timeout=0)

    def region(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.crop is not None, "an answered region keeps no crop"
        return self.crop


class Feedback:
    """Pool, table and cache joined by the visibility rule. Used by one thread.

    lag: steps until a result is visible, ≥ 0; 0 is the paper's synchronous loop (submit(t), then
    lookup(t)). The rule needs step t to be submitted before any lookup that must show it; another
    order of calls raises ValueError.
    failures: how many regions ended without features, by reason. Like the other counts of results
    it is exact after `wait_until_visible` or `state`; in between the slowest worker delays it.
    reproducible: False once a region was given up after crashes or time-outs, or was late or dropped.
    """

    def __init__(
        self,
        *,
        pool: RadiomicsPool,
        table: FeatureTable,
        cache: FeatureCache,
        lag: int,
        late: Literal["wait", "drop"] = "wait",
    ) -> None:
        if lag < 0 or late not in ("wait", "drop"):
            raise ValueError(f"lag must be >= 0 and late 'wait' or 'drop', got {lag}, {late!r}")
        self._pool = pool
        self._table = table
        self._cache = cache
        self._lag = lag
        self._late = late
        # Regions that are not visible yet, ordered by (step, row): the order of publication.
        self._pending: deque[_PendingRegion] = deque()
        # Regions that should be visible but had no result so far, in the same order.
        self._due: list[_PendingRegion] = []
        # Regions of both that may still have no result.
        self._unfinished: deque[_PendingRegion] = deque()
        self._submitted_step = -1
        self._looked_up_step = -1  # the latest step that was looked up
        self.reproducible = True
        self.failures: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._waits_s = 0.0

    def submit(
        self, step: int, image_id: np.ndarray, pixels: np.ndarray, masks: np.ndarray
    ) -> None:
        """Hand over the regions of one step: image_id int [b], pixels uint8 and masks bool [b h w].

        If an image has two rows, the later one counts. At most lag + 2 batches of regions may be
        unfinished: beyond that this waits for the oldest (late = 'wait') or drops the row ('drop').
        """
        if step <= self._submitted_step or step <= self._looked_up_step - self._lag:
            raise ValueError(
                f"step {step} is submitted too late: step {self._submitted_step} was submitted and "
                f"step {self._looked_up_step} looked up (lag {self._lag})"
            )
        self._check_images(image_id)
        self._submitted_step = step
        last_row = {int(image): row for row, image in enumerate(image_id)}
        for row in sorted(last_row.values()):
            self._counts["submitted"] += 1
            if self._has_room((self._lag + 2) * len(image_id)):
                region = self._send(step, int(image_id[row]), *crop(pixels[row], masks[row]))
                is_cached = isinstance(region.answer, Result)
                self._counts["memo_hits" if is_cached else "computed"] += 1
            else:
                self._counts["dropped"] += 1
                self.reproducible = False

    def lookup(self, step: int, image_id: np.ndarray) -> Lookup:
        """What is visible at `step` for the images image_id int [b].

        Raises UserError or InterruptedRunError when the workers do not start.
        """
        if step < self._looked_up_step:
            raise ValueError(f"lookup of step {step} after one of step {self._looked_up_step}")
        self._check_images(image_id)
        self._pool.check()
        self._looked_up_step = step
        self._collect_due(step)
        if self._late == "wait":
            latest = {region.image: region for region in self._due}
            self._wait_for(latest[int(i)] for i in image_id if int(i) in latest)
        else:
            self._count_late()
        self._publish()
        ready = self._table.ready[image_id]
        age = np.where(ready, step - self._table.step[image_id], 0).astype(np.int32)
        return Lookup(self._table.features[image_id], ready, age)

    def wait_until_visible(self, step: int) -> None:
        """Wait until the table holds everything that is visible at `step`, for all images."""
        self._collect_due(step)
        self._wait_for(self._due)
        self._publish()

    def _check_images(self, image_id: np.ndarray) -> None:
        if len(image_id) and not 0 <= image_id.min() <= image_id.max() < len(self._table.ready):
            raise ValueError(f"image ids must be 0 … {len(self._table.ready) - 1}, got {image_id}")

    # --- the way of a region ------------------------------------------------------------------

    def _send(self, step: int, image: int, pixels: np.ndarray, mask: np.ndarray) -> _PendingRegion:
        key = self._cache.key(pixels, mask)
        cached = self._cache.get(key)
        if cached is not None:
            region = _PendingRegion(step, image, cached)
        else:
            region = _PendingRegion(
                step, image, self._pool.submit(pixels, mask), key, (pixels, mask)
            )
            self._unfinished.append(region)
        self._pending.append(region)
        return region

    def _has_room(self, limit: int) -> bool:
        """Whether one more task may be unfinished; waits for room if this run waits at all."""
        while self._unfinished and self._unfinished[0].done():
            self._unfinished.popleft().crop = None
        if len(self._unfinished) < limit:
            return True
        self._unfinished = deque(region for region in self._unfinished if not region.done())
        excess = len(self._unfinished) - limit + 1
        if excess > 0 and self._late == "wait":
            self._wait_for(list(self._unfinished)[:excess])
        return excess <= 0 or self._late == "wait"

    def _collect_due(self, step: int) -> None:
        while self._pending and self._pending[0].step <= step - self._lag:
            self._due.append(self._pending.popleft())

    def _wait_for(self, regions: Iterable[_PendingRegion]) -> None:
        for region in regions:
            if region.done():
                continue
            assert isinstance(region.answer, Future)
            started = time.perf_counter()
            while not region.done():
                try:
                    region.answer.result(timeout=_POOL_CHECK_S)
                except TimeoutError:
                    self._pool.check()
            self._counts["wait_count"] += 1
            self._waits_s += time.perf_counter() - started

    def _count_late(self) -> None:
        for region in self._due:
            if not region.done() and not region.late:
                region.late = True
                self.reproducible = False
                self._counts["late"] += 1

    def _publish(self) -> None:
        """Write the finished due regions into the table and the cache. An older step never replaces a newer one."""
        finished = [region for region in self._due if region.done()]
        finished_ids = {id(region) for region in finished}  # done() may change during this method
        self._cache.put(
            (region.key, region.result())
            for region in finished
            if isinstance(region.answer, Future)
        )
        self._due = [region for region in self._due if id(region) not in finished_ids]
        for region in finished:
            result = region.result()
            self.reproducible &= result.deterministic
            if result.reason is not None:
                self.failures[result.reason] += 1
            if region.step > self._table.step[region.image]:
                self._table.set(region.image, result, region.step)

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
            "pending": len(self._pending) + len(self._due),
            "corrupt_rows": self._cache.corrupt_rows,
            "restarts": self._pool.restarts,
            "worker_busy_s": self._pool.worker_busy_s,
        }

    def state(self, step: int) -> dict[str, np.ndarray]:
        """All that later lookups depend on, after step `step` was submitted and before the next.

        It holds the table as visible at `step` (and waits for that), and the p regions that are not
        visible yet (pending_*). A region that has its result is stored with it; the other q regions
        are stored as crops (waiting_*), their uint8 pixels and packed uint8 masks end to end.
        pending_* and waiting_* begin with a row that means nothing, because a checkpoint cannot hold
        an empty array.
        """
        if self._looked_up_step > step or self._submitted_step > step:
            raise ValueError(f"the state of step {step} is gone: step {step + 1} has begun")
        self.wait_until_visible(step)
        pending = [
            Pending(r.step, r.image, r.result() if r.done() else r.region()) for r in self._pending
        ]
        arrays, results = pack_pending(pending, self._table.features.shape[1])
        counters = {
            "counts": dict(self._counts),
            "failures": dict(self.failures),
            "waits_s": self._waits_s,
            "reproducible": self.reproducible,
            "results": results,
        }
        return {
            "step": np.array([step], np.int32),
            "features": self._table.features.copy(),
            "ready": self._table.ready.copy(),
            "features_step": self._table.step.copy(),
            **arrays,
            COUNTERS: encode_counters(counters),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from `state`: everything later is as if the run had not been interrupted.

        Pending regions without a result are computed again, or taken from the cache. Raises
        ValueError for another number of images or features.
        """
        table = self._table
        if state["features"].shape != table.features.shape:
            raise ValueError(
                f"the checkpoint's feature table is {state['features'].shape}, this run's is "
                f"{table.features.shape}"
            )
        for region in self._unfinished:
            if isinstance(region.answer, Future):
                region.answer.cancel()
        self._pending.clear()
        self._due.clear()
        self._unfinished.clear()
        table.features[:] = state["features"]
        table.ready[:] = state["ready"]
        table.step[:] = state["features_step"]
        self._submitted_step = self._looked_up_step = int(state["step"][0])
        counters = decode_counters(state)
        self._counts = Counter(counters["counts"])
        self.failures = Counter(counters["failures"])
        self._waits_s = counters["waits_s"]
        self.reproducible = counters["reproducible"]
        for step, image, content in unpack_pending(state, counters["results"]):
            if isinstance(content, Result):
                self._pending.append(_PendingRegion(step, image, content))
            else:
                self._send(step, image, *content)
