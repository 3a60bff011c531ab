"""The scale on which the radiomics encoder sees its input: z-scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from kacl_jax.models.kacl import MIN_READY_ROWS
from kacl_jax.runtime.devices import AXIS
from kacl_jax.step.state import Batch, TrainState

EMA_DECAY = 0.99
Z_CLIP = 10.0


def z_score_radiomics(
    state: TrainState, batch: Batch, log_columns: tuple[bool, ...]
) -> tuple[Float32[Array, "b f"], dict[str, Array], Int32[Array, ""]]:
    """The batch's radiomics → (z-scores, the moved running moments, number of ready rows on all devices).

    Signed log1p on `log_columns`, then the running mean and variance including this batch's ready rows
    (bias-corrected EMA); zero spread gives 0; clipped.
    """
    ready = batch["ready"][:, None]
    n_ready = jax.lax.psum(batch["ready"].sum(), AXIS)
    x = jnp.where(ready, batch["radiomics"], 0.0)
    x = jnp.where(jnp.array(log_columns), jnp.sign(x) * jnp.log1p(jnp.abs(x)), x)
    count = jnp.maximum(n_ready, 1)
    mean = jax.lax.psum(jnp.where(ready, x, 0.0).sum(0), AXIS) / count
    var = jax.lax.psum(jnp.where(ready, (x - mean) ** 2, 0.0).sum(0), AXIS) / count
    moves = n_ready >= MIN_READY_ROWS
    rate = jnp.where(moves, weight_of_newest(state.feature_count + 1), 0.0)
    step = mean - state.feature_mean
    moments = {
        "feature_mean": state.feature_mean + rate * step,
        "feature_var": (1 - rate) * (state.feature_var + rate * step**2) + rate * var,
        "feature_count": state.feature_count + moves,
    }
    return z_score(x, moments["feature_mean"], moments["feature_var"]), moments, n_ready


def z_score(
    x: Float[Array, "*b f"], mean: Float[Array, "f"], var: Float[Array, "f"]
) -> Float[Array, "*b f"]:
    """(x − mean) / spread, clipped to ±10; a column without spread gives 0."""
    # Rounding leaves a constant column a relative spread of 1e-7, not 0.
    spread = var > 1e-10 * (1 + mean**2)
    z = (x - mean) / jnp.sqrt(jnp.where(spread, var, 1.0))
    return jnp.clip(jnp.where(spread, z, 0.0), -Z_CLIP, Z_CLIP)


def weight_of_newest(count: Int32[Array, ""], decay: float = EMA_DECAY) -> Float32[Array, ""]:
    """The weight of the newest of `count` values in a bias-corrected exponential mean."""
    return (1 - decay) / (1 - decay ** count.astype(jnp.float32))
