"""The findings that NIH names, and how a wrong name of one is corrected."""

from __future__ import annotations

import re
from collections.abc import Sequence

FINDINGS_8 = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration",
    "Mass", "Nodule", "Pneumonia", "Pneumothorax",
)  # fmt: skip
FINDINGS_14 = (
    *FINDINGS_8,
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
NO_FINDING = "No Finding"
UNKNOWN_LABEL = -1

_ALIASES = {"Infiltrate": "Infiltration"}  # the spelling in BBox_List_2017.csv
_NEGATIONS = {"no", "not", "non", "without", "negative", "absent", "free", "denies", "neither"}
_SEPARATORS = re.compile(r"[|;,/&+]")


def finding_of(text: str) -> str:
    """NIH's name of a finding, from the name in a table; a wrong name stays as it is."""
    return _ALIASES.get(text, text)


def how_to_write(label: str, valid: Sequence[str]) -> str:
    """The fix for a cell that is none of the `valid` names.

    A name is proposed only if it means the same for certain: other case, spaces or plural, or one or two wrong letters.
    A negation is never turned into a finding.
    """
    name = _same_name(label, valid)
    if name is not None:
        return f"write {name!r}"
    parts = [part for part in _SEPARATORS.split(label) if part.strip()]
    names = [_same_name(part, valid) for part in parts]
    if len(names) > 1 and all(names):
        cell = "|".join(name for name in names if name)
        if NO_FINDING in valid:
            return f"separate findings by '|': {cell!r}"
        return "give each finding a row of its own"
    if not label:
        no_finding = f"; {NO_FINDING!r} if there is none" if NO_FINDING in valid else ""
        return f"write the finding{no_finding}"
    negated = f"; {NO_FINDING!r} if the image has none of them" if NO_FINDING in valid else ""
    return f"use only {', '.join(name for name in valid if name != NO_FINDING)}{negated}"


def _same_name(text: str, valid: Sequence[str]) -> str | None:
    """The name that `text` is a spelling of."""
    words = re.findall(r"[^\W_]+", text.casefold())
    letters = "".join(words)
    plain = {re.sub(r"[\W_]", "", name.casefold()): name for name in valid}
    if letters in plain:
        return plain[letters]
    if not letters or _NEGATIONS & set(words):
        return None
    most = 2 if len(letters) > 5 else 1
    alike = [name for name in plain if abs(len(name) - len(letters)) <= most]  # no long cell
    near = [name for name in alike if _letters_apart(letters, name) <= most]
    return plain[near[0]] if len(near) == 1 else None


def _letters_apart(a: str, b: str) -> int:
    """Levenshtein's distance: letters to insert, delete or replace."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        above = row
        row = [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != other)))
    return row[-1]
