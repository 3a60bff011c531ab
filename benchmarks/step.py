"""What the contrastive loss and Grad-CAM add to a supervised step: FLOPs, time and their ratios, in one run.

    python -m benchmarks.step [encoder] [image size] [batch]

Medians over several rounds in which these take turns:
  supervised     focal loss only, no map
  KACL           the train step as it is: both losses, class maps, Grad-CAM, statistics
  second pass    KACL's step plus a second forward pass for the CAM, as hooks on a trained network do it
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import optax

from benchmarks import bare
from kacl_jax.runtime.devices import AXIS, DataParallel, global_gradients
from kacl_jax.step import losses
from kacl_jax.step.programs import Programs
from kacl_jax.step.state import Batch, TrainState

ROUNDS = 7


def main(encoder: str = "resnet18", size: int = 224, batch_size: int = 16) -> None:
    program = bare.make_programs(encoder)
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

    parallel = DataParallel("shard_map")
    variables = jax.jit(lambda: bare.initial_variables(program.model, size))()
    state = parallel.replicate(program.init(variables, size))
    batch = parallel.shard(bare.random_batch(size, batch_size))
    steps = {
        "supervised": parallel.compile(focal_only, ("replicated",)),
        "KACL": parallel.compile(program.train_step, ("replicated", "replicated", "sharded")),
        "second pass": parallel.compile(second_pass, ("replicated", "sharded")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(ROUNDS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(state, batch))
            if round_:  # the first round compiles
                seconds[name].append(time.perf_counter() - start)
    device = jax.devices()[0]
    print(
        f"{encoder}, {size} px, batch {batch_size}, {device.platform}:{device.device_kind}, jax {jax.__version__}"
    )
    print(
        f"{'step':14}{'GFLOP':>9}{'s (median)':>12}{'images/s':>10}{'time ratio':>12}{'FLOP ratio':>12}"
    )
    base_time = statistics.median(seconds["supervised"])
    base_flops = _flops(steps["supervised"], state, batch)
    for name, step in steps.items():
        median, flops = statistics.median(seconds[name]), _flops(step, state, batch)
        print(
            f"{name:14}{flops / 1e9:9.1f}{median:12.3f}{batch_size / median:10.1f}"
            f"{median / base_time:12.2f}{flops / base_flops:12.3f}"
        )


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
    main(*(kind(value) for kind, value in zip((str, int, int), sys.argv[1:], strict=False)))
