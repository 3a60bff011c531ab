"""Grey level size zone matrix (Thibault et al. 2009): 16 features.

P(i, j) counts the zones of level i and j pixels: 8-connected pixels of one level. With z = Σ P zones and the region's
number of pixels N: ZonePercentage = z / N, the others as in `emphasis`. The matrix is as wide as the largest zone and
almost empty, so the few large zones are kept as a list: a sum over j becomes a sum over zones, and a sum of a function
of P one over zones of that function divided by P, P being the number of zones in the list like this one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kacl_jax.radiomics.counts.zones import Zones
from kacl_jax.radiomics.families import emphasis
from kacl_jax.radiomics.families.firstorder import EPSILON


def features(zones: Zones) -> dict[str, jax.Array]:
    """Scalars by name."""
    g, width = zones.small.shape
    used = zones.size > 0
    n = (zones.small.sum() + used.sum()).astype(float)
    size = jnp.concatenate([jnp.arange(1, width + 1), zones.size]).astype(float)
    large = jnp.where(used, zones.level == jnp.arange(1, g + 1)[:, None], False).astype(float)
    # The list as columns of the matrix, one zone each.
    matrix = jnp.concatenate([zones.small.astype(float), large], axis=1)
    level = emphasis.by_level(matrix.sum(1), n)
    sizes = emphasis.by_size(matrix.sum(0), jnp.where(size > 0, size, 1), n)
    both = emphasis.by_both(matrix, jnp.where(size > 0, size, 1), n)
    same_size = (zones.size[:, None] == zones.size) & used
    same = same_size & (zones.level[:, None] == zones.level)
    non_uniformity = (
        (zones.small.sum(0).astype(float) ** 2).sum()
        + jnp.where(used, same_size.sum(1), 0).sum().astype(float)
    ) / n
    p = same.sum(1) / n
    entropy = (
        emphasis.entropy(zones.small.astype(float), n)
        - jnp.where(used, jnp.log2(p + EPSILON), 0).sum() / n
    )
    return {
        "GrayLevelNonUniformity": level["uniformity"],
        "GrayLevelNonUniformityNormalized": level["uniformity"] / n,
        "GrayLevelVariance": level["variance"],
        "HighGrayLevelZoneEmphasis": level["high"],
        "LargeAreaEmphasis": sizes["large"],
        "LargeAreaHighGrayLevelEmphasis": both["large high"],
        "LargeAreaLowGrayLevelEmphasis": both["large low"],
        "LowGrayLevelZoneEmphasis": level["low"],
        "SizeZoneNonUniformity": non_uniformity,
        "SizeZoneNonUniformityNormalized": non_uniformity / n,
        "SmallAreaEmphasis": sizes["small"],
        "SmallAreaHighGrayLevelEmphasis": both["small high"],
        "SmallAreaLowGrayLevelEmphasis": both["small low"],
        "ZoneEntropy": entropy,
        "ZonePercentage": n / (matrix.sum(0) * size).sum(),
        "ZoneVariance": sizes["variance"],
    }
