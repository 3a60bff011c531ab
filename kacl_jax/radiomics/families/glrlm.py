"""Grey level run length matrix (Galloway 1975; Chu et al. 1990; Dasarathy and Holder 1991): 16 features.

P(i, j) counts the runs of level i and length j along one of the four directions. With r = Σ P runs and the region's
number of pixels N: RunPercentage = r / N, the others as in `emphasis`. Every feature is computed per direction and
averaged over the directions in which some line contains two pixels of the region.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kacl_jax.radiomics.families import emphasis


def features(
    glrlm: Int[Array, "4 g r"], valid_directions: Bool[Array, "4"]
) -> dict[str, Float[Array, ""]]:
    """Features by name. valid_directions: those that are averaged."""
    length = jnp.arange(1, glrlm.shape[2] + 1).astype(float)
    matrix = glrlm.astype(float)
    n_runs = glrlm.sum((1, 2)).astype(float)
    counts_by_length = glrlm.sum(1).astype(float)
    level = emphasis.level_statistics(glrlm.sum(2).astype(float), n_runs)
    size = emphasis.size_statistics(counts_by_length, length, n_runs)
    both = emphasis.emphasis_by_size_and_level(matrix, length, n_runs)
    by_direction = {
        "GrayLevelNonUniformity": level["uniformity"],
        "GrayLevelNonUniformityNormalized": level["uniformity"] / n_runs,
        "GrayLevelVariance": level["variance"],
        "HighGrayLevelRunEmphasis": level["high"],
        "LongRunEmphasis": size["large"],
        "LongRunHighGrayLevelEmphasis": both["large high"],
        "LongRunLowGrayLevelEmphasis": both["large low"],
        "LowGrayLevelRunEmphasis": level["low"],
        "RunEntropy": emphasis.entropy(matrix, n_runs),
        "RunLengthNonUniformity": size["uniformity"],
        "RunLengthNonUniformityNormalized": size["uniformity"] / n_runs,
        "RunPercentage": n_runs / (counts_by_length * length).sum(1),
        "RunVariance": size["variance"],
        "ShortRunEmphasis": size["small"],
        "ShortRunHighGrayLevelEmphasis": both["small high"],
        "ShortRunLowGrayLevelEmphasis": both["small low"],
    }
    n = valid_directions.sum().astype(float)
    return {name: jnp.where(valid_directions, x, 0).sum() / n for name, x in by_direction.items()}
