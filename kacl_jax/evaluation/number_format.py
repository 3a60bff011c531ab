"""Text of numbers in the terminal, in tables and in reports: 0.500, [0.400, 0.600], +0.020, p < 0.001."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def short(value: float | None, digits: int = 3) -> str:
    """0.500 for 0.5; – for None and NaN."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    sign = "−" if value < 0 and float(text) else ""
    return sign + text


def signed(value: float | None, digits: int = 3) -> str:
    """+0.500 for 0.5."""
    return f"{'+' if value is not None and value > 0 else ''}{short(value, digits)}"


def interval(
    ends: Sequence[float] | None, digits: int = 3, write: Callable[[float, int], str] = short
) -> str:
    """[0.400, 0.600], each end formatted by `write`; the empty string for None."""
    return "" if ends is None else f"[{write(ends[0], digits)}, {write(ends[1], digits)}]"


def p_value(p: float | None) -> str:
    """A p-value with three digits, or < 0.001."""
    return "< 0.001" if p is not None and p < 0.001 else short(p)


def threshold(t: float) -> str:
    """0.1, 0.25 and 1, without digits that say nothing."""
    return f"{t:g}"
