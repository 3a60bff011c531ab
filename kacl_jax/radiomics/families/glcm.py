"""Grey level co-occurrence matrix (Haralick, Shanmugam and Dinstein 1973): 24 features.

p(i, j) is the share of pairs of neighbouring pixels with levels i and j, each pair counted in both orders, in one of
the four directions of distance 1. Every feature is computed per direction and averaged over the directions that have a
pair (NaN if none has). With the marginal p_x, its mean μ and variance σ²; p₊(k) = Σ_{i+j=k} p, p₋(k) = Σ_{|i−j|=k} p;
sums over all i, j or k; G the highest level present; ε = 2⁻⁵²; H(p) = −Σ p log₂(p + ε):

* Autocorrelation Σ p i j · JointAverage μ · SumAverage Σ k p₊ · SumSquares σ²
* ClusterTendency, ClusterShade, ClusterProminence Σ p (i + j − 2μ)^{2, 3, 4}
* Contrast Σ p (i − j)² · Correlation Σ p (i − μ)(j − μ) / σ², 1 where σ = 0
* DifferenceAverage Σ k p₋ · DifferenceVariance Σ p₋ (k − DifferenceAverage)² · DifferenceEntropy H(p₋)
* Id, Idn, Idm, Idmn Σ p₋ / (1 + k, k/G, k², k²/G²) · InverseVariance Σ_{k>0} p₋ / k²
* JointEnergy Σ p² · JointEntropy H(p) · MaximumProbability max p · SumEntropy H(p₊)
* Imc1, Imc2: with the mutual information I = Σ p log₂(p / p_x p_y), Imc1 = −I / H(p_x) (0 where H is 0) and
  Imc2 = √(1 − e^{−2I}). I is Σ q φ(p/q), φ(r) = r log r − r + 1 ≥ 0, q = p_x p_y, a sum without cancellation.
* MCC: √ of the second largest eigenvalue of Q(i, j) = Σ_k p(i, k) p(j, k) / (p_x(i) p_y(k)); 1 where the region has
  one level. Q is similar to S², S = D^{−½} p D^{−½}, D = diag(p_x), whose largest eigenvalue 1 has the eigenvector
  √p_x. This eigenvector is removed, and the spectral norm of the remainder is computed by repeated squaring.

Axes: d directions · g grey levels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kacl_jax.radiomics.families.firstorder import EPSILON

_SERIES_LIMIT = 0.03  # |c| below which the series in `_mutual_information` has a relative error of 2e-14 or less
_SQUARINGS = 30  # enough for an error of the norm's logarithm of at most ln(g) / 2³¹


def features(
    glcm: Int[Array, "4 g g"], level_counts: Int[Array, "g"]
) -> dict[str, Float[Array, ""]]:
    """Features by name. glcm: symmetric. level_counts: pixels by level."""
    g = len(level_counts)
    n_pairs = glcm.sum((1, 2))
    has_pairs = n_pairs > 0
    n = jnp.maximum(n_pairs, 1).astype(float)[:, None]
    p = glcm / n[:, None]
    p_sum, p_difference = _sums_by_level_sum(glcm) / n, _sums_by_level_difference(glcm) / n
    marginal = glcm.sum(2) / n
    i = jnp.arange(1, g + 1).astype(float)
    k = jnp.arange(g).astype(float)
    k_sum = jnp.arange(2, 2 * g + 1).astype(float)
    highest = jnp.max(jnp.where(level_counts > 0, i, 0))
    mean = (marginal * i).sum(1, keepdims=True)
    variance = (marginal * (i - mean) ** 2).sum(1)
    centred_sum = k_sum - 2 * mean
    difference_mean = (p_difference * k).sum(1, keepdims=True)
    covariance = (p * (i - mean)[:, :, None] * (i - mean)[:, None]).sum((1, 2))
    information = _mutual_information(p, marginal)
    marginal_entropy = _entropy(marginal)
    by_direction = {
        "Autocorrelation": (p * i[:, None] * i).sum((1, 2)),
        "ClusterProminence": (p_sum * centred_sum**4).sum(1),
        "ClusterShade": (p_sum * centred_sum**3).sum(1),
        "ClusterTendency": (p_sum * centred_sum**2).sum(1),
        "Contrast": (p_difference * k**2).sum(1),
        "Correlation": jnp.where(
            variance > 0, covariance / jnp.where(variance > 0, variance, 1), 1
        ),
        "DifferenceAverage": difference_mean[:, 0],
        "DifferenceEntropy": _entropy(p_difference),
        "DifferenceVariance": (p_difference * (k - difference_mean) ** 2).sum(1),
        "Id": (p_difference / (1 + k)).sum(1),
        "Idm": (p_difference / (1 + k**2)).sum(1),
        "Idmn": (p_difference / (1 + (k / highest) ** 2)).sum(1),
        "Idn": (p_difference / (1 + k / highest)).sum(1),
        # In a direction with only one level H = 0 (apart from ε) and I = 0.
        "Imc1": -information / jnp.where((marginal > 0).sum(1) > 1, marginal_entropy, 1),
        "Imc2": jnp.sqrt(-jnp.expm1(-2 * information)),
        "InverseVariance": (p_difference[:, 1:] / k[1:] ** 2).sum(1),
        "JointAverage": mean[:, 0],
        "JointEnergy": (p**2).sum((1, 2)),
        "JointEntropy": _entropy(p.reshape(len(p), -1)),
        "MCC": _correlation_coefficient(p, marginal),
        "MaximumProbability": p.max((1, 2)),
        "SumAverage": (p_sum * k_sum).sum(1),
        "SumEntropy": _entropy(p_sum),
        "SumSquares": variance,
    }
    averaged = {
        name: jnp.where(has_pairs, x, 0).sum() / has_pairs.sum().astype(float)
        for name, x in by_direction.items()
    }
    averaged["MCC"] = jnp.where((level_counts > 0).sum() < 2, 1.0, averaged["MCC"])
    return averaged


def _entropy(p: Float[Array, "d n"]) -> Float[Array, "d"]:
    return -(p * jnp.log2(p + EPSILON)).sum(-1)


def _skew(x: Int[Array, "d g g"]) -> Int[Array, "d g 2*g-1"]:
    """Row i moved i places to the right."""
    d, g, _ = x.shape
    wide = jnp.pad(x, ((0, 0), (0, 0), (0, g))).reshape(d, -1)[:, : g * (2 * g - 1)]
    return wide.reshape(d, g, 2 * g - 1)


def _sums_by_level_sum(x: Int[Array, "d g g"]) -> Int[Array, "d 2*g-1"]:
    """Σ over i + j = const."""
    return _skew(x).sum(1)


def _sums_by_level_difference(x: Int[Array, "d g g"]) -> Int[Array, "d g"]:
    """Σ over |i − j| = k of symmetric matrices."""
    g = x.shape[1]
    diagonals = _skew(x[:, :, ::-1]).sum(1)
    return jnp.concatenate([diagonals[:, g - 1 : g], 2 * diagonals[:, g:]], axis=1)


def _mutual_information(
    p: Float[Array, "d g g"], marginal: Float[Array, "d g"]
) -> Float[Array, "d"]:
    """Mutual information in bits."""
    q = marginal[:, :, None] * marginal[:, None]
    relative_change = jnp.where(q > 0, (p - q) / jnp.where(q > 0, q, 1), 0)
    logarithm = jnp.log1p(jnp.where(p > 0, relative_change, 0))
    exact = (1 + relative_change) * logarithm - relative_change
    # Near c = 0 the terms of φ(1 + c) ≈ c² / 2 cancel; those of its Taylor series Σ (−c)^k / k(k − 1) do not.
    series = jnp.zeros_like(relative_change)
    for k in range(9, 1, -1):
        series = 1 / (k * (k - 1)) - relative_change * series
    series = relative_change**2 * series
    return (q * jnp.where(jnp.abs(relative_change) < _SERIES_LIMIT, series, exact)).sum(
        (1, 2)
    ) / jnp.log(2.0)


def _correlation_coefficient(
    p: Float[Array, "d g g"], marginal: Float[Array, "d g"]
) -> Float[Array, "d"]:
    square_root = jnp.sqrt(marginal)
    inverse_root = jnp.where(square_root > 0, 1 / jnp.where(square_root > 0, square_root, 1), 0)
    remainder = (
        p * inverse_root[:, :, None] * inverse_root[:, None]
        - square_root[:, :, None] * square_root[:, None]
    )

    def normalise_and_square(matrix: Array) -> tuple[Array, Array]:
        norm = jnp.sqrt((matrix**2).sum((1, 2)))
        unit = matrix / jnp.where(norm > 0, norm, 1)[:, None, None]
        return jnp.matmul(unit, unit, precision="highest"), norm

    def square_step(step: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, log_norm = state
        matrix, norm = normalise_and_square(matrix)
        power = jnp.exp2(-step.astype(log_norm.dtype))
        return matrix, log_norm + power * jnp.log(jnp.where(norm > 0, norm, 1))

    is_zero = (remainder**2).sum((1, 2)) == 0
    _, log_norm = jax.lax.fori_loop(0, _SQUARINGS, square_step, (remainder, 0 * p[:, 0, 0]))
    return jnp.where(is_zero, 0, jnp.exp(log_norm))
