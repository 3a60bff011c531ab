"""The real loop, timed: images/s, where a step's time goes, FLOP, utilisation, compilation, memory. Prints JSON.

    python -m benchmarks.loop --config=configs/bench.py [--config.data.root=…] [--json=FILE] [--workdir=DIR]

The workdir (default: a temporary one) keeps the compilation cache: on the same workdir a second call shows what a
warm start compiles. Checkpoints and measured regions of an earlier call there are removed first.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from benchmarks import devices
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.runtime import compilation
from kacl_jax.train import checkpoint, clock, experiment, loop

_COMPILED = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"
_ANEW = "/jax/compilation_cache/cache_misses"


class Repeated:
    """Hands out the first batch again and again, and is the pipeline in all else."""

    def __init__(self, batches: Any) -> None:
        self._batches, self._batch = batches, next(batches)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)


def measure(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Train as the config says and tell what it took."""
    compile_s, events = [], Counter[str]()
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compile_s.append(seconds) if name == _COMPILED else None
    )
    jax.monitoring.register_event_listener(lambda name, **_: events.update([name]))
    workdir = workdir.absolute()
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    for file in workdir.glob("features.sqlite*"):
        file.unlink()
    compilation.use_cache(workdir / "compilation_cache")
    parts = experiment.build_experiment(config, workdir)
    synthetic = config.data.root == "phantom"
    if synthetic:
        parts = dataclasses.replace(parts, batches=Repeated(parts.batches))
    start = time.perf_counter()
    counted = loop.train(parts, checkpoint.Checkpoints(workdir / "checkpoints"))
    run_s = time.perf_counter() - start
    told, device = counted.throughput, parts.parallel.devices[0]
    compiled = {"s": sum(compile_s), "programs": events[_ANEW], "from_cache": events[_FROM_CACHE]}
    images_per_s = told["images_per_s"]
    step_s = config.train.batch_size / images_per_s
    flops = _flops(parts)
    best, source = devices.peak(device)
    return {
        "device": f"{len(parts.parallel.devices)} × {device.platform}:{device.device_kind}",
        "host": {"cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "jax": jax.__version__,
        "config": {
            "encoder": config.model.encoder,
            "dtype": config.model.dtype,
            "image_size": config.data.image_size,
            "batch_size": config.train.batch_size,
            "lag": config.feedback.lag,
            "backend": config.radiomics.backend,
        },
        "batch": "synthetic: one batch, in memory" if synthetic else "real: through the pipeline",
        "steps": parts.total_steps,
        "images_per_s": images_per_s,
        "rois_per_s": told["rois_per_s"],
        "step_s": step_s,
        "run_s": run_s,
        "split": _split(told["waits"], run_s),
        "flop_per_step_and_device": flops,
        "peak_flop_per_s": {"value": best, "source": source},
        "model_flop_utilisation": None if best is None else flops / step_s / best,
        "compilation": compiled,
        "memory": _memory(device),
        "feedback": counted.feedback(),
    }


def _split(waits: dict[str, float], run_s: float) -> dict[str, float]:
    """Seconds of the loop's thread over the run. The rest: compiling, dispatching, waiting for radiomics, logging.

    The last checkpoint is part of the rest too: the figures are taken while it is written.
    """
    parts = {name: waits[name] for name in clock.PARTS}
    return {
        **parts,
        "rest_s": run_s - sum(parts.values()),
        "of_which_radiomics_s": waits["radiomics_s"],
    }


def _flops(parts: experiment.Experiment) -> float:
    """As XLA counts them in the step before it is compiled (convolutions that it leaves to cuDNN count nothing
    afterwards), on one device."""
    batch = dict(next(parts.batches))
    b = len(batch["image_id"])
    batch |= {
        "radiomics": np.zeros((b, len(FEATURE_NAMES)), np.float32),
        "ready": np.zeros(b, bool),
        "age": np.zeros(b, np.int32),
    }
    step = parts.parallel.compile(
        parts.programs.train_step, ("replicated", "replicated", "sharded"), donate_state=True
    )
    state = parts.parallel.replicate(parts.initial_state())
    found: float = step.lower(state, parts.parallel.shard(batch)).cost_analysis()["flops"]
    return found


def _memory(device: jax.Device) -> dict[str, float | None]:
    """Peak bytes of the device, where it tells, and of this process."""
    told = device.memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "device": told.get("peak_bytes_in_use"),
        "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


def main(_: list[str]) -> None:
    told = flags.FLAGS
    logging.getLogger().setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(told.config, Path(told.workdir or Path(temporary) / "run"))
    text = json.dumps(found, indent=1, allow_nan=False)
    print(text)
    if told.json:
        Path(told.json).write_text(text + "\n")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/bench.py", lock_config=True)
    flags.DEFINE_string("workdir", None, "Default: a temporary folder.")
    flags.DEFINE_string("json", None, "Also write the JSON here.")
    app.run(main)
