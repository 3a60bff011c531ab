"""Neighbouring grey tone difference matrix (Amadasun and King 1989): 5 features.

s_i is the sum over the pixels of level i of |i − mean level of the neighbours inside the region| (0 for a pixel
without such neighbours), n_i the number of pixels of level i, N = Σ n_i, p_i = n_i / N, G the number of levels with
pixels; all sums are over these levels:

* Coarseness 1 / Σ p_i s_i, 10⁶ where that is 0
* Contrast Σ_ij p_i p_j (i − j)² · Σ s_i / N / (G (G − 1)), 0 for one level
* Busyness Σ p_i s_i / Σ_ij |i p_i − j p_j|, 0 where the divisor is 0
* Complexity Σ_ij |i − j| (p_i s_i + p_j s_j) / (p_i + p_j) / N
* Strength Σ_ij (p_i + p_j)(i − j)² / Σ s_i, 0 where the divisor is 0
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def features(
    level_counts: Int[Array, "g"], tone_difference: Int[Array, "g 9"]
) -> dict[str, Float[Array, ""]]:
    """Features by name; the arguments as in `matrices.Matrices`."""
    g = len(level_counts)
    level = jnp.arange(1, g + 1)
    i = level.astype(float)
    neighbours = jnp.maximum(jnp.arange(9), 1).astype(float)
    s = (tone_difference / neighbours).sum(1)
    n = level_counts.sum().astype(float)
    p = level_counts / n
    present = level_counts > 0
    both_present = present[:, None] & present
    level_difference = i[:, None] - i
    p_sum = jnp.where(both_present, p[:, None] + p, 1)
    mean_difference = (p * s).sum()
    difference_sum = s.sum()
    n_present = present.sum().astype(float)
    contrast = (p[:, None] * p * level_difference**2).sum() * difference_sum / n
    level_sum = jnp.where(present, level * level_counts, 0)
    # In integers, so that no rounding decides whether this divisor is 0.
    spread = (
        jnp.where(both_present, jnp.abs(level_sum[:, None] - level_sum), 0)
        .sum(1)
        .astype(float)
        .sum()
        / n
    )
    complexity = (
        jnp.where(
            both_present, jnp.abs(level_difference) * ((p * s)[:, None] + p * s) / p_sum, 0
        ).sum()
        / n
    )
    strength = jnp.where(both_present, p_sum * level_difference**2, 0).sum()
    return {
        "Busyness": _ratio(mean_difference, spread, otherwise=0.0),
        "Coarseness": _ratio(jnp.ones_like(mean_difference), mean_difference, otherwise=1e6),
        "Complexity": complexity,
        "Contrast": _ratio(contrast, n_present * (n_present - 1), otherwise=0.0),
        "Strength": _ratio(strength, difference_sum, otherwise=0.0),
    }


def _ratio(x: Float[Array, ""], y: Float[Array, ""], *, otherwise: float) -> Float[Array, ""]:
    return jnp.where(y == 0, otherwise, x / jnp.where(y == 0, 1, y))
