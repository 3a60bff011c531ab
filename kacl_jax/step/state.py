"""TrainState: what a step changes, and the rule that a step which is not finite changes nothing."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Shaped

Batch = dict[str, Array]
Metrics = dict[str, Shaped[Array, ""]]


class TrainState(flax.struct.PyTreeNode):
    """Everything on the device that a step changes.

    feature_mean, feature_var: running moments of the ready training rows after signed log1p.
    cam_mean: running mean of the raw maps that mark regions over the training images.
    *_count: how many steps moved that statistic.
    average: the running mean of {'params', 'batch_stats'} over the steps, which evaluation uses; {} without one.
    bad_step: the first step with a non-finite loss or gradient; −1 while there is none.
    """

    step: Int32[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    feature_mean: Float32[Array, "f"]
    feature_var: Float32[Array, "f"]
    feature_count: Int32[Array, ""]
    cam_mean: Float32[Array, "c u v"]
    cam_count: Int32[Array, ""]
    bad_step: Int32[Array, ""]
    average: Any

    def for_evaluation(self) -> TrainState:
        """The state whose params and batch_stats are the averages, if there are any. It has no further copy of them."""
        return self.replace(**self.average, average={})


def keep_if_finite(
    old: TrainState, new: TrainState, total: Float32[Array, ""], grad_norm: Float32[Array, ""]
) -> TrainState:
    """`new` where the loss and the norm of its gradients are finite on all devices, else `old` with `bad_step` set."""
    finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)
    accept = finite & (old.bad_step < 0)
    kept = jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)
    first_bad = jnp.where(finite | (old.bad_step >= 0), old.bad_step, old.step)
    return kept.replace(bad_step=first_bad)
