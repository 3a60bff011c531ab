"""Which values a config key may have: the test and its words are made together, so they cannot disagree."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Allowed:
    """A rule for the values of one key. `test` gets only values of the key's type."""

    words: str  # they continue the sentence 'it must be …'; '' where the type is the only rule
    test: Callable[[Any], bool]


def anything(words: str = "") -> Allowed:
    """Every value of the key's type. `words` say what a text may name."""
    return Allowed(words, lambda value: True)


def one_of(*values: Any) -> Allowed:
    """One of these values."""
    return Allowed(f"one of {', '.join(map(repr, values))}", lambda value: value in values)


def some_of(names: Collection[str]) -> Allowed:
    """A text of one or more names with commas between them."""
    return Allowed(
        f"one or more of {', '.join(names)}, with commas between",
        lambda value: set(value.split(",")) <= set(names),
    )


def interval(text: str, unit: str = "") -> Allowed:
    """A number in an interval that is written as in mathematics: '[0, 1)' contains 0 but not 1."""
    low, high = map(float, text[1:-1].split(","))
    is_above = {"[": operator.ge, "(": operator.gt}[text[0]]
    is_below = {"]": operator.le, ")": operator.lt}[text[-1]]
    words = f"in {text} {unit}".rstrip().replace("-", "−")
    return Allowed(words, lambda value: is_above(value, low) and is_below(value, high))


def multiple_of(step: int, smallest: int, largest: int) -> Allowed:
    """A multiple of `step`, both ends included."""
    return Allowed(
        f"a multiple of {step} from {smallest} to {largest}",
        lambda value: smallest <= value <= largest and value % step == 0,
    )


def _is_findings(value: Any) -> bool:
    if isinstance(value, str):
        return all(name == name.strip() != "" for name in value.split(","))
    return type(value) is int and value in (8, 14)


findings_rule = Allowed("8, 14, 'all', or names with commas between", _is_findings)
