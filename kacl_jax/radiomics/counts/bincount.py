"""Counting integers, in the form that suits the device. All counts are exact, so each form gives the same bits."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Bool, Int, Int32, Integer

# scatter: one addition per integer. matmul: the product of two one-hot matrices, which a TPU fuses with it. compare:
# one comparison per integer and bin, without an array of them.
Formulation = Literal["scatter", "matmul", "compare"]

_EXTRA_BINS = 16
_CHUNK = 16384


def bincount(
    index: Int[Array, "*shape"],
    used: Bool[Array, "*shape"],
    length: int,
    formulation: Formulation,
    weight: Int32[Array, "*shape"] | None = None,
    *,
    few: bool = False,
) -> Int32[Array, "{length}"]:
    """How often each of 0 … length − 1 occurs in `index` where `used`.

    weight: ints in 0 … 4095 to add instead of 1. Each sum of weight // 64 and of weight % 64 must stay below 2²⁴.
    few: few entries are used, so that 'compare' adds these instead of comparing all.
    """
    index, used = index.ravel(), used.ravel()
    if formulation == "matmul":
        return _by_product(index, used, length, weight)
    if formulation == "compare" and not few:
        # The barrier keeps the computation of the index out of the comparison with every bin.
        dtype = jnp.uint8 if length < 256 else jnp.int16
        index = jax.lax.optimization_barrier(jnp.where(used, index, length).astype(dtype))
        is_bin = _chunks(index, length) == jnp.arange(length, dtype=dtype)[:, None, None]
        increments = 1 if weight is None else _chunks(weight.ravel(), 0)
        return jnp.where(is_bin, increments, 0).sum(2, dtype=jnp.int32).sum(1, dtype=jnp.int32)
    increments = jnp.ones((), jnp.int32) if weight is None else weight.ravel()
    if formulation == "compare":
        index = jnp.where(used, index, length)
        return jnp.zeros(length, jnp.int32).at[index].add(increments, mode="drop")
    # Unused entries are spread over several extra bins, because additions to a single bin wait for each other.
    extra_bins = length + jnp.arange(len(index), dtype=jnp.int32) % _EXTRA_BINS
    counts = jnp.zeros(length + _EXTRA_BINS, jnp.int32)
    return counts.at[jnp.where(used, index, extra_bins)].add(increments)[:length]


def _chunks(x: Integer[Array, "k"], fill: int) -> Integer[Array, "chunks size"]:
    """x in equal parts that XLA adds up in one kernel on a GPU."""
    n = -(-len(x) // _CHUNK)
    return jnp.pad(x, (0, -len(x) % n), constant_values=fill).reshape(n, -1)


def _by_product(
    index: Int[Array, "k"], used: Bool[Array, "k"], length: int, weight: Int32[Array, "..."] | None
) -> Int32[Array, "{length}"]:
    # A power of two, because a division is slow.
    bits = (length - 1).bit_length() // 2
    height = ((length - 1) >> bits) + 1
    high = _one_hot(jnp.where(used, index >> bits, height), height)
    low = _one_hot(index & ((1 << bits) - 1), 1 << bits)
    if weight is None:
        return _product(high, low).ravel()[:length]
    # bfloat16 has 8 significant bits, so the weight is split into two parts.
    weight = weight.ravel()[:, None]
    parts = [_product(high, low * part.astype(low.dtype)) for part in (weight // 64, weight % 64)]
    return (parts[0] * 64 + parts[1]).ravel()[:length]


def _one_hot(index: Int[Array, "k"], n: int) -> BFloat16[Array, "k {n}"]:
    return jax.nn.one_hot(index, n, dtype=jnp.bfloat16)


def _product(
    high: BFloat16[Array, "k high"], low: BFloat16[Array, "k low"]
) -> Int32[Array, "high low"]:
    """Σ over entries, exact because float32 represents all integers below 2²⁴."""
    total = jax.lax.dot_general(
        high, low, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    return total.astype(jnp.int32)
