"""Runs: pixels of one grey level in a row, along one of the four directions.

A short run is counted in a table, where it starts. A long one covers one or more of the lines that lie _SHORT apart,
and is counted on the first of them: these lines have few pixels.

Axes: s side of the tile · m = s − 2, the side without the rim · k l lines · g grey levels · r run lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int16, Int32, Shaped, UInt8

from kacl_jax.radiomics.counts.bincount import Formulation, bincount

# (dy, dx) of one of each pair of opposite neighbours at distance 1: the four directions of a 2-D image.
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))

_SHORT = 8  # pixels


def count_runs(
    level: UInt8[Array, "s s"], *, n_levels: int, formulation: Formulation
) -> Int32[Array, "4 g r"]:
    """Runs by direction (as DIRECTIONS), level and length − 1. level: 0 outside and on the rim."""
    side = len(level)
    # The barrier keeps the margin's bounds out of the loops that compare neighbours.
    wide = jax.lax.optimization_barrier(jnp.pad(level, _SHORT - 1))

    def neighbours(dy: int, dx: int) -> UInt8[Array, "m m"]:
        top, left = _SHORT + dy, _SHORT + dx
        return wide[top : top + side - 2, left : left + side - 2]

    def count_along(dy: int, dx: int) -> Int32[Array, "g r"]:
        def on_lines(x: Shaped[Array, "m m"]) -> Shaped[Array, "k m"]:
            return x[::_SHORT] if dy else x[:, ::_SHORT].T

        own = neighbours(0, 0)
        row = own.astype(jnp.int16) - 1
        before = [neighbours(-k * dy, -k * dx) for k in range(1, _SHORT + 1)]
        ahead = _alike(own, [neighbours(k * dy, k * dx) for k in range(1, _SHORT + 1)])
        is_short = (own > 0) & (own != before[0]) & (ahead < _SHORT)
        short = bincount(row * _SHORT + ahead, is_short, n_levels * _SHORT, formulation)
        on_line, row_on_line = on_lines(own), on_lines(row).astype(jnp.int32)
        behind = _alike(on_line, [on_lines(x) for x in before])
        length = behind + 1 + _join_lines(on_lines(ahead), dx if dy else 0)
        is_long = (on_line > 0) & (behind < _SHORT) & (length > _SHORT)
        index = row_on_line * side + length - 1
        long = bincount(index, is_long, n_levels * side, formulation, few=True)
        short = jnp.pad(short.reshape(n_levels, _SHORT), ((0, 0), (0, side)))[:, :side]
        return short + long.reshape(n_levels, side)

    return jnp.stack([count_along(*d) for d in DIRECTIONS])


def _alike(own: UInt8[Array, "k l"], others: Sequence[UInt8[Array, "k l"]]) -> Int16[Array, "k l"]:
    """How many of the next pixels have the level of the own one, without a gap."""
    alike, count = (own > 0).astype(jnp.uint8), jnp.zeros(own.shape, jnp.uint8)
    for other in others:
        alike &= (other == own).astype(jnp.uint8)
        count += alike
    return count.astype(jnp.int16)


def _join_lines(ahead: Int16[Array, "k m"], dx: int) -> Int16[Array, "k m"]:
    """How many pixels follow in the run, from how many do before the next line (_SHORT if the run goes on there).

    dx: how far the run goes to the right for each pixel that it comes nearer to the next line.
    """
    step = 1
    while step < len(ahead):
        shift = step * _SHORT * dx
        margin = min(abs(shift), ahead.shape[1])
        wide = jnp.pad(ahead[step:], ((0, step), (margin, margin)))
        further = wide[:, margin + max(min(shift, margin), -margin) :][:, : ahead.shape[1]]
        ahead = ahead + jnp.where(ahead == step * _SHORT, further, 0)
        step *= 2
    return ahead
