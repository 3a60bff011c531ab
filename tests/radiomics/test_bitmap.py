"""Flags as bits: every set flag has its place and its number, on every device."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from kacl_jax.radiomics.counts import bitmap

pack, number = jax.jit(bitmap.pack), jax.jit(bitmap.number)
by_scatter, by_search = (
    functools.partial(jax.jit, static_argnames="n")(places)
    for places in (bitmap.places_by_scatter, bitmap.places_by_search)
)


@pytest.mark.parametrize("columns", [5, 32, 70])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_places_and_numbers_are_numpys(columns: int, share: float) -> None:
    flags = np.random.default_rng(0).random((9, columns)) < share
    packed, n = pack(flags), int(flags.sum())
    assert int(packed.total) == n
    words = -(-columns // 32)
    rows, found_columns = np.nonzero(flags)
    for places in (by_scatter, by_search):
        # Room for more than there are, and (but for no flag at all) for fewer.
        for room in (flags.size + 1, 3):
            place = np.asarray(places(packed, n=room))[:n]
            np.testing.assert_array_equal(place, (rows * words * 32 + found_columns)[: len(place)])
    row, column = np.indices(flags.shape).reshape(2, -1)
    numbers = number(packed, row.astype(np.int32), column.astype(np.int32))
    np.testing.assert_array_equal(numbers, flags.ravel().cumsum() - 1)


def test_places_stay_cheap_where_a_gpu_must_be_deterministic() -> None:
    """XLA sorts the indices of a scatter then, unless it is told that they are distinct."""
    lowered = by_scatter.lower(pack(np.ones((9, 40), bool)), n=5)
    assert "unique_indices = true" in lowered.as_text()
