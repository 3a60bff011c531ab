"""Zones of one grey level (8-connected), as the grey level size zone matrix needs them.

Zones are the connected components of a graph. Its nodes are horizontal runs of one level, its edges the contacts of
runs with runs of the row above.

Axes: n regions · s side of the tile · m = s − 2, the side without the rim · g grey levels · z large zones.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, UInt8

from kacl_jax.radiomics.counts import bitmap
from kacl_jax.radiomics.counts.bincount import Formulation, bincount
from kacl_jax.radiomics.counts.bitmap import Bitmap
from kacl_jax.radiomics.counts.components import smallest_nodes

SMALL_LIMIT = (
    256  # zones up to this size are counted in a table; the larger ones, which are few, are listed
)
# With bins of 25, whole X-rays of 224 px have 6,200 runs (median) to 10,000 (most of 300), of 51,076 pixels. If one
# region does not fit, all that are counted at once are counted one after the other.
_PIXELS_PER_RUN, _PIXELS_PER_RUN_OF_MANY = 6, 4


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


class _Graph(NamedTuple):
    """The runs and contacts of a region, packed.

    level: without the rim. starts, ends: of runs. contacts: of each pixel with a run of the row above, once for each
    pair of runs; first those with the pixel above, then with that to its left, then with that to its right.
    """

    level: UInt8[Array, "m m"]
    starts: Bitmap
    ends: Bitmap
    contacts: Bitmap


def find_zones(level: UInt8[Array, "n s s"], *, n_levels: int, formulation: Formulation) -> Zones:
    """The zones of each region.

    Args:
      level: 0 outside and on the rim.
      n_levels: g.
      formulation: see `matrices`.
    """
    graphs = jax.vmap(_graph)(level)
    pixels = level.shape[1] ** 2
    tabulate = functools.partial(
        _tabulate, n_large=max_large_zones(pixels), n_levels=n_levels, formulation=formulation
    )

    def find_with_room(graphs: _Graph, max_runs: int, max_contacts: int) -> Zones:
        nodes = functools.partial(_nodes_and_edges, max_runs=max_runs, max_contacts=max_contacts)
        run_level, length, a, b = jax.vmap(nodes)(graphs)
        # The regions' graphs are one: the number of a run is its place in the runs of all regions.
        first_run = max_runs * jnp.arange(len(length), dtype=jnp.int32)[:, None]
        a, b = (first_run + a).ravel(), (first_run + b).ravel()
        root = smallest_nodes(a, b, length.size)
        size = jnp.zeros(length.size, jnp.int32).at[root].add(length.ravel())
        return jax.vmap(tabulate)(run_level, size.reshape(length.shape))

    def find_one(graph: _Graph) -> Zones:
        alone = jax.tree.map(lambda x: x[None], graph)
        return jax.tree.map(lambda x: x[0], find_with_room(alone, pixels, 2 * pixels))

    # Several regions at once have room for the one with the most runs.
    room = pixels // (_PIXELS_PER_RUN if len(level) == 1 else _PIXELS_PER_RUN_OF_MANY)
    fits = (graphs.starts.total <= room) & (graphs.contacts.total <= room)
    return jax.lax.cond(
        fits.all(),
        lambda: find_with_room(graphs, room, room),
        lambda: jax.lax.map(find_one, graphs),
    )


def _graph(level: UInt8[Array, "s s"]) -> _Graph:
    own = level[1:-1, 1:-1]
    inside = own > 0

    def same_as(dy: int, dx: int) -> Bool[Array, "m m"]:
        near = level[1 + dy : len(level) - 1 + dy, 1 + dx : len(level) - 1 + dx]
        return inside & (near == own)

    left, right = same_as(0, -1), same_as(0, 1)
    above_left, above, above_right = (same_as(-1, dx) for dx in (-1, 0, 1))
    contacts = (
        above & ~(left & above_left),
        above_left & ~above & ~left,
        above_right & ~above & ~right,
    )
    return _Graph(
        own,
        bitmap.pack(inside & ~left),
        bitmap.pack(inside & ~right),
        bitmap.pack(jnp.concatenate(contacts)),
    )


def _nodes_and_edges(
    graph: _Graph, *, max_runs: int, max_contacts: int
) -> tuple[
    Int32[Array, "{max_runs}"],
    Int32[Array, "{max_runs}"],
    Int32[Array, "{max_contacts}"],
    Int32[Array, "{max_contacts}"],
]:
    """(level of each run; its length, 0 where there is no run; the lower and the upper run of each contact)."""
    side = len(graph.level)
    row, column = bitmap.places(graph.starts, max_runs)
    _, last_column = bitmap.places(graph.ends, max_runs)
    is_run = jnp.arange(max_runs, dtype=jnp.int32) < graph.starts.total
    level = bitmap.take(graph.level.ravel(), row * side + column).astype(jnp.int32)
    contact_row, x = bitmap.places(graph.contacts, max_contacts)
    kind, y = contact_row // side, contact_row % side
    lower = bitmap.number(graph.starts, y, x)
    x_above = x + (kind == 2) - (kind == 1)
    upper = bitmap.number(graph.starts, jnp.maximum(y - 1, 0), jnp.clip(x_above, 0, side - 1))
    is_contact = jnp.arange(max_contacts, dtype=jnp.int32) < graph.contacts.total
    return (
        level,
        jnp.where(is_run, last_column - column + 1, 0),
        jnp.where(is_contact, lower, 0),
        jnp.where(is_contact, upper, 0),
    )


def _tabulate(
    level: Int32[Array, "k"],
    size: Int32[Array, "k"],
    *,
    n_large: int,
    n_levels: int,
    formulation: Formulation,
) -> Zones:
    """size: 0 where there is no zone. n_large: z."""
    small = bincount(
        (level - 1) * SMALL_LIMIT + size - 1,
        (size > 0) & (size <= SMALL_LIMIT),
        n_levels * SMALL_LIMIT,
        formulation,
        few=True,
    )
    is_large = size > SMALL_LIMIT
    columns = round(len(size) ** 0.5)
    rows = jnp.pad(is_large, (0, -len(size) % columns)).reshape(-1, columns)
    packed = bitmap.pack(rows)
    row, column = bitmap.places(packed, n_large)
    place = jnp.minimum(row * columns + column, len(size) - 1)
    used = jnp.arange(n_large, dtype=jnp.int32) < packed.total
    return Zones(
        small=small.reshape(n_levels, SMALL_LIMIT),
        large_level=jnp.where(used, bitmap.take(level, place), 0),
        large_size=jnp.where(used, bitmap.take(size, place), 0),
    )
