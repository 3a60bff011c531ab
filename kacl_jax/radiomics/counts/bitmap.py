"""Rows of flags as bits: where the set flags are, in reading order, without an array as large as the flags.

Axes: r rows · c columns · w words of a row · n places.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Shaped, UInt32

_BITS = 32


class Bitmap(NamedTuple):
    """words: bit b of word j is the flag in column 32 j + b. ends: set flags up to and with each word."""

    words: UInt32[Array, "r w"]
    ends: Int32[Array, "r w"]

    @property
    def total(self) -> Int32[Array, "*n"]:
        """How many flags are set."""
        return self.ends[..., -1, -1]


def pack(flags: Bool[Array, "r c"]) -> Bitmap:
    """The flags as bits."""
    padded = jnp.pad(flags, ((0, 0), (0, -flags.shape[1] % _BITS)))
    bits = padded.reshape(len(flags), -1, _BITS).astype(jnp.uint32)
    words = (bits << jnp.arange(_BITS, dtype=jnp.uint32)).sum(2, dtype=jnp.uint32)
    ends = jnp.cumsum(_count_bits(words), axis=1, dtype=jnp.int32)
    row_ends = jnp.cumsum(ends[:, -1], dtype=jnp.int32)
    return Bitmap(words, ends + (row_ends - ends[:, -1])[:, None])


def places(bitmap: Bitmap, n: int) -> tuple[Int32[Array, "{n}"], Int32[Array, "{n}"]]:
    """Row and column of the first n set flags; any place beyond the last one."""
    place = jax.lax.platform_dependent(
        bitmap,
        tpu=functools.partial(places_by_search, n=n),
        default=functools.partial(places_by_scatter, n=n),
    )
    # The barrier keeps XLA from doing the work once more for each use of the result.
    place = jax.lax.optimization_barrier(place)
    columns = bitmap.words.shape[1] * _BITS
    return place // columns, place % columns


def places_by_scatter(bitmap: Bitmap, *, n: int) -> Int32[Array, "{n}"]:
    """`places`, counted over the bits of all words: each set bit writes its place."""
    shifted = bitmap.words.ravel()[:, None] >> jnp.arange(_BITS, dtype=jnp.uint32)
    index = bitmap.ends.ravel()[:, None] - _count_bits(shifted)
    is_set, place = (shifted & 1 == 1).ravel(), jnp.arange(shifted.size, dtype=jnp.int32)
    # Distinct indices, also of what is dropped: else XLA sorts them when a GPU's operations must be deterministic.
    index = jnp.where(is_set, index.ravel(), n + place)
    return jnp.zeros(n, jnp.int32).at[index].set(place, mode="drop", unique_indices=True)


def places_by_search(bitmap: Bitmap, *, n: int) -> Int32[Array, "{n}"]:
    """`places`, counted over the bits of all words: each flag looks for its word, and in it for its bit."""
    k, ends = jnp.arange(n, dtype=jnp.int32), bitmap.ends.ravel()
    word = jnp.minimum((ends <= k[:, None]).sum(1, dtype=jnp.int32), len(ends) - 1)
    word = jax.lax.optimization_barrier(word)
    bits = take(bitmap.words.ravel(), word)
    return word * _BITS + _place_of_bit(bits, k - take(ends, word) + _count_bits(bits))


def number(bitmap: Bitmap, row: Int32[Array, "n"], column: Int32[Array, "n"]) -> Int32[Array, "n"]:
    """The number of the last set flag up to each place, counted from 0; −1 if there is none."""
    word = row * bitmap.words.shape[1] + column // _BITS
    up_to = (jnp.uint32(2) << (column % _BITS).astype(jnp.uint32)) - jnp.uint32(1)
    after = _count_bits(take(bitmap.words.ravel(), word) & ~up_to)
    return take(bitmap.ends.ravel(), word) - after - 1


def _place_of_bit(bits: UInt32[Array, "n"], k: Int32[Array, "n"]) -> Int32[Array, "n"]:
    """The place of the set bit number k, counted from 0."""
    place = jnp.zeros_like(k)
    for half in (16, 8, 4, 2, 1):
        in_lower = _count_bits(bits & jnp.uint32((1 << half) - 1))
        is_upper = in_lower <= k
        place += jnp.where(is_upper, half, 0)
        k -= jnp.where(is_upper, in_lower, 0)
        bits = jnp.where(is_upper, bits >> jnp.uint32(half), bits)
    return place


def _count_bits(words: UInt32[Array, "*shape"]) -> Int32[Array, "*shape"]:
    return jax.lax.population_count(words).astype(jnp.int32)


def take(x: Shaped[Array, "m"], index: Int32[Array, "*n"]) -> Shaped[Array, "*n"]:
    """x at indices that are all inside of it, which XLA need not check."""
    return x.at[index].get(mode="promise_in_bounds")
