"""Is a run that was killed and resumed, bit for bit, the run that was not? And what does that cost on a GPU?

    python -m benchmarks.killed_run [encoder] [image size] [batch] [steps] [--images=FILE] [--json=FILE]

A bare loop trains KACL with radiomics in the step, and writes a checkpoint halfway. It runs in processes of its own:
  default          as users run it
  deterministic    with XLA_FLAGS=--xla_gpu_deterministic_ops=true, from the start to the end
  killed           the same, in another folder: killed after the checkpoint, started again

Prints the digests of the last weights, and the median times of the second half's steps. It ends with 1 if the digests
of the last two differ. images: see `benchmarks.step`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import bare
from kacl_jax.runtime import compilation
from kacl_jax.runtime.devices import DataParallel
from kacl_jax.train import checkpoint

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def train(flags: argparse.Namespace, folder: Path) -> None:
    """The loop, from the newest checkpoint in `folder`. Prints a line for each step, and what it found as JSON."""
    compilation.use_cache(folder / "compilation_cache")
    parallel = DataParallel("shard_map")
    program = dataclasses.replace(
        bare.make_programs(flags.encoder), in_step_radiomics=bare.in_step_radiomics(flags.size)
    )
    variables = jax.jit(lambda: bare.initial_variables(program.model, flags.size))()
    state = program.init(variables, flags.size)
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    if restored := checkpoints.restore_latest():
        state = checkpoint.from_arrays(state, restored.arrays, "state")
    step = parallel.compile(program.train_step, ("replicated", "replicated", "sharded"))
    state, first = parallel.replicate(state), restored.step if restored else 0
    images = bare.xrays(flags.size, flags.batch, flags.images)[..., None]
    rows = {**bare.random_batch(flags.size, flags.batch), "image": images}
    seconds = []
    for number in range(first, flags.steps):
        # Every step has its images in another order, the same in all runs.
        order = np.random.default_rng(number).permutation(flags.batch)
        batch = parallel.shard({name: column[order] for name, column in rows.items()})
        start = time.perf_counter()
        state, metrics, _ = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - start)
        if 2 * (number + 1) == flags.steps:
            arrays = checkpoint.to_arrays(parallel.fetch(state, "replicated"), "state")
            checkpoints.save(number + 1, arrays, {}, best=None)
        print(f"step {number + 1}", flush=True)
    weights = checkpoint.to_arrays(parallel.fetch(state, "replicated"), "state")
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].tobytes())
    # The first step of a process compiles.
    median = statistics.median(seconds[1:][-flags.steps // 2 :])
    found = {"digest": digest.hexdigest(), "step_s": median, "first_step": first}
    print(json.dumps({**found, "ready": float(metrics["ready"]), "loss": float(metrics["loss"])}))


def run(folder: Path, *, deterministic: bool, killed_after: int | None = None) -> dict[str, Any]:
    """What one process of `train` found; nothing of one that was killed."""
    environment = dict(os.environ)
    if deterministic:
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DETERMINISTIC}"
    command = [sys.executable, "-m", "benchmarks.killed_run", *sys.argv[1:], f"--train={folder}"]
    line = ""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == f"step {killed_after}\n":
                process.kill()
                return {}
    if process.returncode:
        sys.exit(f"a run ended with {process.returncode}")
    found: dict[str, Any] = json.loads(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.killed_run", allow_abbrev=False)
    parser.add_argument("encoder", nargs="?", default="resnet18")
    parser.add_argument("size", type=int, nargs="?", default=224)
    parser.add_argument("batch", type=int, nargs="?", default=64)
    parser.add_argument("steps", type=int, nargs="?", default=40)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.train:
        train(flags, flags.train)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = {
            "default": run(folder / "default", deterministic=False),
            "deterministic": run(folder / "deterministic", deterministic=True),
        }
        run(folder / "killed", deterministic=True, killed_after=flags.steps // 2 + 2)
        runs["killed"] = run(folder / "killed", deterministic=True)
    found = {
        "runs": runs,
        "equal": runs["deterministic"]["digest"] == runs["killed"]["digest"],
        "deterministic_over_default": runs["deterministic"]["step_s"] / runs["default"]["step_s"],
    }
    print(json.dumps(found, indent=2))
    if flags.json:
        flags.json.write_text(json.dumps(found, indent=2) + "\n")
    if not found["equal"]:
        sys.exit("the killed run's last weights differ")


if __name__ == "__main__":
    main()
