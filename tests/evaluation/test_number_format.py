"""Text of numbers."""

from __future__ import annotations

import math

import pytest

from kacl_jax.evaluation.number_format import interval, p_value, short, signed, threshold


@pytest.mark.parametrize(
    "value, text, text_with_sign",
    [
        (0.5, "0.500", "+0.500"),
        (-0.0504, "−0.050", "−0.050"),
        (-0.00001, "0.000", "0.000"),
        (0.99999, "1.000", "+1.000"),
        (-12.34, "−12.340", "−12.340"),
        (0.0, "0.000", "0.000"),
        (None, "–", "–"),
        (math.nan, "–", "–"),
    ],
)
def test_a_number(value: float | None, text: str, text_with_sign: str) -> None:
    assert short(value) == text
    assert signed(value) == text_with_sign


def test_both_ends_of_an_interval_are_written_alike() -> None:
    assert interval((-0.08, 0.02)) == "[−0.080, 0.020]"
    assert interval((-0.08, 0.02), write=signed) == "[−0.080, +0.020]"
    assert interval((0.25, 1.0), 1) == "[0.2, 1.0]"
    assert interval(None) == ""


def test_p_values_thresholds_and_digits() -> None:
    assert (p_value(0.0004), p_value(0.0404), p_value(None)) == ("< 0.001", "0.040", "–")
    assert (threshold(0.1), threshold(0.25), threshold(1)) == ("0.1", "0.25", "1")
    assert (short(12.34, 0), short(0.4, 0)) == ("12", "0")
