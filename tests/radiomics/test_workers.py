"""`extract` with several workers: the same bits in the same order, and no process that hangs or stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kacl_jax.radiomics import Extraction, extract
from kacl_jax.radiomics.extractor_pool import ExtractorPool, shared_pool
from kacl_jax.radiomics.extractor_process import encode_region
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.piped_process import PipedProcess

REPOSITORY = Path(__file__).resolve().parents[2]


def regions() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of two sides of tile, 8-bit and float, too large or with too many grey levels for the JAX backend, and bad."""
    random = np.random.default_rng(3)
    images, masks = [], []
    for k in range(16):
        shape = random.integers(20, 100 if k % 3 else 60, 2)
        image = random.integers(0, 256, shape).astype(np.float32 if k % 2 else np.uint8)
        images.append(image * 7 if k % 7 == 5 else image)
        masks.append(random.random(shape) < 0.7)
    images.append(random.integers(0, 100, (5, 600), dtype=np.uint8))
    masks += [np.ones((5, 600), bool)]
    masks[4][:] = False
    images[9][:] = np.nan
    return images, masks


def assert_same(actual: Extraction, expected: Extraction) -> None:
    np.testing.assert_array_equal(actual.features, expected.features)
    np.testing.assert_array_equal(actual.ready, expected.ready)
    assert actual.reasons == expected.reasons


@pytest.mark.parametrize("backend", ["jax", "pyradiomics"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_result_does_not_depend_on_the_number_of_workers(backend, dtype) -> None:
    options: dict[str, Any] = {"backend": backend, "dtype": dtype}
    expected = extract(*regions(), **options)
    assert expected.ready.sum() == len(expected.ready) - 2
    for workers in (2, 3):
        assert_same(extract(*regions(), workers=workers, **options), expected)


def test_a_numpy_number_as_width_is_the_same_number() -> None:
    image = np.arange(400, dtype=np.float32).reshape(20, 20) / 100
    call = ([image], [np.ones((20, 20), bool)])
    expected = extract(*call, bin_width=0.1)
    for workers in (1, 2):
        assert_same(extract(*call, bin_width=np.float64(0.1), workers=workers), expected)


def test_a_width_reaches_the_processes_with_all_its_digits() -> None:
    image = np.arange(10_000, dtype=np.float32).reshape(100, 100) / 7
    call = ([image], [np.ones((100, 100), bool)])
    expected = extract(*call, bin_width=25.123456789)
    assert_same(extract(*call, bin_width=25.123456789, workers=2), expected)
    assert (extract(*call, bin_width=25.12).features != expected.features).any()


def test_what_a_library_prints_does_not_reach_the_replies(tmp_path, monkeypatch) -> None:
    """`sitecustomize` makes every worker print before each region."""
    (tmp_path / "sitecustomize.py").write_text(
        "import SimpleITK\nread = SimpleITK.GetImageFromArray\n"
        "def loud(*args, **kwargs):\n    print('a line', flush=True)\n    return read(*args, **kwargs)\n"
        "SimpleITK.GetImageFromArray = loud\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    image = np.random.default_rng(0).integers(0, 256, (4, 40, 40), dtype=np.uint8)
    expected = extract(image, image > 9)
    assert_same(extract(image, image > 9, workers=4), expected)


def test_ctrl_c_is_for_the_parent_only() -> None:
    process = ExtractorPool(1, 25.0, None)._start()
    assert os.getpgid(process.pid) != os.getpgid(0)
    process.end()


def test_a_killed_process_loses_no_row(monkeypatch) -> None:
    images, masks = regions()
    expected = extract(images, masks)
    extract(images[:4], masks[:4], workers=2)
    pool = shared_pool(2, 25.0, None)
    pool._idle.put(pool._start())
    processes = [pool._idle.get() for _ in range(pool._idle.qsize())]
    assert len(processes) >= 2
    for process in processes:
        process._process.kill()
        pool._idle.put(process)
    # One region alone meets one dead process after the other, whatever the threads' order is.
    assert extract(images[:1], masks[:1], workers=2).ready.all()
    assert_same(extract(images, masks, workers=2), expected)


def test_a_region_that_ends_every_process_is_a_row_with_its_reason(monkeypatch) -> None:
    images, masks = regions()

    def killed_by_one_region(self: Any, request: bytes) -> bytes:
        if request == encode_region(images[-1], masks[-1]):
            self._process.kill()
        return call(self, request)

    call = PipedProcess.call
    monkeypatch.setattr(PipedProcess, "call", killed_by_one_region)
    found = extract(images, masks, workers=2)
    assert found.reasons[-1] == "the process that measured it ended 2 times (exit code -9)"
    assert not found.ready[-1]
    np.testing.assert_array_equal(found.features[:-1], extract(images, masks).features[:-1])


def test_a_process_that_cannot_start_is_one_sentence(monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match=r"A worker process did not start \(exit code 1;"):
        ExtractorPool(2, 25.0, None).measure([(np.zeros((3, 3), np.uint8), np.ones((3, 3), bool))])


SCRIPT = """
import os, numpy as np, jax
from kacl_jax.radiomics import extract
from kacl_jax.radiomics.extractor_pool import shared_pool

jax.numpy.zeros(3).block_until_ready()
image = np.random.default_rng(0).integers(0, 256, (4, 40, 40), dtype=np.uint8)
found = extract(image, image > 9, workers=2)
idle = shared_pool(2, 25.0, None)._idle
processes = [idle.get() for _ in range(idle.qsize())]
for process in processes:
    idle.put(process)
print(found.ready.all(), *[process._process.pid for process in processes], flush=True)
"""


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)"])
def test_a_script_without_a_main_guard_runs_once_and_leaves_no_process(tmp_path, end) -> None:
    """After jax has run, where a forked child would hang; also if the script is killed."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + end)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == (-9 if end else 0), done.stderr
    (line,) = done.stdout.splitlines()
    ready, *pids = line.split()
    assert ready == "True"
    assert pids
    deadline = time.monotonic() + 20
    while any(is_running(int(pid)) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_worker_processes_import_no_jax() -> None:
    code = (
        "import sys, kacl_jax.radiomics.extractor_process, kacl_jax.radiomics.extractor_pool; "
        "print({'jax', 'jaxtyping'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
