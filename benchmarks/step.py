"""What contrastive loss, Grad-CAM and radiomics add to a supervised step: FLOPs, time and their ratios, in one run.

    python -m benchmarks.step [encoder] [image size] [batch] [--dtype=float32,bfloat16] [--steps=…] [--images=FILE]
        [--json=FILE]

Medians over several rounds in which these take turns:
  supervised     focal loss only, no map
  KACL           the train step as it is: both losses, class maps, Grad-CAM, statistics
  second pass    KACL's step plus a second forward pass for the CAM, as hooks on a trained network do it
  radiomics      KACL's step that also measures its regions (radiomics.backend=jax)

steps: some of these, with commas between them. dtype: of the activations, one or both. On a GPU float32's convolutions
round to TF32.
images: an archive of `benchmarks.reference_regions`; without it the images are smooth with film grain.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import bare
from kacl_jax.runtime.devices import AXIS, DataParallel, global_gradients
from kacl_jax.step import losses
from kacl_jax.step.programs import Programs
from kacl_jax.step.state import Batch, TrainState

ROUNDS = 7
STEPS = ("supervised", "KACL", "second pass", "radiomics")
Step = Callable[[TrainState, Any], Any]


def make_steps(parallel: DataParallel, program: Programs, size: int) -> dict[str, Step]:
    """The compiled steps by their names in STEPS, of the program's dtype."""
    supervised = dataclasses.replace(
        program, loss=dataclasses.replace(program.loss, focal_weight=1.0)
    )
    gradients = focal_gradients(supervised)

    def focal_only(state: TrainState, batch: Batch) -> tuple[TrainState]:
        grads, _, stats = gradients(state, batch)
        updates, opt_state = supervised.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return (state.replace(params=params, opt_state=opt_state, batch_stats=stats),)

    def second_pass(state: TrainState, batch: Batch) -> tuple[Any, Any]:
        new, _, _ = program.train_step(state, batch)
        (rows,) = program.region_step(new, batch)
        return new, rows

    measuring = dataclasses.replace(program, in_step_radiomics=bare.in_step_radiomics(size))
    train_outputs = ("replicated", "replicated", "sharded")
    return {
        "supervised": parallel.compile(focal_only, ("replicated",)),
        "KACL": parallel.compile(program.train_step, train_outputs),
        "second pass": parallel.compile(second_pass, ("replicated", "sharded")),
        "radiomics": parallel.compile(measuring.train_step, train_outputs),
    }


def time_steps(
    steps: dict[str, Step], state: TrainState, batch: Any, images: int
) -> dict[str, dict[str, float]]:
    """Of each step: median seconds, images/s, FLOP, and the ratios of time and FLOP to the first step."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(ROUNDS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(state, batch))
            if round_:  # the first round compiles
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    flops = {name: _flops(step, state, batch) for name, step in steps.items()}
    first = next(iter(steps))
    return {
        name: {
            "s": medians[name],
            "images_per_s": images / medians[name],
            "flop": flops[name],
            "time_ratio": medians[name] / medians[first],
            "flop_ratio": flops[name] / flops[first],
        }
        for name in steps
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.step", allow_abbrev=False)
    parser.add_argument("encoder", nargs="?", default="resnet18")
    parser.add_argument("size", type=int, nargs="?", default=224)
    parser.add_argument("batch", type=int, nargs="?", default=16)
    parser.add_argument("--dtype", type=lambda text: text.split(","), default=["float32"])
    parser.add_argument("--steps", type=lambda text: text.split(","), default=list(STEPS))
    parser.add_argument("--images", type=Path)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if unknown := set(flags.steps) - set(STEPS):
        parser.error(f"--steps={','.join(sorted(unknown))}: there are {', '.join(STEPS)}")
    parallel = DataParallel("shard_map")
    steps: dict[str, Step] = {}
    for dtype in flags.dtype:
        program = bare.make_programs(flags.encoder, dtype=np.dtype(dtype))
        made = make_steps(parallel, program, flags.size)
        steps |= {f"{name}, {dtype}": made[name] for name in STEPS if name in flags.steps}
    # The state is float32, whatever the dtype.
    variables = jax.jit(lambda: bare.initial_variables(program.model, flags.size))()
    state = parallel.replicate(program.init(variables, flags.size))
    images = bare.xrays(flags.size, flags.batch, flags.images)[..., None]
    batch = parallel.shard({**bare.random_batch(flags.size, flags.batch), "image": images})
    device = jax.devices()[0]
    where = f"{device.platform}:{device.device_kind}"
    title = f"{flags.encoder}, {flags.size} px, batch {flags.batch}"
    print(f"{title}, {where}, jax {jax.__version__}", flush=True)
    found = time_steps(steps, state, batch, flags.batch)
    print(
        f"{'step':23}{'GFLOP':>9}{'s (median)':>12}{'images/s':>10}{'time ratio':>12}{'FLOP ratio':>12}"
    )
    for name, x in found.items():
        print(
            f"{name:23}{x['flop'] / 1e9:9.1f}{x['s']:12.3f}{x['images_per_s']:10.1f}"
            f"{x['time_ratio']:12.2f}{x['flop_ratio']:12.3f}"
        )
    if flags.json:
        settings = {"device": where, "encoder": flags.encoder, "image_size": flags.size}
        text = json.dumps({**settings, "batch": flags.batch, "steps": found}, indent=2)
        flags.json.write_text(text + "\n")


def focal_gradients(program: Programs) -> Callable[[TrainState, Batch], tuple[Any, Any, Any]]:
    """(state, batch) → (gradients, loss, moved batch statistics) of the focal loss alone, per device."""

    def gradients(state: TrainState, batch: Batch) -> tuple[Any, Any, Any]:
        images, affine = program.forward_pass.augment(state.step, batch)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            forward = program.forward_pass.encode(params, state.batch_stats, images, batch, affine)
            logits = program.model.apply({"params": params}, forward.feature_map, method="classify")
            focal = losses.focal_loss(logits, batch["labels"], alpha=0.25, gamma=2.0).sum(1).mean()
            return jax.lax.pmean(focal, AXIS), forward.batch_stats

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return global_gradients(grads), value, stats

    return gradients


def _flops(step: Any, state: TrainState, batch: Any) -> float:
    # Counted before compilation: afterwards XLA does not count the operations that it leaves to cuDNN.
    return step.lower(state, batch).cost_analysis()["flops"]


if __name__ == "__main__":
    main()
