"""Statistics that the features of run, zone and dependence matrices have in common.

P(i, j) is the number of runs, zones or pixels with grey level i and size j; n = Σ P, p = P / n. An emphasis is the mean
of j^{∓2} for small and large sizes or of i^{∓2} for low and high levels (Galloway 1975; Chu, Sehgal and Greenleaf 1990;
Dasarathy and Holder 1991).

Axes: d directions, or none · g grey levels · j sizes.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from kacl_jax.radiomics.families.firstorder import EPSILON


def emphasis_by_size_and_level(
    matrix: Float[Array, "*d g j"], size: Float[Array, "j"], n: Float[Array, "*d"]
) -> dict[str, Float[Array, "*d"]]:
    """Mean of j^{±2} i^{±2}: 'small low', 'small high', 'large low', 'large high'.

    matrix: counts.
    """
    level = _grey_levels(matrix.shape[-2])
    weighted_by_size = {
        "small": (matrix / size**2).sum(-1),
        "large": (matrix * size**2).sum(-1),
    }
    return {
        f"{size_name} {level_name}": (weighted_counts * level_weight).sum(-1) / n
        for size_name, weighted_counts in weighted_by_size.items()
        for level_name, level_weight in (("low", 1 / level**2), ("high", level**2))
    }


def level_statistics(
    count: Float[Array, "*d g"], n: Float[Array, "*d"]
) -> dict[str, Float[Array, "*d"]]:
    """From counts by level: 'low' and 'high' emphasis, 'uniformity' Σ count² / n, 'variance' of i."""
    level = _grey_levels(count.shape[-1])
    p = count / n[..., None]
    mean = (p * level).sum(-1, keepdims=True)
    return {
        "low": (p / level**2).sum(-1),
        "high": (p * level**2).sum(-1),
        "uniformity": (count * p).sum(-1),
        "variance": (p * (level - mean) ** 2).sum(-1),
    }


def size_statistics(
    count: Float[Array, "*d j"], size: Float[Array, "j"], n: Float[Array, "*d"]
) -> dict[str, Float[Array, "*d"]]:
    """From counts by size: 'small', 'large' emphasis, 'uniformity' Σ count² / n, 'variance' of j."""
    p = count / n[..., None]
    mean = (p * size).sum(-1, keepdims=True)
    return {
        "small": (p / size**2).sum(-1),
        "large": (p * size**2).sum(-1),
        "uniformity": (count * p).sum(-1),
        "variance": (p * (size - mean) ** 2).sum(-1),
    }


def entropy(matrix: Float[Array, "*d g j"], n: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """−Σ p log₂(p + ε) of counts."""
    p = matrix / n[..., None, None]
    return -(p * jnp.log2(p + EPSILON)).sum((-2, -1))


def _grey_levels(g: int) -> Float[Array, "{g}"]:
    return jnp.arange(1, g + 1).astype(float)
