"""Zones of one grey level (8-connected), as the grey level size zone matrix needs them.

The nodes are horizontal runs, the edges their contacts with runs of the row above. Labels fall by hooking to the
smaller label and pointer jumping until the ends of every edge agree.

Axes: s side of the tile · g grey levels · z large zones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

SMALL = 256  # zones up to this size are counted in a table, larger ones listed: there are few
_COMPACT = 6  # an X-ray region rarely has more than s² / 6 runs
_JUMPS = 3


class Zones(NamedTuple):
    """int32. small: [g SMALL] zones by level and size − 1. level, size: [z] the larger zones; 0 where none."""

    small: jax.Array
    level: jax.Array
    size: jax.Array


def most_large(pixels: int) -> int:
    """How many zones larger than SMALL a tile of so many pixels can hold, and one to spare."""
    return pixels // (SMALL + 1) + 1


def neighbour(x: jax.Array, offset: tuple[int, int]) -> jax.Array:
    """x at (y + dy, x + dx) for each pixel of a tile; its empty rim makes the wrapped values harmless."""
    return jnp.roll(x, (-offset[0], -offset[1]), (0, 1))


def find(
    level: jax.Array,
    links: Sequence[jax.Array],
    ahead: jax.Array,
    *,
    levels: int,
    compact: bool,
) -> Zones:
    """The zones of one region.

    Args:
      level: int16 [s s], 0 outside.
      links: bool [s s] each: like the right, lower, lower right, lower left neighbour.
      ahead: int16 [s s], links to the right that follow each other.
      levels: g.
      compact: with less room if the region's runs fit in it, decided when it runs.
    """
    side = len(level)
    starts, first, second = _starts_and_contacts(level > 0, links)
    (run, place, second_place), (n_runs, n_first, n_second) = _numbered(starts, first[0], second)
    pixel = jnp.arange(side * side, dtype=jnp.int32).reshape(side, side)
    n_contacts = n_first + n_second

    def within(runs: int, edges: int) -> Zones:
        head = _listed(pixel, starts, run, jnp.zeros(runs, jnp.int32))
        # A contact as its pixel and the column, 0 … 2, of the one it touches above.
        contact = _listed(4 * pixel + first[1], first[0], place, jnp.zeros(edges, jnp.int32))
        contact = _listed(4 * pixel + 2, second, second_place + n_first, contact)
        lower = jnp.where(jnp.arange(edges) < n_contacts, contact // 4, side + 1)
        upper = jnp.where(jnp.arange(edges) < n_contacts, lower - side - 1 + contact % 4, side + 1)
        root = _joined(run.ravel()[lower], run.ravel()[upper], runs)
        used = jnp.arange(runs) < n_runs
        length = jnp.where(used, ahead.ravel()[head].astype(jnp.int32) + 1, 0)
        size = jnp.zeros(runs, jnp.int32).at[root].add(length)
        return _tabulated(level.ravel()[head].astype(jnp.int32), size, side * side, levels)

    if not compact:
        return within(side * side, 2 * side * side)
    room = side * side // _COMPACT
    fits = (n_runs <= room) & (n_contacts <= room)
    return jax.lax.cond(
        fits, lambda: within(room, room), lambda: within(side * side, 2 * side * side)
    )


def _starts_and_contacts(
    inside: jax.Array, links: Sequence[jax.Array]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array], jax.Array]:
    """Where runs start, and the contacts of pixels with a run of the row above.

    A pair of runs has one contact, where it first touches. First kind: above or above left, with the column 0 (left)
    or 1 of the pixel touched; second kind: above right.
    """
    right, below, below_right, below_left = links
    left, above = neighbour(right, (0, -1)), neighbour(below, (-1, 0))
    above_left, above_right = neighbour(below_right, (-1, -1)), neighbour(below_left, (-1, 1))
    straight = above & ~(left & neighbour(above, (0, -1)))
    first = straight | (above_left & ~above & ~left)
    return inside & ~left, (first, straight.astype(jnp.int32)), above_right & ~above & ~right


def _numbered(*flags: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
    """The place of each set flag among the set ones in reading order, and how many are set, for three arrays.

    The place of an unset flag is that of the last set one before it, −1 if there is none.
    """
    # Three counts in one sum: a row holds fewer than 1024 of each.
    shifts = (0, 10, 20)
    along = sums_along_rows(
        sum(
            (f.astype(jnp.int32) << s for f, s in zip(flags, shifts, strict=True)),
            jnp.zeros((), jnp.int32),
        )
    )
    places, totals = [], []
    for shift in shifts:
        part = (along >> shift) & 1023
        through = jnp.cumsum(part[:, -1])
        places.append(part + (through - part[:, -1])[:, None] - 1)
        totals.append(through[-1])
    return places, totals


def sums_along_rows(x: jax.Array) -> jax.Array:
    """Running sums of int32 [y x], by doubling."""
    column = jnp.arange(x.shape[1])
    step = 1
    while step < x.shape[1]:
        x = x + jnp.where(column >= step, jnp.roll(x, step, 1), 0)
        step *= 2
    return x


def _listed(value: jax.Array, flags: jax.Array, place: jax.Array, into: jax.Array) -> jax.Array:
    """`into` with the flagged values at their places; what lies behind its end is not kept."""
    index = jnp.where(flags, place, len(into)).ravel()
    return into.at[index].set(value.ravel(), mode="drop")


def _joined(a: jax.Array, b: jax.Array, n: int) -> jax.Array:
    """The smallest node of each node's component, for the edges a–b: int32 [n].

    Labels only fall and never leave the component. Once the ends of every edge agree, a component has one label,
    and its smallest node has kept its own.
    """

    def turn(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        label, x, y = state
        label = label.at[jnp.maximum(x, y)].min(jnp.minimum(x, y))
        for _ in range(_JUMPS):
            label = label[label]
        return label, label[a], label[b]

    # "+ 0 * a": under shard_map what a loop carries must vary over the devices from the start.
    start = (jnp.arange(n, dtype=jnp.int32) + 0 * a[0], a, b)
    return jax.lax.while_loop(lambda state: (state[1] != state[2]).any(), turn, start)[0]


def _tabulated(level: jax.Array, size: jax.Array, pixels: int, levels: int) -> Zones:
    """level, size: int32 [n], size 0 where there is no zone. pixels: s²."""
    small = jnp.where((size > 0) & (size <= SMALL), (level - 1) * SMALL + size - 1, levels * SMALL)
    table = jnp.zeros(levels * SMALL + 1, jnp.int32).at[small].add(1)[:-1]
    room = most_large(pixels)
    large = size > SMALL
    width = 64
    rows = jnp.pad(large, (0, -len(large) % width)).reshape(-1, width)
    along = sums_along_rows(rows.astype(jnp.int32))
    through = jnp.cumsum(along[:, -1])
    rank = (along + (through - along[:, -1])[:, None]).ravel()[: len(large)] - 1
    place = jnp.where(large, rank, room)
    empty = jnp.zeros(room, jnp.int32)
    return Zones(
        small=table.reshape(levels, SMALL),
        level=empty.at[place].set(level, mode="drop"),
        size=empty.at[place].set(size, mode="drop"),
    )
