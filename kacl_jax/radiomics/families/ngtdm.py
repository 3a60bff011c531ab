"""Neighbouring grey tone difference matrix (Amadasun and King 1989): 5 features.

s_i is the sum over the pixels of level i of |i − mean level of the neighbours inside| (0 for a pixel without any),
n_i their number, N = Σ n_i, p_i = n_i / N, G the number of levels present; sums over present levels:

* Coarseness 1 / Σ p_i s_i, 10⁶ where that is 0
* Contrast Σ_ij p_i p_j (i − j)² · Σ s_i / N / (G (G − 1)), 0 for one level
* Busyness Σ p_i s_i / Σ_ij |i p_i − j p_j|, 0 where the divisor is 0
* Complexity Σ_ij |i − j| (p_i s_i + p_j s_j) / (p_i + p_j) / N
* Strength Σ_ij (p_i + p_j)(i − j)² / Σ s_i, 0 where the divisor is 0
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def features(levels: jax.Array, difference: jax.Array) -> dict[str, jax.Array]:
    """Scalars by name. levels: int32 [g]. difference: int32 [g 9], see `matrices.Matrices`."""
    g = len(levels)
    level = jnp.arange(1, g + 1)
    i = level.astype(float)
    neighbours = jnp.maximum(jnp.arange(9), 1).astype(float)
    s = (difference / neighbours).sum(1)
    n = levels.sum().astype(float)
    p = levels / n
    present = levels > 0
    pair = present[:, None] & present
    apart = i[:, None] - i
    p_sum = jnp.where(pair, p[:, None] + p, 1)
    weighted = (p * s).sum()
    total = s.sum()
    kinds = present.sum().astype(float)
    contrast = (p[:, None] * p * apart**2).sum() * total / n
    weight = jnp.where(present, level * levels, 0)
    # In integers, for a divisor is to be 0 or not whatever the rounding.
    spread = jnp.where(pair, jnp.abs(weight[:, None] - weight), 0).sum(1).astype(float).sum() / n
    complexity = jnp.where(pair, jnp.abs(apart) * ((p * s)[:, None] + p * s) / p_sum, 0).sum() / n
    strength = jnp.where(pair, p_sum * apart**2, 0).sum()
    return {
        "Busyness": _ratio(weighted, spread, otherwise=0.0),
        "Coarseness": _ratio(jnp.ones_like(weighted), weighted, otherwise=1e6),
        "Complexity": complexity,
        "Contrast": _ratio(contrast, kinds * (kinds - 1), otherwise=0.0),
        "Strength": _ratio(strength, total, otherwise=0.0),
    }


def _ratio(x: jax.Array, y: jax.Array, *, otherwise: float) -> jax.Array:
    return jnp.where(y == 0, otherwise, x / jnp.where(y == 0, 1, y))
