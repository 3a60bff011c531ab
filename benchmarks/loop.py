"""Times the real loop: images/s, the parts of a step's time, FLOP, utilisation, compilation, memory. Prints JSON.

    python -m benchmarks.loop --config=configs/bench.py [--config.data.root=…] [--json=FILE] [--workdir=DIR]

The workdir (default: a temporary one) keeps the compilation cache, so a second call with the same workdir shows what a
warm start compiles. Checkpoints and features that an earlier call left there are removed first.
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

_COMPILE_DURATION = "/jax/core/compile/backend_compile_duration"
_CACHE_HITS = "/jax/compilation_cache/cache_hits"
_CACHE_MISSES = "/jax/compilation_cache/cache_misses"


class RepeatedBatch:
    """Returns the first batch again and again; everything else is left to the pipeline."""

    def __init__(self, batches: Any) -> None:
        self._batches, self._batch = batches, next(batches)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)


def time_training(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Train with the config and report times, FLOP, compilation and memory."""
    compile_s, events = [], Counter[str]()
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compile_s.append(seconds) if name == _COMPILE_DURATION else None
    )
    jax.monitoring.register_event_listener(lambda name, **_: events.update([name]))
    workdir = workdir.absolute()
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    for file in workdir.glob("features.sqlite*"):
        file.unlink()
    compilation.use_cache(workdir / "compilation_cache")
    setup = experiment.build_experiment(config, workdir)
    synthetic = config.data.root == "phantom"
    if synthetic:
        setup = dataclasses.replace(setup, batches=RepeatedBatch(setup.batches))
    start = time.perf_counter()
    counters = loop.train(setup, checkpoint.Checkpoints(workdir / "checkpoints"))
    run_s = time.perf_counter() - start
    throughput, device = counters.throughput, setup.parallel.devices[0]
    compiled = {
        "s": sum(compile_s),
        "programs": events[_CACHE_MISSES],
        "from_cache": events[_CACHE_HITS],
    }
    images_per_s = throughput["images_per_s"]
    step_s = config.train.batch_size / images_per_s
    flops = _step_flops(setup)
    peak, source = devices.peak_flops(device)
    return {
        "device": f"{len(setup.parallel.devices)} × {device.platform}:{device.device_kind}",
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
        "steps": setup.total_steps,
        "images_per_s": images_per_s,
        "rois_per_s": throughput["rois_per_s"],
        "step_s": step_s,
        "run_s": run_s,
        "split": _time_split(throughput["waits"], run_s),
        "flop_per_step_and_device": flops,
        "peak_flop_per_s": {"value": peak, "source": source},
        "model_flop_utilisation": None if peak is None else flops / step_s / peak,
        "compilation": compiled,
        "memory": _memory(device),
        "feedback": dataclasses.asdict(counters.feedback()),
    }


def _time_split(waits: dict[str, float], run_s: float) -> dict[str, float]:
    """Seconds of the loop's thread over the run. The rest is compiling, dispatching, waiting for radiomics, logging.

    The last checkpoint is part of the rest too, because the times are read while it is written.
    """
    parts = {name: waits[name] for name in clock.PARTS}
    return {
        **parts,
        "rest_s": run_s - sum(parts.values()),
        "of_which_radiomics_s": waits["radiomics_s"],
    }


def _step_flops(setup: experiment.Experiment) -> float:
    """FLOP of a step on one device, as XLA counts them before compilation.

    After compilation XLA does not count the convolutions that it leaves to cuDNN.
    """
    batch = dict(next(setup.batches))
    b = len(batch["image_id"])
    batch |= {
        "radiomics": np.zeros((b, len(FEATURE_NAMES)), np.float32),
        "ready": np.zeros(b, bool),
        "age": np.zeros(b, np.int32),
    }
    step = setup.parallel.compile(
        setup.programs.train_step, ("replicated", "replicated", "sharded"), donate_state=True
    )
    state = setup.parallel.replicate(setup.initial_state()[0])
    flops: float = step.lower(state, setup.parallel.shard(batch)).cost_analysis()["flops"]
    return flops


def _memory(device: jax.Device) -> dict[str, float | None]:
    """Peak bytes of the device (None if it does not report them) and of this process."""
    stats = device.memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "device": stats.get("peak_bytes_in_use"),
        "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


def main(_: list[str]) -> None:
    arguments = flags.FLAGS
    logging.getLogger().setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        report = time_training(arguments.config, Path(arguments.workdir or Path(temporary) / "run"))
    text = json.dumps(report, indent=1, allow_nan=False)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/bench.py", lock_config=True)
    flags.DEFINE_string("workdir", None, "Default: a temporary folder.")
    flags.DEFINE_string("json", None, "Also write the JSON here.")
    app.run(main)
