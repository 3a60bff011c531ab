"""Grey level run length matrix (Galloway 1975; Chu et al. 1990; Dasarathy and Holder 1991): 16 features.

P(i, j) counts the runs of level i and length j along one of the four directions. With r = Σ P runs and the region's
number of pixels N: RunPercentage = r / N, the others as in `emphasis`. Every feature is computed per direction and
averaged over those directions of which some line meets two pixels of the region.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kacl_jax.radiomics.families import emphasis


def features(glrlm: jax.Array, lines: jax.Array) -> dict[str, jax.Array]:
    """Scalars by name. glrlm: int32 [4 g r]. lines: bool [4], directions that count."""
    length = jnp.arange(1, glrlm.shape[2] + 1).astype(float)
    matrix = glrlm.astype(float)
    runs = glrlm.sum((1, 2)).astype(float)
    of_length = glrlm.sum(1).astype(float)
    level = emphasis.by_level(glrlm.sum(2).astype(float), runs)
    size = emphasis.by_size(of_length, length, runs)
    both = emphasis.by_both(matrix, length, runs)
    by_direction = {
        "GrayLevelNonUniformity": level["uniformity"],
        "GrayLevelNonUniformityNormalized": level["uniformity"] / runs,
        "GrayLevelVariance": level["variance"],
        "HighGrayLevelRunEmphasis": level["high"],
        "LongRunEmphasis": size["large"],
        "LongRunHighGrayLevelEmphasis": both["large high"],
        "LongRunLowGrayLevelEmphasis": both["large low"],
        "LowGrayLevelRunEmphasis": level["low"],
        "RunEntropy": emphasis.entropy(matrix, runs),
        "RunLengthNonUniformity": size["uniformity"],
        "RunLengthNonUniformityNormalized": size["uniformity"] / runs,
        "RunPercentage": runs / (of_length * length).sum(1),
        "RunVariance": size["variance"],
        "ShortRunEmphasis": size["small"],
        "ShortRunHighGrayLevelEmphasis": both["small high"],
        "ShortRunLowGrayLevelEmphasis": both["small low"],
    }
    n = lines.sum().astype(float)
    return {name: jnp.where(lines, x, 0).sum() / n for name, x in by_direction.items()}
