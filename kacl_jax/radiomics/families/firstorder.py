"""First-order statistics of the grey values x₁ … x_N of a region: 18 features.

Definitions as in pyradiomics (van Griethuysen et al. 2017, Cancer Research 77(21):e104): percentiles are linear
interpolations between order statistics at (N − 1)·q; p_i is the share of grey level i after binning, ε = 2⁻⁵².

* 10Percentile, 90Percentile, Median, Minimum, Maximum, Range, Mean; InterquartileRange = P₇₅ − P₂₅.
* Energy = TotalEnergy = Σ x² (pixels of area 1). RootMeanSquared = √(Σ x² / N).
* MeanAbsoluteDeviation = mean |x − x̄|; RobustMeanAbsoluteDeviation: the same over P₁₀ ≤ x ≤ P₉₀ only, NaN if no
  value lies there.
* Variance m₂, Skewness = m₃ / m₂^{3/2}, Kurtosis = m₄ / m₂² (not −3); central moments m_k; 0 for a constant region.
* Entropy = −Σ p_i log₂(p_i + ε). Uniformity = Σ p_i².
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

EPSILON = 2.0**-52


def features_of_histogram(
    histogram: Int[Array, "256"], level_counts: Int[Array, "g"]
) -> dict[str, Float[Array, ""]]:
    """Features by name, for 8-bit grey values.

    histogram: pixels by grey value. level_counts: pixels by grey level.
    """
    value = jnp.arange(256).astype(float)
    below = jnp.cumsum(histogram)

    def value_at_rank(rank: Int[Array, ""]) -> Float[Array, ""]:
        return (below <= rank).sum().astype(float)

    return _features_of_weighted_values(
        value, histogram.astype(float), below[-1], value_at_rank, level_counts
    )


def features_of_values(
    values: Float[Array, "s s"], inside: Bool[Array, "s s"], level_counts: Int[Array, "g"]
) -> dict[str, Float[Array, ""]]:
    """Features by name, for any grey values."""
    value = jnp.where(inside, values, jnp.inf).astype(float)
    sorted_values = jnp.sort(value.ravel())
    n_pixels = inside.sum(dtype=jnp.int32)
    # Sums run over rows first, then over their results, so that float32 keeps six digits.
    return _features_of_weighted_values(
        jnp.where(inside, value, 0.0),
        inside.astype(float),
        n_pixels,
        lambda rank: sorted_values[rank],
        level_counts,
    )


def _features_of_weighted_values(value, weight, n_pixels, value_at_rank, level_counts):  # type: ignore[no-untyped-def]
    """value, weight: float arrays of grey values and how often each counts. value_at_rank: rank from 0 → grey value."""
    n = n_pixels.astype(float)

    def weighted_sum(x: Float[Array, "*shape"]) -> Float[Array, ""]:
        return (weight * x).sum(-1).sum()

    def percentile(numerator: int, denominator: int) -> Float[Array, ""]:
        whole_steps = (n_pixels - 1) // denominator * numerator
        remainder = (n_pixels - 1) % denominator * numerator
        rank, remainder = whole_steps + remainder // denominator, remainder % denominator
        low, high = value_at_rank(rank), value_at_rank(jnp.minimum(rank + 1, n_pixels - 1))
        return low + (high - low) * (remainder.astype(float) / denominator)

    mean = weighted_sum(value) / n
    deviation = value - mean
    # Corrects the rounding error of the mean in float32.
    deviation = deviation - weighted_sum(deviation) / n
    moments = {k: weighted_sum(deviation**k) / n for k in (2, 3, 4)}
    nonzero_variance = jnp.where(moments[2] == 0, 1.0, moments[2])
    p10, p90 = percentile(1, 10), percentile(9, 10)
    minimum, maximum = value_at_rank(jnp.zeros_like(n_pixels)), value_at_rank(n_pixels - 1)
    energy = weighted_sum(value**2)
    share = level_counts.astype(float) / n
    return {
        "10Percentile": p10,
        "90Percentile": p90,
        "Energy": energy,
        "Entropy": -(share * jnp.log2(share + EPSILON)).sum(),
        "InterquartileRange": percentile(3, 4) - percentile(1, 4),
        "Kurtosis": moments[4] / nonzero_variance**2,
        "Maximum": maximum,
        "MeanAbsoluteDeviation": weighted_sum(jnp.abs(deviation)) / n,
        "Mean": mean,
        "Median": percentile(1, 2),
        "Minimum": minimum,
        "Range": maximum - minimum,
        "RobustMeanAbsoluteDeviation": _robust_deviation(value, weight, p10, p90),
        "RootMeanSquared": jnp.sqrt(energy / n),
        "Skewness": moments[3] / nonzero_variance**1.5,
        "TotalEnergy": energy,
        "Uniformity": (share**2).sum(),
        "Variance": moments[2],
    }


def _robust_deviation(
    value: Float[Array, "*shape"],
    weight: Float[Array, "*shape"],
    low: Float[Array, ""],
    high: Float[Array, ""],
) -> Float[Array, ""]:
    weight = jnp.where((value >= low) & (value <= high), weight, 0)
    n = weight.sum(-1).sum()
    mean = (weight * value).sum(-1).sum() / n
    return (weight * jnp.abs(value - mean)).sum(-1).sum() / n
