"""The 4-connected component of a mask that holds one of its pixels, on the device.

As in `radiomics.counts.zones`, the runs of all masks are the nodes of one graph, and the contacts of runs with those of
the row above are its edges.

Axes: b masks · h w pixels · e contacts.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from kacl_jax.radiomics.counts import bitmap
from kacl_jax.radiomics.counts.bitmap import Bitmap
from kacl_jax.radiomics.counts.components import smallest_nodes

_RUNS_PER_ROW = 8  # a thresholded map of 7×7 cells has four or fewer


def peak_component(hot: Bool[Array, "b h w"], peak: Int32[Array, "b"]) -> Bool[Array, "b h w"]:
    """The component of each mask that holds its pixel number `peak`; empty if the mask does not hold it."""
    _, h, w = hot.shape
    starts, contacts = jax.vmap(_starts_and_contacts)(hot)

    def find_with_room(n: int, hot: Any, peak: Any, starts: Any, contacts: Any) -> Array:
        edges = functools.partial(_edges, n=n)
        lower, upper = jax.vmap(edges)(starts, contacts)
        first_run = n * jnp.arange(len(hot), dtype=jnp.int32)[:, None]
        root = smallest_nodes(
            (first_run + lower).ravel(), (first_run + upper).ravel(), len(hot) * n
        )
        return jax.vmap(_paint)(hot, peak, starts, root.reshape(len(hot), n))

    def find_one(mask: tuple[Any, ...]) -> Array:
        return find_with_room(h * w, *jax.tree.map(lambda x: x[None], mask))[0]

    room = _RUNS_PER_ROW * h
    fits = (starts.total <= room) & (contacts.total <= room)
    masks = (hot, peak, starts, contacts)
    return jax.lax.cond(
        fits.all(), lambda: find_with_room(room, *masks), lambda: jax.lax.map(find_one, masks)
    )


def _starts_and_contacts(hot: Bool[Array, "h w"]) -> tuple[Bitmap, Bitmap]:
    """Where runs start, and the first pixel of each contact of two runs, in the lower one."""
    padded = jnp.pad(hot, ((1, 0), (1, 0)))
    left, above, above_left = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    return bitmap.pack(hot & ~left), bitmap.pack(hot & above & ~(left & above_left))


def _edges(
    starts: Bitmap, contacts: Bitmap, *, n: int
) -> tuple[Int32[Array, "{n}"], Int32[Array, "{n}"]]:
    """The numbers of the lower and the upper run of each contact; 0 and 0 in unused places."""
    row, column = bitmap.places(contacts, n)
    is_contact = jnp.arange(n, dtype=jnp.int32) < contacts.total
    above = bitmap.number(starts, jnp.maximum(row - 1, 0), column)
    return (
        jnp.where(is_contact, bitmap.number(starts, row, column), 0),
        jnp.where(is_contact, above, 0),
    )


def _paint(
    hot: Bool[Array, "h w"], peak: Int32[Array, ""], starts: Bitmap, root: Int32[Array, "n"]
) -> Bool[Array, "h w"]:
    """The hot pixels whose run has the root of the peak's run."""
    h, w = hot.shape
    place = jnp.arange(h * w, dtype=jnp.int32)
    run = jnp.maximum(bitmap.number(starts, place // w, place % w), 0)
    roots = bitmap.take(root, run)
    of_peak = (roots == roots[peak]) & hot.ravel()[peak]
    return hot & of_peak.reshape(h, w)
