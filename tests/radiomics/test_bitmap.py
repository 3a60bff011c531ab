"""Flags as bits: every set flag has its place and its number, on every device."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from kacl_jax.radiomics.counts import bitmap


@pytest.mark.parametrize("columns", [5, 32, 70])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_places_and_numbers_are_numpys(columns: int, share: float) -> None:
    flags = np.random.default_rng(0).random((9, columns)) < share
    packed, n = bitmap.pack(jnp.asarray(flags)), int(flags.sum())
    assert int(packed.total) == n
    words = -(-columns // 32)
    rows, found_columns = np.nonzero(flags)
    for places in (bitmap.places_by_scatter, bitmap.places_by_search):
        # Room for one more than there are, and for fewer.
        for room in (n + 1, max(n - 3, 0)):
            place = np.asarray(places(packed, n=room))[:n]
            np.testing.assert_array_equal(place, (rows * words * 32 + found_columns)[: len(place)])
    row, column = np.indices(flags.shape).reshape(2, -1)
    number = bitmap.number(packed, jnp.asarray(row), jnp.asarray(column))
    np.testing.assert_array_equal(number, flags.ravel().cumsum() - 1)
