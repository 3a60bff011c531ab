"""Workers that are killed, stopped, hang, raise or never start: every task is still answered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest

from kacl_jax.feedback.pool import RadiomicsPool
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.radiomics.host import Extractor
from kacl_jax.runtime.errors import InterruptedRunError, UserError

REPO = Path(__file__).resolve().parents[2]

# A worker that does what the first pixel says; the features are all equal to the second one.
OBEDIENT = """
import os, sys, time
from pathlib import Path
import numpy as np
from kacl_jax.feedback.worker import serve
from kacl_jax.radiomics.host import RadiomicsError

flag = Path(sys.argv[1])

def extract(pixels, mask):
    order, value = (int(p) for p in pixels.ravel()[:2])
    features = np.full(102, float(value))
    first_time = not flag.exists()
    if order in (DIE_ONCE, HANG_ONCE, RAISE_ONCE):
        flag.touch()
    if order == DIE or order == DIE_ONCE and first_time:
        os._exit(9)
    if order == HANG or order == HANG_ONCE and first_time:
        time.sleep(1000)
    if order == RAISE or order == RAISE_ONCE and first_time:
        raise ZeroDivisionError("on purpose")
    if order == REFUSE:
        raise RadiomicsError("no such luck")
    if order == NAN:
        features[30:] = np.nan
    return features

serve(lambda: extract)
"""
OK, DIE, DIE_ONCE, HANG, HANG_ONCE, RAISE, RAISE_ONCE, REFUSE, NAN = range(9)


class ObedientPool(RadiomicsPool):
    def __init__(self, folder: Path, workers: int = 2, **options: float) -> None:
        script = folder / "worker.py"
        names = ["DIE", "DIE_ONCE", "HANG", "HANG_ONCE", "RAISE", "RAISE_ONCE", "REFUSE", "NAN"]
        orders = "".join(f"{name} = {globals()[name]}\n" for name in names)
        script.write_text(orders + OBEDIENT)
        self._words = [sys.executable, str(script), str(folder / "flag")]
        super().__init__(workers, bin_width=25.0, **options)

    def _command(self) -> list[str]:
        return self._words

    def order(self, order: int, value: int = 0, side: int = 8):
        pixels = np.full((side, side), 1, np.uint8)
        pixels[0, :2] = order, value
        return self.submit(pixels, np.ones(pixels.shape, bool))


@pytest.fixture(autouse=True)
def _time_limit() -> Iterator[None]:
    """A pool that waits for ever fails its test instead of stopping the suite."""

    def expired(*_: object) -> None:
        raise TimeoutError("this test has taken two minutes")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _alive(pid: int) -> bool:
    """Running: neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "still not true"
        time.sleep(0.02)


def _region(seed: int = 0, side: int = 60) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    mask = np.zeros((side, side), bool)
    mask[5:40, 10:50] = True
    return pixels, mask


@pytest.fixture(scope="module")
def real_pool():
    with RadiomicsPool(2, bin_width=25.0) as pool:
        yield pool


def test_features_are_those_of_the_extractor(real_pool) -> None:
    extractor = Extractor(25.0)
    regions = [_region(seed) for seed in range(8)]
    futures = [real_pool.submit(*region) for region in regions]
    for region, future in zip(regions, futures, strict=True):
        result = future.result(timeout=60)
        assert result.features.dtype == np.float32
        expected = extractor.extract(*region).astype(np.float32)
        np.testing.assert_array_equal(result.features, expected)
    assert real_pool.worker_busy_s > 0


def test_refusals_and_nan_are_reasons_not_zeros(real_pool) -> None:
    pixels, mask = _region()
    assert real_pool.submit(pixels, mask & False).result(60).reason == "empty mask"
    diagonal = np.zeros_like(mask)
    diagonal[3, 3] = diagonal[4, 4] = True
    result = real_pool.submit(pixels, diagonal).result(60)
    assert result.features is None
    assert result.reason == "non-finite: original_firstorder_RobustMeanAbsoluteDeviation"
    assert result.deterministic
    assert real_pool.restarts == 0


def test_workers_have_no_jax_and_one_thread(real_pool) -> None:
    """Asked from outside: what is mapped into the process, and what it was started with."""
    real_pool.submit(*_region()).result(60)
    _until(lambda: len(real_pool.pids()) == 2)
    for pid in real_pool.pids():
        mapped = Path(f"/proc/{pid}/maps").read_text()
        _until(lambda pid=pid: "_cmatrices" in Path(f"/proc/{pid}/maps").read_text())
        assert "jaxlib" not in mapped
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"OMP_NUM_THREADS=1" in environment


def test_workers_ignore_ctrl_c(real_pool) -> None:
    real_pool.submit(*_region()).result(60)
    pids = real_pool.pids()
    for pid in pids:
        _until(lambda pid=pid: "_cmatrices" in Path(f"/proc/{pid}/maps").read_text())
        os.kill(pid, signal.SIGINT)
    assert real_pool.submit(*_region()).result(60).reason is None
    assert real_pool.pids() == pids


def test_killed_real_worker_loses_nothing() -> None:
    regions = [_region(seed, 200) for seed in range(30)]
    victims = []

    def kill(_: object) -> None:
        victims.extend(pool.pids())
        os.kill(victims[0], signal.SIGKILL)

    with RadiomicsPool(1, bin_width=25.0) as pool:
        futures = [pool.submit(*region) for region in regions]
        futures[3].add_done_callback(kill)  # called between two tasks of the only worker
        results = [future.result(60) for future in futures]
        assert [result.reason for result in results] == [None] * 30
        assert pool.restarts == 1
        assert len(victims) == 1
        assert victims[0] not in pool.pids()


def test_stopped_worker_that_does_not_even_read(tmp_path) -> None:
    """A region larger than the pipe's buffer: the send itself would block for ever."""
    with ObedientPool(tmp_path, 1, timeout_s=2.0) as pool:
        pool.order(OK).result(60)
        os.kill(pool.pids()[0], signal.SIGSTOP)
        result = pool.order(OK, value=5, side=2000).result(60)
        np.testing.assert_array_equal(result.features, np.full(102, 5, np.float32))
        assert pool.restarts == 1


@pytest.mark.parametrize("order", [DIE_ONCE, HANG_ONCE, RAISE_ONCE])
def test_a_task_is_tried_once_more(order, tmp_path) -> None:
    with ObedientPool(tmp_path, timeout_s=2.0) as pool:
        result = pool.order(order, value=7).result(60)
        np.testing.assert_array_equal(result.features, np.full(102, 7, np.float32))
        assert pool.restarts == 1


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (DIE, "worker died"),
        (HANG, "timed out"),
        (RAISE, "raised ZeroDivisionError: on purpose"),
    ],
)
def test_given_up_after_the_second_try_and_the_pool_goes_on(order, reason, tmp_path) -> None:
    with ObedientPool(tmp_path, timeout_s=2.0) as pool:
        before = [pool.order(OK, value=1) for _ in range(4)]
        poison = pool.order(order)
        after = [pool.order(OK, value=2) for _ in range(4)]
        result = poison.result(60)
        assert (result.features, result.reason, result.deterministic) == (None, reason, False)
        assert [f.result(60).features[0] for f in before + after] == [1.0] * 4 + [2.0] * 4
        assert pool.restarts == 2


def test_a_refusal_is_an_answer_and_not_tried_again(tmp_path) -> None:
    with ObedientPool(tmp_path) as pool:
        refused, missing = pool.order(REFUSE).result(60), pool.order(NAN).result(60)
        assert (refused.reason, refused.deterministic) == ("no such luck", True)
        assert (missing.reason, missing.features) == (f"non-finite: {FEATURE_NAMES[30]}", None)
        assert pool.restarts == 0


def test_workers_are_replaced_after_max_tasks(tmp_path) -> None:
    with ObedientPool(tmp_path, 1, max_tasks=3) as pool:
        seen = []
        for value in range(7):
            assert pool.order(OK, value).result(60).features[0] == value
            _until(lambda: len(pool.pids()) == 1)
            seen.append(pool.pids()[0])
        assert len(set(seen)) == 3
        assert pool.restarts == 0


class NeverStarts(RadiomicsPool):
    def _command(self) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit(3)"]


class CannotImport(RadiomicsPool):
    def _command(self) -> list[str]:
        code = "from kacl_jax.feedback.worker import serve; serve(lambda: __import__('no_such_package'))"
        return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("kind", "why"), [(NeverStarts, "worker died"), (CannotImport, "No module named 'no_such")]
)
def test_workers_that_never_start_end_in_an_error(kind, why, capfd) -> None:
    with kind(2, bin_width=25.0) as pool:
        future = pool.submit(*_region())
        with pytest.raises(UserError, match=f"do not start.*{why}"):
            future.result(60)
        with pytest.raises(UserError, match="do not start"):
            pool.submit(*_region())
        with pytest.raises(UserError, match="do not start"):
            pool.check()
    assert ("Traceback" in capfd.readouterr().err) == (kind is CannotImport)


def test_workers_that_no_longer_start_interrupt_the_run(tmp_path) -> None:
    """As when the memory has run out: a supervisor starts the run again."""
    with ObedientPool(tmp_path, 1) as pool:
        pool.order(OK).result(60)
        pool._words = [sys.executable, "-c", "raise SystemExit(9)"]
        with pytest.raises(
            InterruptedRunError, match=r"do not start.*same command again to resume"
        ):
            pool.order(DIE).result(60)
        with pytest.raises(InterruptedRunError):
            pool.check()


def test_a_worker_that_is_stopped_while_it_starts_is_replaced_soon(tmp_path) -> None:
    with ObedientPool(tmp_path, 1) as pool:
        words, pool._words = pool._words, [sys.executable, "-c", "import time; time.sleep(999)"]
        pool.order(OK).result(60)  # the first worker has started; the next one will not be ready
        task = pool.order(DIE)
        first = pool.pids()
        _until(lambda: pool.pids() not in ([], first))
        pool._words = words
        os.kill(pool.pids()[0], signal.SIGSTOP)
        started = time.monotonic()
        assert task.result(60).reason == "worker died"
        assert time.monotonic() - started < 30


def test_close_leaves_nothing_behind(tmp_path) -> None:
    pool = ObedientPool(tmp_path, 2)
    futures = [pool.order(HANG) for _ in range(4)]
    _until(lambda: len(pool.pids()) == 2)
    pids = pool.pids()
    pool.close()
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):  # a zombie could still be signalled
            os.kill(pid, 0)
    done, not_done = wait(futures, timeout=60)
    assert not not_done
    for future in done:
        with pytest.raises(RuntimeError, match="closed"):
            future.result()
    with pytest.raises(RuntimeError, match="closed"):
        pool.order(OK)


PARENT = """
    import sys, time
    import numpy as np
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from test_pool import HANG, OK, ObedientPool, RadiomicsPool

    busy = ObedientPool(Path({folder!r}), 1)
    busy.order(OK).result(60)
    idle = RadiomicsPool(1, bin_width=25.0)
    idle.submit(np.zeros((9, 9), np.uint8), np.ones((9, 9), bool)).result(60)
    busy.order(HANG)
    print(*busy.pids(), *idle.pids(), flush=True)
    {then}
"""


def _parent(folder: Path, then: str) -> subprocess.Popen[str]:
    code = PARENT.format(tests=str(Path(__file__).parent), folder=str(folder), then=then)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=REPO, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("then", "stopped"),
    [("time.sleep(1000)", False), ("time.sleep(1000)", True), ("sys.exit(0)", False)],
)
def test_workers_do_not_outlive_their_parent(then, stopped, tmp_path) -> None:
    """Idle, in the middle of a task, or stopped; after kill -9 or an exit that forgot close()."""
    with _parent(tmp_path, then) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        if "sleep" in then:
            assert all(_alive(pid) for pid in pids)
            for pid in pids if stopped else ():
                os.kill(pid, signal.SIGSTOP)
            parent.kill()
        parent.wait(timeout=60)
        _until(lambda: not any(_alive(pid) for pid in pids))


def test_a_number_of_workers_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        RadiomicsPool(0, bin_width=25.0)
