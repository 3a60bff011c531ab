"""Zones of one grey level (8-connected), as the grey level size zone matrix needs them.

Zones are the connected components of a graph. Its nodes are horizontal runs of one level, its edges the contacts of
runs with runs of the row above. Each label is lowered by hooking (to the smaller label of an edge) and pointer jumping
until both ends of every edge have the same label.

Axes: s side of the tile · g grey levels · z large zones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int16, Int32, Shaped

SMALL_LIMIT = (
    256  # zones up to this size are counted in a table; the larger ones, which are few, are listed
)
_PIXELS_PER_RUN = 6  # an X-ray region rarely has more than s² / 6 runs
_JUMPS_PER_STEP = 3


class Zones(NamedTuple):
    """The zones of one region.

    small: their number by level and size − 1, up to SMALL_LIMIT. large_level, large_size: level and size of each larger
    zone; 0 in unused places.
    """

    small: Int32[Array, "g 256"]
    large_level: Int32[Array, "z"]
    large_size: Int32[Array, "z"]


def max_large_zones(pixels: int) -> int:
    """How many zones larger than SMALL_LIMIT a tile of that many pixels can have, plus one spare place."""
    return pixels // (SMALL_LIMIT + 1) + 1


def neighbour(x: Shaped[Array, "s s"], offset: tuple[int, int]) -> Shaped[Array, "s s"]:
    """x at (y + dy, x + dx) for each pixel of a tile; the values that wrap around come from its empty rim."""
    return jnp.roll(x, (-offset[0], -offset[1]), (0, 1))


def find_zones(
    level: Int16[Array, "s s"],
    links: Sequence[Bool[Array, "s s"]],
    ahead: Int16[Array, "s s"],
    *,
    n_levels: int,
    compact: bool,
) -> Zones:
    """The zones of one region.

    Args:
      level: 0 outside.
      links: same level as the right, lower, lower right, lower left neighbour.
      ahead: number of consecutive links to the right.
      n_levels: g.
      compact: use smaller arrays if the region's runs fit in them, decided at run time.
    """
    side = len(level)
    starts, first, second = _starts_and_contacts(level > 0, links)
    (run_number, contact_number, second_contact_number), (n_runs, n_first, n_second) = (
        _number_flags(starts, first[0], second)
    )
    pixel = jnp.arange(side * side, dtype=jnp.int32).reshape(side, side)
    n_contacts = n_first + n_second

    def find_with_room(max_runs: int, max_contacts: int) -> Zones:
        run_pixel = _write_flagged(pixel, starts, run_number, jnp.zeros(max_runs, jnp.int32))
        # A contact is 4 · pixel + column, 0 … 2, of the touched pixel in the row above.
        contact = _write_flagged(
            4 * pixel + first[1], first[0], contact_number, jnp.zeros(max_contacts, jnp.int32)
        )
        contact = _write_flagged(4 * pixel + 2, second, second_contact_number + n_first, contact)
        lower = jnp.where(jnp.arange(max_contacts) < n_contacts, contact // 4, side + 1)
        upper = jnp.where(
            jnp.arange(max_contacts) < n_contacts, lower - side - 1 + contact % 4, side + 1
        )
        root = _smallest_nodes(run_number.ravel()[lower], run_number.ravel()[upper], max_runs)
        is_run = jnp.arange(max_runs) < n_runs
        length = jnp.where(is_run, ahead.ravel()[run_pixel].astype(jnp.int32) + 1, 0)
        size = jnp.zeros(max_runs, jnp.int32).at[root].add(length)
        return _tabulate(level.ravel()[run_pixel].astype(jnp.int32), size, side * side, n_levels)

    if not compact:
        return find_with_room(side * side, 2 * side * side)
    room = side * side // _PIXELS_PER_RUN
    fits = (n_runs <= room) & (n_contacts <= room)
    return jax.lax.cond(
        fits,
        lambda: find_with_room(room, room),
        lambda: find_with_room(side * side, 2 * side * side),
    )


def _starts_and_contacts(
    inside: Bool[Array, "s s"], links: Sequence[Bool[Array, "s s"]]
) -> tuple[Bool[Array, "s s"], tuple[Bool[Array, "s s"], Int32[Array, "s s"]], Bool[Array, "s s"]]:
    """Starts of runs, and the contacts of pixels with a run of the row above.

    A pair of runs has one contact, at the first pixel that touches. First kind: above or above left, with the column
    0 (left) or 1 of the touched pixel. Second kind: above right.
    """
    right, below, below_right, below_left = links
    left, above = neighbour(right, (0, -1)), neighbour(below, (-1, 0))
    above_left, above_right = neighbour(below_right, (-1, -1)), neighbour(below_left, (-1, 1))
    from_above = above & ~(left & neighbour(above, (0, -1)))
    first = from_above | (above_left & ~above & ~left)
    return inside & ~left, (first, from_above.astype(jnp.int32)), above_right & ~above & ~right


def _number_flags(
    *flags: Bool[Array, "s s"],
) -> tuple[list[Int32[Array, "s s"]], list[Int32[Array, ""]]]:
    """For three arrays: the number of each set flag, 0, 1, … in reading order, and how many are set.

    An unset flag has the number of the last set one before it, −1 if there is none.
    """
    # One sum holds three counts of 10 bits: a row has fewer than 1024 set flags of each array.
    shifts = (0, 10, 20)
    packed_counts = running_row_sums(
        sum(
            (flag.astype(jnp.int32) << shift for flag, shift in zip(flags, shifts, strict=True)),
            jnp.zeros((), jnp.int32),
        )
    )
    numbers, totals = [], []
    for shift in shifts:
        row_counts = (packed_counts >> shift) & 1023
        row_ends = jnp.cumsum(row_counts[:, -1])
        numbers.append(row_counts + (row_ends - row_counts[:, -1])[:, None] - 1)
        totals.append(row_ends[-1])
    return numbers, totals


def running_row_sums(x: Int32[Array, "h w"]) -> Int32[Array, "h w"]:
    """Running sums along the rows, by doubling."""
    column = jnp.arange(x.shape[1])
    step = 1
    while step < x.shape[1]:
        x = x + jnp.where(column >= step, jnp.roll(x, step, 1), 0)
        step *= 2
    return x


def _write_flagged(
    value: Int32[Array, "s s"],
    flags: Bool[Array, "s s"],
    place: Int32[Array, "s s"],
    into: Int32[Array, "n"],
) -> Int32[Array, "n"]:
    """`into` with the flagged values written to their places; places beyond its end are dropped."""
    index = jnp.where(flags, place, len(into)).ravel()
    return into.at[index].set(value.ravel(), mode="drop")


def _smallest_nodes(
    a: Int32[Array, "edges"], b: Int32[Array, "edges"], n: int
) -> Int32[Array, "{n}"]:
    """The smallest node of each node's component, for the edges a–b.

    A label only decreases and always names a node of the same component. When both ends of every edge have the same
    label, each component has a single label: that of its smallest node, which never changed.
    """

    def hook_and_jump(
        state: tuple[Int32[Array, "n"], Int32[Array, "edges"], Int32[Array, "edges"]],
    ) -> tuple[Int32[Array, "n"], Int32[Array, "edges"], Int32[Array, "edges"]]:
        label, label_a, label_b = state
        label = label.at[jnp.maximum(label_a, label_b)].min(jnp.minimum(label_a, label_b))
        for _ in range(_JUMPS_PER_STEP):
            label = label[label]
        return label, label[a], label[b]

    # "+ 0 * a": under shard_map the loop state must vary over the devices from the start.
    start = (jnp.arange(n, dtype=jnp.int32) + 0 * a[0], a, b)
    return jax.lax.while_loop(lambda state: (state[1] != state[2]).any(), hook_and_jump, start)[0]


def _tabulate(
    level: Int32[Array, "n"], size: Int32[Array, "n"], pixels: int, n_levels: int
) -> Zones:
    """size: 0 where there is no zone. pixels: s²."""
    table_index = jnp.where(
        (size > 0) & (size <= SMALL_LIMIT),
        (level - 1) * SMALL_LIMIT + size - 1,
        n_levels * SMALL_LIMIT,
    )
    table = jnp.zeros(n_levels * SMALL_LIMIT + 1, jnp.int32).at[table_index].add(1)[:-1]
    capacity = max_large_zones(pixels)
    is_large = size > SMALL_LIMIT
    width = 64
    rows = jnp.pad(is_large, (0, -len(is_large) % width)).reshape(-1, width)
    row_sums = running_row_sums(rows.astype(jnp.int32))
    row_ends = jnp.cumsum(row_sums[:, -1])
    rank = (row_sums + (row_ends - row_sums[:, -1])[:, None]).ravel()[: len(is_large)] - 1
    place = jnp.where(is_large, rank, capacity)
    empty = jnp.zeros(capacity, jnp.int32)
    return Zones(
        small=table.reshape(n_levels, SMALL_LIMIT),
        large_level=empty.at[place].set(level, mode="drop"),
        large_size=empty.at[place].set(size, mode="drop"),
    )
