"""Names that may stand in a table: a spreadsheet runs some as formulas, and a terminal obeys control characters."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def objection(name: str) -> str | None:
    """Why a name may not stand in a table, as one clause; None for a good name."""
    if name.startswith(("=", "+", "@")):
        return f"begins with {name[0]!r}, so that a spreadsheet would run it as a formula"
    if _CONTROL.search(name):
        return "holds a control character"
    return None
