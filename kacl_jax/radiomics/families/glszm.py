"""Grey level size zone matrix (Thibault et al. 2009): 16 features.

P(i, j) counts the zones of level i with j pixels. A zone is an 8-connected component of pixels of one level. With
z = Σ P zones and the region's number of pixels N: ZonePercentage = z / N, the others as in `emphasis`. The matrix would
be as wide as the largest zone and almost empty, so the few large zones are a list: a sum over j becomes a sum over
zones. A sum of f(P) becomes a sum over zones of f(P) / P, where P is the number of zones in the list with the same
level and size.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from kacl_jax.radiomics.counts.zones import Zones
from kacl_jax.radiomics.families import emphasis
from kacl_jax.radiomics.families.firstorder import EPSILON


def features(zones: Zones) -> dict[str, Float[Array, ""]]:
    """Features by name."""
    g, width = zones.small.shape
    is_zone = zones.large_size > 0
    n_zones = (zones.small.sum() + is_zone.sum()).astype(float)
    size = jnp.concatenate([jnp.arange(1, width + 1), zones.large_size]).astype(float)
    large_columns = jnp.where(
        is_zone, zones.large_level == jnp.arange(1, g + 1)[:, None], False
    ).astype(float)
    # Each large zone becomes one more column of the matrix.
    matrix = jnp.concatenate([zones.small.astype(float), large_columns], axis=1)
    level = emphasis.level_statistics(matrix.sum(1), n_zones)
    sizes = emphasis.size_statistics(matrix.sum(0), jnp.where(size > 0, size, 1), n_zones)
    both = emphasis.emphasis_by_size_and_level(matrix, jnp.where(size > 0, size, 1), n_zones)
    same_size = (zones.large_size[:, None] == zones.large_size) & is_zone
    same_zone = same_size & (zones.large_level[:, None] == zones.large_level)
    non_uniformity = (
        (zones.small.sum(0).astype(float) ** 2).sum()
        + jnp.where(is_zone, same_size.sum(1), 0).sum().astype(float)
    ) / n_zones
    p = same_zone.sum(1) / n_zones
    entropy = (
        emphasis.entropy(zones.small.astype(float), n_zones)
        - jnp.where(is_zone, jnp.log2(p + EPSILON), 0).sum() / n_zones
    )
    return {
        "GrayLevelNonUniformity": level["uniformity"],
        "GrayLevelNonUniformityNormalized": level["uniformity"] / n_zones,
        "GrayLevelVariance": level["variance"],
        "HighGrayLevelZoneEmphasis": level["high"],
        "LargeAreaEmphasis": sizes["large"],
        "LargeAreaHighGrayLevelEmphasis": both["large high"],
        "LargeAreaLowGrayLevelEmphasis": both["large low"],
        "LowGrayLevelZoneEmphasis": level["low"],
        "SizeZoneNonUniformity": non_uniformity,
        "SizeZoneNonUniformityNormalized": non_uniformity / n_zones,
        "SmallAreaEmphasis": sizes["small"],
        "SmallAreaHighGrayLevelEmphasis": both["small high"],
        "SmallAreaLowGrayLevelEmphasis": both["small low"],
        "ZoneEntropy": entropy,
        "ZonePercentage": n_zones / (matrix.sum(0) * size).sum(),
        "ZoneVariance": sizes["variance"],
    }
