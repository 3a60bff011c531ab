"""The visibility rule against a model of it in ten lines, and the loop with real workers."""

from __future__ import annotations

import random
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kacl_jax.feedback.feature_cache import FeatureCache
from kacl_jax.feedback.feature_table import FeatureTable
from kacl_jax.feedback.pool import RadiomicsPool
from kacl_jax.feedback.result import Result
from kacl_jax.feedback.visibility import Feedback
from kacl_jax.radiomics.host import settings_key
from kacl_jax.runtime.errors import UserError

IMAGES = 6


def _answer(value: int) -> Result:
    """What the workers of these tests say about a region of grey level `value`."""
    if value % 5 == 0:
        return Result(None, f"refused {value % 2}")
    return Result(np.full(102, value, np.float32), None)


class LazyFuture(Future):
    """Is done when somebody finishes it, or at last when somebody waits for it."""

    def __init__(self, result: Result) -> None:
        super().__init__()
        self._planned = result

    def finish(self) -> None:
        if not self.done():
            self.set_result(self._planned)

    def result(self, timeout: float | None = None) -> Result:
        self.finish()
        return super().result(timeout)


class LazyPool:
    """A pool whose tasks finish in the order that a test likes."""

    restarts = 0
    worker_busy_s = 0.0

    def __init__(self) -> None:
        self.futures: list[LazyFuture] = []

    def submit(self, pixels: np.ndarray, mask: np.ndarray) -> LazyFuture:
        assert mask.all()
        self.futures.append(LazyFuture(_answer(int(pixels[0, 0]))))
        return self.futures[-1]

    def check(self) -> None:
        pass

    def unfinished(self) -> list[LazyFuture]:
        return [future for future in self.futures if not future.done()]

    def finish_some(self, order: random.Random) -> None:
        waiting = self.unfinished()
        for future in order.sample(waiting, order.randint(0, len(waiting))):
            future.finish()


def _feedback(pool, lag: int, late: str = "wait", path: str = ":memory:") -> Feedback:
    cache = FeatureCache(Path(path), settings="test")
    return Feedback(pool=pool, table=FeatureTable(IMAGES), cache=cache, lag=lag, late=late)


def _regions(values: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """One region per value, of various sizes, off the corner of the image."""
    pixels = np.zeros((len(values), 12, 12), np.uint8)
    masks = np.zeros(pixels.shape, bool)
    for row, value in enumerate(values):
        window = np.s_[row, 3 : 5 + value % 7, 2 : 4 + value % 3]
        pixels[window] = value
        masks[window] = True
    return pixels, masks


def _submit(feedback: Feedback, step: int, images: list[int], values: list[int]) -> None:
    feedback.submit(step, np.array(images, np.int32), *_regions(values))


class Model:
    """The rule, written down as plainly as possible: of all regions old enough, the last counts."""

    def __init__(self, lag: int) -> None:
        self.lag = lag
        self.history: list[tuple[int, int, int]] = []

    def submit(self, step: int, images: list[int], values: list[int]) -> None:
        self.history += [(step, i, v) for i, v in zip(images, values, strict=True)]

    def lookup(self, step: int, images: list[int]) -> list[tuple[int, int] | None]:
        """(value, age) or None for each image."""
        found = []
        for image in images:
            old = [(t, v) for t, i, v in self.history if i == image and t <= step - self.lag]
            good = bool(old) and _answer(old[-1][1]).features is not None
            found.append((old[-1][1], step - old[-1][0]) if good else None)
        return found


def _assert_same(seen, expected: list[tuple[int, int] | None]) -> None:
    assert (seen.radiomics.dtype, seen.ready.dtype, seen.age.dtype) == ("f4", "bool", "i4")
    shown = [
        (int(row[0]), int(age)) if ready else None
        for row, ready, age in zip(seen.radiomics, seen.ready, seen.age, strict=True)
    ]
    assert shown == expected
    assert not seen.radiomics[~seen.ready].any()
    assert not seen.age[~seen.ready].any()


BATCH = st.lists(st.tuples(st.integers(0, IMAGES - 1), st.integers(0, 20)), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lag=st.integers(0, 4),
    batches=st.lists(BATCH, min_size=1, max_size=12),
    restarts=st.sets(st.integers(0, 11), max_size=3),
    keep_memo=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_what_is_seen_is_the_rule_whatever_finishes_when(
    lag, batches, restarts, keep_memo, order
) -> None:
    """Adversarial workers, kills and restores at random steps, a warm or a lost memo."""
    model, pool = Model(lag), LazyPool()
    feedback = _feedback(pool, lag)
    for step, batch in enumerate(batches):
        images, values = ([*column] for column in zip(*batch, strict=True))
        if lag == 0:
            _submit(feedback, step, images, values)
            model.submit(step, images, values)
        pool.finish_some(order)
        seen = feedback.lookup(step, np.array(images, np.int32))
        _assert_same(seen, model.lookup(step, images))
        if lag > 0:
            _submit(feedback, step, images, values)
            model.submit(step, images, values)
        pool.finish_some(order)
        if step in restarts:
            state = feedback.state(step)
            pool = LazyPool()
            restored = _feedback(pool, lag)
            if keep_memo:
                restored._cache._file.close()
                restored._cache._file = feedback._cache._file
            else:
                feedback._cache.close()
            feedback = restored
            feedback.restore(state)
    last = len(batches) + lag
    feedback.wait_until_visible(last)
    everything = list(range(IMAGES))
    _assert_same(feedback.lookup(last, np.array(everything)), model.lookup(last, everything))
    kept = {(t, i): v for t, i, v in model.history}  # of one image in one step the last row counts
    refused = [reason for v in kept.values() if (reason := _answer(v).reason) is not None]
    assert feedback.failures == {reason: refused.count(reason) for reason in refused}
    assert feedback.counters["submitted"] == len(kept)
    assert feedback.counters["computed"] + feedback.counters["memo_hits"] == len(kept)
    assert feedback.counters["pending"] == 0
    assert feedback.reproducible
    feedback._cache.close()


def test_a_lookup_waits_for_its_own_images_only() -> None:
    pool = LazyPool()
    feedback = _feedback(pool, lag=1)
    _submit(feedback, 0, [0, 1, 2], [11, 12, 13])
    feedback.lookup(1, np.array([1]))
    assert [future.done() for future in pool.futures] == [False, True, False]
    assert feedback.counters["wait_count"] == 1
    feedback._cache.close()


def test_an_older_result_that_comes_later_does_not_win() -> None:
    pool = LazyPool()
    feedback = _feedback(pool, lag=1, late="drop")
    _submit(feedback, 0, [0], [11])
    _submit(feedback, 1, [0], [12])
    pool.futures[1].finish()
    _assert_same(feedback.lookup(2, np.array([0])), [(12, 1)])
    pool.futures[0].finish()
    _assert_same(feedback.lookup(3, np.array([0])), [(12, 2)])
    assert feedback.counters["late"] == 1
    feedback._cache.close()


def test_a_failed_newer_result_takes_the_old_one_away() -> None:
    feedback = _feedback(LazyPool(), lag=0)
    _submit(feedback, 0, [3], [11])
    _assert_same(feedback.lookup(0, np.array([3])), [(11, 0)])
    _submit(feedback, 1, [3], [5])
    _assert_same(feedback.lookup(1, np.array([3])), [None])
    assert feedback.failures == {"refused 1": 1}
    feedback._cache.close()


def test_a_warm_memo_saves_work_and_shows_nothing_earlier(tmp_path) -> None:
    path = str(tmp_path / "features.sqlite")
    first = _feedback(LazyPool(), 2, path=path)
    _submit(first, 0, [0, 1], [11, 5])
    first.wait_until_visible(2)
    first._cache.close()
    pool = LazyPool()
    again = _feedback(pool, 2, path=path)
    _submit(again, 0, [0, 1], [11, 5])
    assert pool.futures == []
    for step in (0, 1):
        _assert_same(again.lookup(step, np.array([0, 1])), [None, None])
    _assert_same(again.lookup(2, np.array([0, 1])), [(11, 2), None])
    assert again.counters["memo_hits"] == 2
    assert again.failures == {"refused 1": 1}
    again._cache.close()


def test_unfinished_work_is_bounded() -> None:
    waiting, dropping = LazyPool(), LazyPool()
    patient, hasty = _feedback(waiting, 1), _feedback(dropping, 1, "drop")
    for step in range(6):
        for feedback in (patient, hasty):
            _submit(feedback, step, [0, 1, 2, 3], [11 + step] * 4)
        assert len(waiting.unfinished()) <= 12
        assert len(dropping.unfinished()) <= 12
    assert (patient.counters["submitted"], patient.counters["dropped"]) == (24, 0)
    assert (hasty.counters["computed"], hasty.counters["dropped"]) == (12, 12)
    assert (patient.reproducible, hasty.reproducible) == (True, False)
    started = time.monotonic()
    _assert_same(hasty.lookup(6, np.array([0, 1])), [None, None])
    assert hasty.counters["late"] == 12
    assert hasty.counters["wait_count"] == 0
    assert time.monotonic() - started < 10
    patient._cache.close()
    hasty._cache.close()


def test_calls_in_an_order_that_breaks_the_rule_are_refused() -> None:
    feedback = _feedback(LazyPool(), lag=1)
    feedback.lookup(3, np.array([0]))
    with pytest.raises(ValueError, match="step 2 is submitted too late"):
        _submit(feedback, 2, [0], [11])
    _submit(feedback, 3, [0], [11])
    with pytest.raises(ValueError, match="submitted too late"):
        _submit(feedback, 3, [0], [11])
    with pytest.raises(ValueError, match="lookup of step 2"):
        feedback.lookup(2, np.array([0]))
    with pytest.raises(ValueError, match="image ids must be 0"):
        feedback.lookup(3, np.array([0, -1]))
    with pytest.raises(ValueError, match="the state of step 2 is gone"):
        feedback.state(2)
    other = Feedback(
        pool=LazyPool(),
        table=FeatureTable(IMAGES + 1),
        cache=FeatureCache(Path(":memory:"), settings="test"),
        lag=1,
        late="wait",
    )
    with pytest.raises(ValueError, match="feature table"):
        other.restore(feedback.state(3))
    other._cache.close()
    feedback._cache.close()


def test_state_is_plain_arrays_none_of_them_empty() -> None:
    pool = LazyPool()
    feedback = _feedback(pool, lag=3)
    for step in range(2):
        state = feedback.state(step - 1)
        assert all(array.size and array.dtype.kind in "biuf" for array in state.values())
        _submit(feedback, step, [0, 1], [11, 13])
    pool.futures[1].finish()
    state = feedback.state(1)
    assert state["pending_step"].tolist() == [-1, 0, 0, 1, 1]
    assert state["pending_known"].tolist() == [False, False, True, False, False]
    feedback._cache.close()


def test_a_given_up_task_makes_the_run_not_reproducible_and_that_is_kept() -> None:
    pool = LazyPool()
    feedback = _feedback(pool, lag=0)
    _submit(feedback, 0, [0], [11])
    pool.futures[0]._planned = Result(None, "timed out", deterministic=False)
    _assert_same(feedback.lookup(0, np.array([0])), [None])
    assert not feedback.reproducible
    assert feedback.failures == {"timed out": 1}
    restored = _feedback(LazyPool(), lag=0)
    restored.restore(feedback.state(0))
    assert not restored.reproducible
    _submit(restored, 1, [0], [11])  # such a failure is not remembered
    _assert_same(restored.lookup(1, np.array([0])), [(11, 0)])
    feedback._cache.close()
    restored._cache.close()


class NeverStarts(RadiomicsPool):
    def _command(self) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit(3)"]


def test_a_pool_that_cannot_start_is_loud_in_the_loop() -> None:
    with NeverStarts(1, bin_width=25.0) as pool:
        feedback = _feedback(pool, lag=1)

        def loop() -> None:
            for step in range(1000):
                feedback.lookup(step, np.array([0]))
                _submit(feedback, step, [0], [11])

        with pytest.raises(UserError, match="do not start"):
            loop()
        feedback._cache.close()


class SlowPool(RadiomicsPool):
    """The real worker, slowed down by random pauses."""

    def _command(self) -> list[str]:
        code = (
            "import random, time; from kacl_jax.feedback.worker import serve; "
            "from kacl_jax.radiomics.host import Extractor; e = Extractor(25.0); "
            "serve(lambda: lambda p, m: (time.sleep(random.random() ** 3 / 10), e.extract(p, m))[1])"
        )
        return [sys.executable, "-c", code]


def _run(pool: RadiomicsPool, path: Path, lag: int, restart_at: int = -1) -> bytes:
    """A loop whose regions depend on what was looked up, as training's do; all it saw, as bytes."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (20, 40, 40), dtype=np.uint8)
    batches = [rng.permutation(20)[:6] for _ in range(12)]

    def new() -> Feedback:
        cache = FeatureCache(path, settings=settings_key(25.0, "none"))
        return Feedback(pool=pool, table=FeatureTable(20), cache=cache, lag=lag, late="wait")

    feedback, weight, seen = new(), 0.0, []
    for step, batch in enumerate(batches):
        if lag > 0:
            found = feedback.lookup(step, batch)
        masks = np.zeros((6, 40, 40), bool)
        for row in range(6):
            side = 2 + int(abs(weight) * 1000 + row) % 30  # a side of 2 … 31 pixels
            masks[row, 4 : 4 + side, 3 : 3 + (1 if side == 7 else side)] = True
        feedback.submit(step, batch, pixels[batch], masks)
        if lag == 0:
            found = feedback.lookup(step, batch)
        weight += float(np.log1p(np.abs(found.radiomics)).mean()) + 0.01 * float(found.age.sum())
        seen += [array.tobytes() for array in found] + [np.float64(weight).tobytes()]
        if step == restart_at:
            state = feedback.state(step)
            feedback._cache.close()
            feedback = new()
            feedback.restore(state)
    feedback.wait_until_visible(len(batches) + lag)
    assert feedback.reproducible
    seen.append(repr(sorted(feedback.failures.items())).encode())
    feedback._cache.close()
    return b"".join(seen)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_same_bits_for_any_number_and_speed_of_workers_and_after_any_kill(lag, tmp_path) -> None:
    with RadiomicsPool(1, bin_width=25.0) as one, SlowPool(4, bin_width=25.0) as four:
        expected = _run(one, tmp_path / "one", lag)
        assert _run(four, tmp_path / "four", lag) == expected
        assert _run(four, tmp_path / "one", lag) == expected  # a warm memo
        for step in (0, 4, 11):
            assert _run(four, tmp_path / f"restart {step}", lag, restart_at=step) == expected


def test_workers_compute_while_the_loop_does_something_else(tmp_path) -> None:
    """With lag 2 the workers' time hides behind the step's: they are busy, the loop hardly waits."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (4, 96, 96), dtype=np.uint8)
    masks = np.zeros(pixels.shape, bool)
    masks[:, 8:80, 8:80] = True
    with RadiomicsPool(1, bin_width=25.0) as pool:
        pool.submit(pixels[0], masks[0]).result(60)  # started
        cache = FeatureCache(tmp_path / "f.sqlite", settings="x")
        feedback = Feedback(pool=pool, table=FeatureTable(8), cache=cache, lag=2, late="wait")
        for step in range(6):
            batch = np.arange(4) + 4 * (step % 2)
            feedback.lookup(step, batch)
            feedback.submit(step, batch, pixels ^ np.uint8(step), masks)
            time.sleep(0.3)  # the device's step
        counters = feedback.counters
        cache.close()
    assert counters["worker_busy_s"] > 0.02
    assert counters["waits_s"] < 0.5 * counters["worker_busy_s"]
