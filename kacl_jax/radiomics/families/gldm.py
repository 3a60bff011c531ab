"""Grey level dependence matrix (Sun and Wee 1983; pyradiomics, α = 0, distance 1): 14 features.

P(i, j) counts the pixels of level i of which j − 1 of the eight neighbours have the same level. Its statistics are
those of `emphasis`, with the number of pixels as n.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kacl_jax.radiomics.families import emphasis


def features(gldm: Int[Array, "g 9"]) -> dict[str, Float[Array, ""]]:
    """Features by name."""
    dependence = jnp.arange(1, 10).astype(float)
    matrix = gldm.astype(float)
    n = gldm.sum().astype(float)
    level = emphasis.level_statistics(gldm.sum(1).astype(float), n)
    size = emphasis.size_statistics(gldm.sum(0).astype(float), dependence, n)
    both = emphasis.emphasis_by_size_and_level(matrix, dependence, n)
    return {
        "DependenceEntropy": emphasis.entropy(matrix, n),
        "DependenceNonUniformity": size["uniformity"],
        "DependenceNonUniformityNormalized": size["uniformity"] / n,
        "DependenceVariance": size["variance"],
        "GrayLevelNonUniformity": level["uniformity"],
        "GrayLevelVariance": level["variance"],
        "HighGrayLevelEmphasis": level["high"],
        "LargeDependenceEmphasis": size["large"],
        "LargeDependenceHighGrayLevelEmphasis": both["large high"],
        "LargeDependenceLowGrayLevelEmphasis": both["large low"],
        "LowGrayLevelEmphasis": level["low"],
        "SmallDependenceEmphasis": size["small"],
        "SmallDependenceHighGrayLevelEmphasis": both["small high"],
        "SmallDependenceLowGrayLevelEmphasis": both["small low"],
    }
