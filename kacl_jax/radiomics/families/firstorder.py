"""First-order statistics of the grey values x₁ … x_N of a region: 18 features.

Definitions as in pyradiomics (van Griethuysen et al. 2017, Cancer Research 77(21):e104): percentiles are linear
between order statistics at (N − 1)·q; p_i is the share of grey level i after binning, ε = 2⁻⁵².

* 10Percentile, 90Percentile, Median, Minimum, Maximum, Range, Mean; InterquartileRange = P₇₅ − P₂₅.
* Energy = TotalEnergy = Σ x² (pixels of area 1). RootMeanSquared = √(Σ x² / N).
* MeanAbsoluteDeviation = mean |x − x̄|; RobustMeanAbsoluteDeviation: the same over P₁₀ ≤ x ≤ P₉₀ only, NaN if no
  value lies there.
* Variance m₂, Skewness = m₃ / m₂^{3/2}, Kurtosis = m₄ / m₂² (not −3); central moments m_k; 0 for a constant region.
* Entropy = −Σ p_i log₂(p_i + ε). Uniformity = Σ p_i².
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

EPSILON = 2.0**-52


def of_histogram(histogram: jax.Array, levels: jax.Array) -> dict[str, jax.Array]:
    """Scalars by name, for 8-bit grey values.

    histogram: int32 [256] pixels by grey value. levels: int32 [g] pixels by grey level.
    """
    value = jnp.arange(256).astype(float)
    below = jnp.cumsum(histogram)

    def ordered(rank: jax.Array) -> jax.Array:
        return (below <= rank).sum().astype(float)

    return _features(value, histogram.astype(float), below[-1], ordered, levels)


def of_values(values: jax.Array, inside: jax.Array, levels: jax.Array) -> dict[str, jax.Array]:
    """Scalars by name, for any grey values: float [s s], inside: bool [s s]."""
    value = jnp.where(inside, values, jnp.inf).astype(float)
    increasing = jnp.sort(value.ravel())
    number = inside.sum(dtype=jnp.int32)
    # Twice summed, rows first: float32 keeps six digits.
    return _features(
        jnp.where(inside, value, 0.0),
        inside.astype(float),
        number,
        lambda rank: increasing[rank],
        levels,
    )


def _features(value, weight, number, ordered, levels):  # type: ignore[no-untyped-def]
    """value, weight: float, weighted grey values; ordered: rank from 0 → grey value."""
    n = number.astype(float)

    def total(x: jax.Array) -> jax.Array:
        return (weight * x).sum(-1).sum()

    def percentile(numerator: int, denominator: int) -> jax.Array:
        place = (number - 1) // denominator * numerator
        rest = (number - 1) % denominator * numerator
        rank, rest = place + rest // denominator, rest % denominator
        low, high = ordered(rank), ordered(jnp.minimum(rank + 1, number - 1))
        return low + (high - low) * (rest.astype(float) / denominator)

    mean = total(value) / n
    deviation = value - mean
    deviation = deviation - total(deviation) / n  # what float32 lost of the mean
    moment = {k: total(deviation**k) / n for k in (2, 3, 4)}
    scale = jnp.where(moment[2] == 0, 1.0, moment[2])
    p10, p90 = percentile(1, 10), percentile(9, 10)
    low, high = ordered(jnp.zeros_like(number)), ordered(number - 1)
    energy = total(value**2)
    share = levels.astype(float) / n
    return {
        "10Percentile": p10,
        "90Percentile": p90,
        "Energy": energy,
        "Entropy": -(share * jnp.log2(share + EPSILON)).sum(),
        "InterquartileRange": percentile(3, 4) - percentile(1, 4),
        "Kurtosis": moment[4] / scale**2,
        "Maximum": high,
        "MeanAbsoluteDeviation": total(jnp.abs(deviation)) / n,
        "Mean": mean,
        "Median": percentile(1, 2),
        "Minimum": low,
        "Range": high - low,
        "RobustMeanAbsoluteDeviation": _robust_deviation(value, weight, p10, p90),
        "RootMeanSquared": jnp.sqrt(energy / n),
        "Skewness": moment[3] / scale**1.5,
        "TotalEnergy": energy,
        "Uniformity": (share**2).sum(),
        "Variance": moment[2],
    }


def _robust_deviation(
    value: jax.Array, weight: jax.Array, low: jax.Array, high: jax.Array
) -> jax.Array:
    weight = jnp.where((value >= low) & (value <= high), weight, 0)
    n = weight.sum(-1).sum()
    mean = (weight * value).sum(-1).sum() / n
    return (weight * jnp.abs(value - mean)).sum(-1).sum() / n
