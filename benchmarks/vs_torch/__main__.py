"""KACL here against KACL in PyTorch: the same weights, batch and losses, on the same device, in turns.

    python -m benchmarks.vs_torch [image size] [batch] [rounds] [rounds of the loops]

Steps (ResNet-18; PyTorch channels_last, on a GPU with bfloat16 AMP and torch.compile), medians of rounds in turns:
  model        forward and gradients of the focal loss, nothing updated
  supervised   the same with Adam
  KACL         both losses, Grad-CAM, Adam; the features are given

Whole loops on the same drawn X-rays of 1024 px, NIH's size, without boxes, so that each image costs one region:
  PyTorch      data loader, forward, Grad-CAM, regions, pyradiomics, losses, update, one after the other
  KACL         kacl_jax.train as it is: workers beside the step, `feedback.lag` steps later

On a busy machine pin it to one core (taskset -c 0): PyTorch's threads spin at their barriers and lose more than ours.

First both sides must agree on loss and map. PyTorch is needed here only: pip install torch.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU is shared with PyTorch

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import bare
from benchmarks.step import focal_gradients
from kacl_jax.runtime.devices import DataParallel
from kacl_jax.step.state import TrainState

try:
    import torch

    from benchmarks.vs_torch import torch_kacl
except ImportError as error:
    sys.exit(
        f"benchmarks.vs_torch races against PyTorch, which is not here ({error}): pip install torch"
    )

LEARNING_RATE, DECAY = 1e-4, 1e-5
FILE_SIZE = 1024
GPU = torch.cuda.is_available() and jax.default_backend() == "gpu"
DEVICE = "cuda" if GPU else "cpu"


def main(size: int = 224, batch_size: int = 16, rounds: int = 7, loop_rounds: int = 3) -> None:
    device = jax.devices()[0]
    print(f"ResNet-18, {size} px, batch {batch_size}, {device.platform}:{device.device_kind}")
    print(f"jax {jax.__version__}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}\n")
    batch = bare.batch(size, batch_size)
    ours = Ours(batch, size)
    theirs = Theirs(batch, ours.variables, ours.scaled)
    _agree(ours, theirs)
    print(f"{'step':12}{'torch s':>10}{'jax s':>10}{'torch / jax':>13}")
    for name in ("model", "supervised", "KACL"):
        seconds = _in_turns({"torch": theirs.steps[name], "jax": ours.steps[name]}, rounds)
        _row(name, seconds)
    print()
    if loop_rounds:
        loops(size, batch_size, loop_rounds)


class Ours:
    """The steps of kacl_jax on one device; every call starts from the same state."""

    def __init__(self, batch: dict[str, np.ndarray], size: int) -> None:
        program = bare.programs(
            "resnet18",
            optimizer=optax.chain(optax.add_decayed_weights(DECAY), optax.adam(LEARNING_RATE)),
            dtype=jnp.bfloat16 if GPU else jnp.float32,
        )
        self.variables = jax.jit(lambda: bare.variables(program.model, size))()
        parallel = DataParallel("shard_map", jax.devices()[:1])
        state = parallel.replicate(program.init(self.variables, size))
        placed = parallel.shard(batch)
        gradients = focal_gradients(program)

        def supervised(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
            grads, loss, stats = gradients(state, batch)
            updates, opt_state = program.optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            new = state.replace(params=params, opt_state=opt_state, batch_stats=stats)
            return new, loss

        def features(state: TrainState, batch: Any) -> tuple[jax.Array]:
            return (program._z_scored(state, batch)[0],)

        everywhere = ("replicated",)
        runs = {
            "model": parallel.compile(gradients, everywhere * 3),
            "supervised": parallel.compile(supervised, everywhere * 2),
            "KACL": parallel.compile(program.train_step, (*everywhere * 2, "sharded")),
        }
        self.steps: dict[str, Callable[[], Any]] = {
            name: lambda run=run: jax.block_until_ready(run(state, placed))
            for name, run in runs.items()
        }
        (scaled,) = parallel.compile(features, ("sharded",))(state, placed)
        self.scaled = np.array(scaled)


class Theirs:
    """The steps of torch_kacl.py; they go on from step to step, as PyTorch does."""

    def __init__(self, batch: dict[str, np.ndarray], variables: Any, scaled: np.ndarray) -> None:
        net = torch_kacl.TorchKACL(bare.FINDINGS, bare.FEATURES)
        net.load_state_dict(_torch_weights(variables), strict=False)
        net = net.to(DEVICE, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE, weight_decay=DECAY)
        images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
        told = {
            "image": images.to(DEVICE, memory_format=torch.channels_last),
            "labels": torch.from_numpy(batch["labels"]).to(DEVICE),
            "patient_id": torch.from_numpy(batch["patient_id"]).to(DEVICE),
        }
        features = torch.from_numpy(scaled).to(DEVICE)
        runs = torch_kacl.steps(net, optimizer, amp=GPU, compiled=GPU)

        def waited(run: Any) -> Any:
            found = run(told, features)
            if GPU:
                torch.cuda.synchronize()
            return found

        self.steps: dict[str, Callable[[], Any]] = {
            name: lambda run=run: waited(run) for name, run in runs.items()
        }


def _agree(ours: Ours, theirs: Theirs) -> None:
    """Both compute the same losses and maps from the same weights; KACL last, for it updates PyTorch's.

    In bfloat16 two findings of an image can be level, and each side then marks another one.
    """
    tolerance = 2e-2 if GPU else 1e-4
    _, focal, _ = ours.steps["model"]()
    np.testing.assert_allclose(float(theirs.steps["model"]()[0]), float(focal), rtol=tolerance)
    _, metrics, rows = ours.steps["KACL"]()
    loss, cam = theirs.steps["KACL"]()
    np.testing.assert_allclose(float(loss), float(metrics["loss"]), rtol=tolerance)
    expected, found = np.asarray(rows["cam"]), cam.cpu().numpy()
    far = np.abs(found - expected).max((1, 2)) > tolerance * 10 * np.abs(expected).max()
    if far.mean() > (0.05 if GPU else 0):
        raise SystemExit(f"Grad-CAM differs in {far.sum()} of {len(far)} images")
    print(
        f"agreed: focal loss {float(focal):.6f}, total {float(loss):.6f}, "
        f"Grad-CAM in {(~far).sum()} of {len(far)} images\n"
    )


def _torch_weights(variables: Any) -> dict[str, torch.Tensor]:
    """Flax's variables under PyTorch's names and layouts."""
    found = {}
    for tree in (variables["params"], variables["batch_stats"]):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            *names, kind = (key.key for key in path)
            found[_torch_name(names, kind)] = torch.from_numpy(_torch_layout(np.array(leaf), kind))
    return found


def _torch_name(names: list[str], kind: str) -> str:
    kinds = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    last = kinds.get(kind, f"running_{kind}")
    renamed = {
        "Dense_0": "0",
        "Dense_1": "3" if names[0] == "radiomics_encoder" else "2",
        "MaskedBatchNorm_0": "1",
        "MaskedBatchNorm_1": "4",
        "downsample_conv": "downsample.0",
        "downsample_bn": "downsample.1",
        "image_encoder": "encoder",
    }
    parts = [renamed.get(name, name) for name in names]
    return ".".join([*parts, last]).replace("_0.", ".0.").replace("_1.", ".1.")


def _torch_layout(leaf: np.ndarray, kind: str) -> np.ndarray:
    if kind != "kernel":
        return leaf
    return np.ascontiguousarray(leaf.T if leaf.ndim == 2 else leaf.transpose(3, 2, 0, 1))


def _in_turns(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if round_:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _row(name: str, seconds: dict[str, list[float]]) -> None:
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    pairs = zip(seconds["torch"], seconds["jax"], strict=True)
    ratio = statistics.median(theirs / ours for theirs, ours in pairs)
    print(f"{name:12}{medians['torch']:10.3f}{medians['jax']:10.3f}{ratio:13.2f}", flush=True)


def loops(size: int, batch_size: int, rounds: int) -> None:
    """Each loop in a process of its own, in turns, from the same files."""
    from kacl_jax.data.phantom import demo

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "phantom"
        demo.write_phantom(root, patients=8 * batch_size, size=FILE_SIZE, seed=0)
        rates: dict[str, list[float]] = {}
        for _ in range(rounds):
            for side in ("torch_loop", "jax_loop"):
                command = [
                    sys.executable,
                    "-m",
                    f"benchmarks.vs_torch.{side}",
                    root,
                    size,
                    batch_size,
                ]
                done = subprocess.run(
                    list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True
                )
                for name, rate in json.loads(done.stdout.splitlines()[-1]).items():
                    rates.setdefault(name, []).append(rate)
                    print(f"  {name}: {rate:.2f} images/s", file=sys.stderr, flush=True)
    ours = rates.pop("kacl_jax, asynchronous")
    print(f"{'whole loop':42}{'images/s':>10}{'kacl_jax is × as fast':>24}")
    print(f"{'kacl_jax, asynchronous':42}{statistics.median(ours):10.2f}")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(ours, values, strict=True))
        print(f"{name:42}{statistics.median(values):10.2f}{ratio:24.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
