"""Zones of one grey level (8-connected), as the grey level size zone matrix needs them.

Labels are joined by repeated hooking to the smallest neighbouring label and pointer jumping. On a CPU the nodes are
horizontal runs, of which an X-ray region has few; a region with many, and every region on an accelerator, takes its
pixels as nodes.

Axes: s side of the tile · g grey levels · z large zones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

SMALL = 256  # zones up to this size are counted in a table, larger ones listed: there are few
_RUNS_SHARE = 4  # by runs, if there are at most this fraction of s² runs, and of contacts
_JUMPS = 3


class Zones(NamedTuple):
    """int32. small: [g SMALL] zones by level and size − 1. level, size: [z] the larger zones; 0 where none."""

    small: jax.Array
    level: jax.Array
    size: jax.Array


def neighbour(x: jax.Array, offset: tuple[int, int]) -> jax.Array:
    """x at (y + dy, x + dx) for each pixel of a tile; its empty rim makes the wrapped values harmless."""
    return jnp.roll(x, (-offset[0], -offset[1]), (0, 1))


def find(
    level: jax.Array,
    links: Sequence[jax.Array],
    ahead: jax.Array,
    *,
    levels: int,
    by_runs: bool,
) -> Zones:
    """The zones of one region.

    Args:
      level: int16 [s s], 0 outside.
      links: bool [s s] each: like the right, lower, lower right, lower left neighbour.
      ahead: int16 [s s], links to the right that follow each other.
      levels: g.
      by_runs: take runs as nodes where they are few.
    """

    def pixelwise() -> Zones:
        return _tabulated(*_by_pixels(level, links), level.size, levels)

    if not by_runs:
        return pixelwise()
    return _by_runs(level, links, ahead, levels, pixelwise)


def ranks(flags: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Place of each set flag among the set ones, in reading order: (int32 [y x], their number).

    The place of an unset flag is that of the last set one before it.
    """
    x = _sums_along_rows(flags.astype(jnp.int32))
    before, total = _row_offsets(x[:, -1])
    return x + before[:, None] - 1, total


def _sums_along_rows(x: jax.Array) -> jax.Array:
    step = 1
    while step < x.shape[1]:
        x = x + jnp.pad(x[:, :-step], ((0, 0), (step, 0)))
        step *= 2
    return x


def _row_offsets(row_totals: jax.Array) -> tuple[jax.Array, jax.Array]:
    through = jnp.cumsum(row_totals)
    return through - row_totals, through[-1]


def _by_runs(level, links, ahead, levels, otherwise):  # type: ignore[no-untyped-def]
    right, below, below_right, below_left = links
    side = len(level)
    inside = level > 0
    start = inside & ~neighbour(right, (0, -1))
    # Contacts of a pixel with the row above, one for each pair of runs: it is the first place where they touch.
    above = neighbour(below, (-1, 0))
    above_left, above_right = neighbour(below_right, (-1, -1)), neighbour(below_left, (-1, 1))
    left = neighbour(right, (0, -1))
    first = above & ~(left & neighbour(above, (0, -1)))
    corner_left = above_left & ~above & ~left
    corner_right = above_right & ~above & ~right
    one, two = first | corner_left, corner_right
    # Three counts in one sum: a row holds fewer than 1024 of each.
    flags = start.astype(jnp.int32) + (one.astype(jnp.int32) << 10) + (two.astype(jnp.int32) << 20)
    along = _sums_along_rows(flags)
    parts = [(along >> shift) & 1023 for shift in (0, 10, 20)]
    offsets = [_row_offsets(part[:, -1]) for part in parts]
    run, place_one, place_two = (
        part + before[:, None] - 1 for part, (before, _) in zip(parts, offsets, strict=True)
    )
    n_runs, n_one, n_two = (total for _, total in offsets)
    capacity = side * side // _RUNS_SHARE

    def runwise() -> Zones:
        pixel = jnp.arange(side * side, dtype=jnp.int32).reshape(side, side)
        head = _listed(pixel, start, run, capacity)
        up = pixel - side + jnp.where(first, 0, -1)
        ends = jnp.stack([_listed(pixel, one, place_one, capacity), _listed(up, one, place_one, capacity)])
        place = jnp.where(two, place_two + n_one, capacity)
        ends = ends.at[0, place].set(pixel, mode="drop").at[1, place].set(pixel - side + 1, mode="drop")
        a, b = run.ravel()[ends[0]], run.ravel()[ends[1]]
        used = jnp.arange(capacity) < n_runs
        length = jnp.where(used, ahead.ravel()[head].astype(jnp.int32) + 1, 0)
        root = _joined(a, b, jnp.arange(capacity) < n_one + n_two, capacity)
        size = jnp.zeros(capacity, jnp.int32).at[root].add(length)
        return _tabulated(level.ravel()[head].astype(jnp.int32), size, side * side, levels)

    fits = (n_runs <= capacity) & (n_one + n_two <= capacity)
    return jax.lax.cond(fits, runwise, otherwise)


def _listed(value: jax.Array, flags: jax.Array, place: jax.Array, capacity: int) -> jax.Array:
    """The flagged values [capacity] in reading order, 0 behind them; more than `capacity` are not kept."""
    index = jnp.where(flags, place, capacity).ravel()
    return jnp.zeros(capacity, jnp.int32).at[index].set(value.ravel(), mode="drop")


def _joined(a: jax.Array, b: jax.Array, used: jax.Array, n: int) -> jax.Array:
    """The smallest node of each node's component, for edges a–b where `used`: int32 [n].

    Labels only fall and never leave the component; at rest the two ends of every edge agree.
    """
    a, b = jnp.where(used, a, 0), jnp.where(used, b, 0)

    def turn(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        label, _ = state
        x, y = label[a], label[b]
        label = label.at[jnp.maximum(x, y)].min(jnp.minimum(x, y))
        label = label.at[a].min(y).at[b].min(x)
        for _ in range(_JUMPS):
            label = label[label]
        moves = (label[a] != label[b]).any() | (label[label] != label).any()
        return label, moves

    start = jnp.arange(n, dtype=jnp.int32)
    return jax.lax.while_loop(lambda state: state[1], turn, (start, jnp.array(True)))[0]


def _by_pixels(level: jax.Array, links: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """(level, size) of the zone that each pixel is the root of; size 0 elsewhere. int32 [s²] each."""
    n = level.size
    offsets = ((0, 1), (1, 0), (1, 1), (1, -1))

    def turn(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        label, _ = state
        grid = label.reshape(level.shape)
        least = grid
        for link, (dy, dx) in zip(links, offsets, strict=True):
            back = (-dy, -dx)
            least = jnp.minimum(least, jnp.where(link, neighbour(grid, (dy, dx)), n))
            least = jnp.minimum(least, jnp.where(neighbour(link, back), neighbour(grid, back), n))
        new = label.at[label].min(least.ravel())
        new = jnp.minimum(new, least.ravel())
        for _ in range(_JUMPS):
            new = new[new]
        return new, (new != label).any()

    start = jnp.arange(n, dtype=jnp.int32)
    label, _ = jax.lax.while_loop(lambda state: state[1], turn, (start, jnp.array(True)))
    inside = level.ravel() > 0
    size = jnp.zeros(n, jnp.int32).at[label].add(inside.astype(jnp.int32))
    return level.ravel().astype(jnp.int32), size


def _tabulated(level: jax.Array, size: jax.Array, pixels: int, levels: int) -> Zones:
    """level, size: int32 [n], size 0 where there is no zone. pixels: s²."""
    small = jnp.where((size > 0) & (size <= SMALL), (level - 1) * SMALL + size - 1, levels * SMALL)
    table = jnp.zeros(levels * SMALL + 1, jnp.int32).at[small].add(1)[:-1]
    room = pixels // (SMALL + 1) + 1
    large = size > SMALL
    width = 64
    rows = jnp.pad(large, (0, -len(large) % width)).reshape(-1, width)
    place = jnp.where(large, ranks(rows)[0].ravel()[: len(large)], room)
    empty = jnp.zeros(room, jnp.int32)
    return Zones(
        small=table.reshape(levels, SMALL),
        level=empty.at[place].set(level, mode="drop"),
        size=empty.at[place].set(size, mode="drop"),
    )
