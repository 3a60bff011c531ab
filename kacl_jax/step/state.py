"""TrainState: what a step changes, and the rule that a step which is not finite changes nothing."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """Everything on the device that a step changes.

    feature_mean, feature_var: float32 [f], running moments of the ready training rows after signed log1p.
    cam_mean: float32 [c u v], running mean of the raw maps that mark regions over the training images.
    *_count: int32, how many steps moved that statistic.
    bad_step: int32, the first step with a non-finite loss or gradient; −1 while there is none.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    feature_mean: jax.Array
    feature_var: jax.Array
    feature_count: jax.Array
    cam_mean: jax.Array
    cam_count: jax.Array
    bad_step: jax.Array


def keep_if_finite(
    old: TrainState, new: TrainState, total: jax.Array, grad_norm: jax.Array
) -> TrainState:
    """`new` where the loss and the norm of its gradients are finite on all devices, else `old` with `bad_step` set."""
    finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)
    accept = finite & (old.bad_step < 0)
    kept = jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)
    first_bad = jnp.where(finite | (old.bad_step >= 0), old.bad_step, old.step)
    return kept.replace(bad_step=first_bad)
