"""Collects the mistakes in a data root, so that one message can list all of them."""

from __future__ import annotations

from dataclasses import dataclass

_MAX_EXAMPLES = 3


@dataclass(frozen=True)
class Problem:
    """One kind of mistake in one file: what is wrong, the first examples, how often it occurs, how to correct it."""

    file: str
    what: str
    fix: str
    examples: tuple[str, ...] = ()
    count: int = 1

    def __str__(self) -> str:
        examples = ", ".join(self.examples)
        more = f" and {self.count - len(self.examples)} more" if examples else ""
        more = more if self.count > len(self.examples) else ""
        text = (
            f"{self.file}: {self.what}{': ' if examples else ''}{examples}{more}. Fix: {self.fix}."
        )
        # A terminal obeys control characters.
        return "".join(letter if letter.isprintable() else "?" for letter in text)


class Problems:
    """Collects mistakes. Mistakes of one kind in one file become one Problem with the first few as examples."""

    def __init__(self) -> None:
        self._examples: dict[tuple[str, str, str], list[str]] = {}

    def add(self, file: str, what: str, fix: str, example: str = "") -> None:
        self._examples.setdefault((file, what, fix), []).append(example)

    def all(self) -> list[Problem]:
        return [
            Problem(file, what, fix, tuple(e for e in examples[:_MAX_EXAMPLES] if e), len(examples))
            for (file, what, fix), examples in self._examples.items()
        ]
