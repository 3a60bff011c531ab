"""This KACL against KACL in PyTorch: the same weights, batch and losses, on the same device, in turns.

    python -m benchmarks.vs_torch [image size] [batch] [rounds] [rounds of the loops] [--json=FILE]

Steps (ResNet-18; PyTorch channels_last, on a GPU with bfloat16 AMP and torch.compile), medians of rounds in turns:
  model        forward and gradients of the focal loss, nothing updated
  supervised   the same with Adam
  KACL         both losses, Grad-CAM, Adam; the features come with the batch

Whole loops on the same phantom X-rays of 1024 px, NIH's size, without boxes, so that each image costs one region:
  PyTorch      data loader, forward, Grad-CAM, regions, pyradiomics, losses, update, one after the other
  KACL         kacl_jax.train as it is: workers beside the step, `feedback.lag` steps later

On a busy machine pin it to one core (taskset -c 0): there PyTorch loses more than jax, because its threads spin at
their barriers.

Before timing, both sides must agree on loss and map. Only this benchmark needs PyTorch: pip install torch.
"""

from __future__ import annotations

import argparse
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
from kacl_jax.step.scaling import z_score_radiomics
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.vs_torch", allow_abbrev=False)
    parser.add_argument("size", type=int, nargs="?", default=224)
    parser.add_argument("batch", type=int, nargs="?", default=16)
    parser.add_argument("rounds", type=int, nargs="?", default=7)
    parser.add_argument("loop_rounds", type=int, nargs="?", default=3)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    device = jax.devices()[0]
    where = f"{device.platform}:{device.device_kind}"
    print(f"ResNet-18, {flags.size} px, batch {flags.batch}, {where}")
    print(f"jax {jax.__version__}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}\n")
    found = {
        "device": where,
        "batch": flags.batch,
        "steps": time_steps(flags.size, flags.batch, flags.rounds),
    }
    if flags.loop_rounds:
        found["loops"] = time_loops(flags.size, flags.batch, flags.loop_rounds)
    if flags.json:
        flags.json.write_text(json.dumps(found, indent=2) + "\n")


def time_steps(size: int, batch_size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Of each step: median seconds of both sides, and how often kacl_jax's fits into PyTorch's."""
    batch = bare.random_batch(size, batch_size)
    jax_steps = JaxSteps(batch, size)
    torch_steps = TorchSteps(batch, jax_steps.variables, jax_steps.scaled)
    _check_agreement(jax_steps, torch_steps)
    print(f"{'step':12}{'torch s':>10}{'jax s':>10}{'torch / jax':>13}")
    found = {}
    for name in ("model", "supervised", "KACL"):
        seconds = _time_in_turns(
            {"torch": torch_steps.steps[name], "jax": jax_steps.steps[name]}, rounds
        )
        pairs = zip(seconds["torch"], seconds["jax"], strict=True)
        ratio = statistics.median(torch_s / jax_s for torch_s, jax_s in pairs)
        torch_s, jax_s = (statistics.median(seconds[side]) for side in ("torch", "jax"))
        print(f"{name:12}{torch_s:10.3f}{jax_s:10.3f}{ratio:13.2f}", flush=True)
        found[name] = {"torch_s": torch_s, "jax_s": jax_s, "torch_over_jax": ratio}
    print()
    return found


class JaxSteps:
    """The steps of kacl_jax on one device; every call starts from the same state."""

    def __init__(self, batch: dict[str, np.ndarray], size: int) -> None:
        program = bare.make_programs(
            "resnet18",
            optimizer=optax.chain(optax.add_decayed_weights(DECAY), optax.adam(LEARNING_RATE)),
            dtype=jnp.bfloat16 if GPU else jnp.float32,
        )
        self.variables = jax.jit(lambda: bare.initial_variables(program.model, size))()
        parallel = DataParallel("shard_map", jax.devices()[:1])
        state = parallel.replicate(program.init(self.variables, size))
        device_batch = parallel.shard(batch)
        gradients = focal_gradients(program)

        def supervised(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
            grads, loss, stats = gradients(state, batch)
            updates, opt_state = program.optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            new = state.replace(params=params, opt_state=opt_state, batch_stats=stats)
            return new, loss

        def features(state: TrainState, batch: Any) -> tuple[jax.Array]:
            return (z_score_radiomics(state, batch, program.log_columns)[0],)

        replicated = ("replicated",)
        functions = {
            "model": parallel.compile(gradients, replicated * 3),
            "supervised": parallel.compile(supervised, replicated * 2),
            "KACL": parallel.compile(program.train_step, (*replicated * 2, "sharded")),
        }
        self.steps: dict[str, Callable[[], Any]] = {
            name: lambda run=run: jax.block_until_ready(run(state, device_batch))
            for name, run in functions.items()
        }
        (scaled,) = parallel.compile(features, ("sharded",))(state, device_batch)
        self.scaled = np.array(scaled)


class TorchSteps:
    """The steps of torch_kacl.py; each call continues from the state that the last one left, as usual in PyTorch."""

    def __init__(self, batch: dict[str, np.ndarray], variables: Any, scaled: np.ndarray) -> None:
        net = torch_kacl.TorchKACL(bare.FINDINGS, bare.FEATURES)
        net.load_state_dict(_torch_weights(variables), strict=False)
        net = net.to(DEVICE, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE, weight_decay=DECAY)
        images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
        device_batch = {
            "image": images.to(DEVICE, memory_format=torch.channels_last),
            "labels": torch.from_numpy(batch["labels"]).to(DEVICE),
            "patient_id": torch.from_numpy(batch["patient_id"]).to(DEVICE),
        }
        features = torch.from_numpy(scaled).to(DEVICE)
        functions = torch_kacl.steps(net, optimizer, amp=GPU, compiled=GPU)

        def run_and_synchronize(run: Any) -> Any:
            outputs = run(device_batch, features)
            if GPU:
                torch.cuda.synchronize()
            return outputs

        self.steps: dict[str, Callable[[], Any]] = {
            name: lambda run=run: run_and_synchronize(run) for name, run in functions.items()
        }


def _check_agreement(jax_steps: JaxSteps, torch_steps: TorchSteps) -> None:
    """Check that both compute the same losses and maps from the same weights.

    KACL's step comes last, because it updates PyTorch's weights. In bfloat16 two findings of an image can have equal
    logits; then the two sides may mark different findings.
    """
    tolerance = 2e-2 if GPU else 1e-4
    _, focal, _ = jax_steps.steps["model"]()
    np.testing.assert_allclose(float(torch_steps.steps["model"]()[0]), float(focal), rtol=tolerance)
    _, metrics, rows = jax_steps.steps["KACL"]()
    loss, cam = torch_steps.steps["KACL"]()
    np.testing.assert_allclose(float(loss), float(metrics["loss"]), rtol=tolerance)
    expected, torch_cam = np.asarray(rows["cam"]), cam.cpu().numpy()
    differs = np.abs(torch_cam - expected).max((1, 2)) > tolerance * 10 * np.abs(expected).max()
    if differs.mean() > (0.05 if GPU else 0):
        raise SystemExit(f"Grad-CAM differs in {differs.sum()} of {len(differs)} images")
    print(
        f"agreed: focal loss {float(focal):.6f}, total {float(loss):.6f}, "
        f"Grad-CAM in {(~differs).sum()} of {len(differs)} images\n"
    )


def _torch_weights(variables: Any) -> dict[str, torch.Tensor]:
    """Flax's variables under PyTorch's names and layouts."""
    weights = {}
    for tree in (variables["params"], variables["batch_stats"]):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            *names, kind = (key.key for key in path)
            weights[_torch_name(names, kind)] = torch.from_numpy(
                _torch_layout(np.array(leaf), kind)
            )
    return weights


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


def _time_in_turns(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if round_:  # the first round compiles
                seconds[name].append(time.perf_counter() - start)
    return seconds


def time_loops(size: int, batch_size: int, rounds: int) -> dict[str, float]:
    """images/s of each loop, in a process of its own, in turns, from the same files."""
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
    medians = {name: statistics.median(values) for name, values in rates.items()}
    kacl_rates = rates.pop("kacl_jax, asynchronous")
    print(f"{'whole loop':42}{'images/s':>10}{'kacl_jax is × as fast':>24}")
    print(f"{'kacl_jax, asynchronous':42}{statistics.median(kacl_rates):10.2f}")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(kacl_rates, values, strict=True))
        print(f"{name:42}{statistics.median(values):10.2f}{ratio:24.2f}")
    return medians


if __name__ == "__main__":
    main()
