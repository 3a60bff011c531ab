"""What surrounds the speed of a run: the cache of compiled programs, the clock, traces, bfloat16, the benchmarks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_run

from benchmarks import loop
from kacl_jax.models.encoders import ENCODERS
from kacl_jax.runtime import compilation
from kacl_jax.train import checkpoint, experiment
from kacl_jax.train.clock import PARTS, Clock
from kacl_jax.train.loop import train

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(ENCODERS, "resnet18", tiny_run.tiny_encoder())
    found = tiny_run.get_config()
    found.data.root = str(root)
    found.train.epochs, found.train.warmup_epochs = 1, 0
    found.train.checkpoint_every = found.feedback.lag = 1
    return found


def trained(config: Any, workdir: Path) -> None:
    train(
        experiment.build_experiment(config, workdir),
        checkpoint.Checkpoints(workdir / "checkpoints"),
    )


# ---- the compilation cache ------------------------------------------------------------------------------------

START = """
import sys
from collections import Counter
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from kacl_jax.runtime import compilation
compilation.use_cache(Path(sys.argv[1]))
events = Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.split('/')[-1]]))
x = jax.jit(lambda x: jnp.sin(x @ x.T).sum(0))(jnp.linspace(0, 1, 4096).reshape(64, 64))
print(events['cache_misses'], events['cache_hits'], np.asarray(x).tobytes().hex())
"""


def started(folder: Path) -> tuple[int, int, str]:
    """(programs compiled anew, programs from the cache, the bytes of a result) of one fresh process."""
    environment = {"PATH": "", "PYTHONPATH": str(REPO), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", START, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    anew, cached, value = done.stdout.split()
    return int(anew), int(cached), value


def test_a_second_start_compiles_nothing_anew_and_broken_entries_are_replaced(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "cache"
    anew, cached, value = started(folder)
    assert anew > 0
    assert cached == 0
    assert started(folder) == (0, anew, value)
    whole, *_ = entries = sorted(folder.glob("*-cache"))
    assert len(entries) == anew
    content = whole.read_bytes()
    broken = bytearray(content)
    broken[len(broken) // 2] ^= 0x55
    for damage in (broken, content[: len(content) // 2], b""):
        whole.write_bytes(damage)
        assert started(folder) == (1, anew - 1, value)
    assert started(folder) == (0, anew, value)


def test_a_cache_that_the_environment_names_is_left_alone(tmp_path: Path) -> None:
    """conftest.py sets JAX_COMPILATION_CACHE_DIR."""
    before = jax.config.values["jax_compilation_cache_dir"]
    compilation.use_cache(tmp_path)
    assert before is not None
    assert jax.config.values["jax_compilation_cache_dir"] == before


# ---- the clock ------------------------------------------------------------------------------------------------


def test_a_part_within_a_part_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = Clock()
    with clock.part("checkpoint_s"):
        now += 1
        with clock.part("device_s"):
            now += 10
        now += 2
    now += 50
    with clock.part("device_s"):
        now += 20
    assert clock.parts["checkpoint_s"] == 3
    assert clock.parts["device_s"] == 30
    assert sum(clock.parts.values()) == 33


def test_a_step_that_is_waited_for_between_turns_counts_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before a checkpoint or a validation the loop waits for the step in flight."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = Clock()
    for _ in range(4):
        clock.start()
        with clock.part("device_s"):
            now += 1
        clock.stop()
    assert clock.seconds == 2
    with clock.part("checkpoint_s"):
        with clock.part("device_s"):
            now += 10
        now += 5
    assert (clock.seconds, clock.total) == (12, 14)


def test_the_first_turns_compile_and_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = Clock()
    for took in (60, 30, 1, 2):
        clock.start()
        now += took
        clock.stop()
    assert (clock.steps, clock.seconds, clock.total) == (2, 3, 93)


# ---- the whole loop -------------------------------------------------------------------------------------------


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_loop_in_bfloat16_stays_close_and_leaves_a_trace(config: Any, tmp_path: Path) -> None:
    """Parameters, statistics and losses stay float32; `profile.steps` traces steps 1 to 2."""
    losses = {}
    config.feedback.lag = 0  # within one epoch no image is drawn again
    for dtype in ("float32", "bfloat16"):
        workdir = tmp_path / dtype
        config.model.dtype = dtype
        config.profile.steps = (1, 2) if dtype == "bfloat16" else (0, 0)
        trained(config, workdir)
        losses[dtype] = np.array([line["loss"] for line in lines(workdir) if "loss" in line])
        norms = [line["grad_norm"] for line in lines(workdir) if "grad_norm" in line]
        assert np.isfinite(norms).all()
        assert (np.array(norms) > 0).all()
    assert not np.array_equal(losses["float32"], losses["bfloat16"])
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05)
    saved = checkpoint.Checkpoints(tmp_path / "bfloat16" / "checkpoints").restore_latest()
    assert saved is not None
    kinds = {array.dtype for name, array in saved.arrays.items() if name.startswith("state")}
    assert {np.dtype(kind).name for kind in kinds} <= {"float32", "int32"}
    assert list((tmp_path / "bfloat16" / "profile").rglob("*.xplane.pb"))
    assert not (tmp_path / "float32" / "profile").exists()


def test_the_loops_benchmark_tells_every_figure(config: Any, tmp_path: Path) -> None:
    config.train.epochs = 2
    found = loop.time_training(config, tmp_path / "run")
    json.dumps(found, allow_nan=False)
    assert found["steps"] == 6
    assert found["batch"].startswith("real")
    assert found["images_per_s"] > 0
    assert found["flop_per_step_and_device"] > 1e5
    assert found["memory"]["host"] > 1e7
    assert found["memory"]["device"] is None  # a CPU does not tell
    assert 0 < found["model_flop_utilisation"] < 1
    split = found["split"]
    assert sum(split[name] for name in (*PARTS, "rest_s")) == pytest.approx(found["run_s"])
    assert all(split[name] > 0 for name in ("device_s", "regions_s", "checkpoint_s", "rest_s"))


def test_what_on_device_sh_runs_needs_no_data_library() -> None:
    """It must run on a bare machine with an accelerator."""
    script = (REPO / "benchmarks" / "on_device.sh").read_text()
    modules = {*re.findall(r"benchmarks\.\w+", script)} - {"benchmarks.vs_torch"}
    assert len(modules) == 4
    code = (
        "import sys\n"
        "for name in ('grain', 'ml_collections', 'SimpleITK', 'radiomics', 'tensorflow_datasets'):\n"
        "    sys.modules[name] = None\n"
        f"import {', '.join(modules)}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)
