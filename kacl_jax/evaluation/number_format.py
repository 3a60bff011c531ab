"""Text of numbers in the terminal, in tables and in reports: .500, [.400, .600], +.020, p < .001."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def short(value: float | None, digits: int = 3) -> str:
    """.500 for 0.5, without the leading zero because columns are narrow; – for None and NaN."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    sign = "−" if value < 0 and float(text) else ""
    return sign + (text.removeprefix("0") if digits else text)


def signed(value: float | None, digits: int = 3) -> str:
    """+.500 for 0.5."""
    return f"{'+' if value is not None and value > 0 else ''}{short(value, digits)}"


def interval(
    ends: Sequence[float] | None, digits: int = 3, write: Callable[[float, int], str] = short
) -> str:
    """[.400, .600], each end formatted by `write`; the empty string for None."""
    return "" if ends is None else f"[{write(ends[0], digits)}, {write(ends[1], digits)}]"


def p_value(p: float | None) -> str:
    """A p-value with three digits, or < .001."""
    return "< .001" if p is not None and p < 0.001 else short(p)


def threshold(t: float) -> str:
    """.1 for 0.1, .25 for 0.25."""
    return f"{t:g}".removeprefix("0")
