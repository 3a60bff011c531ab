"""Patient, age, sex and view, as people write them."""

from __future__ import annotations

import re
from collections import Counter

from kacl_jax.data.problems import Problems

UNKNOWN_AGE = -1
_MAX_AGE = 120  # years; NIH's file of 2017 has ages up to 414
_AGE = re.compile(r"([0-9]{1,5})(?:\.[0-9]*)?\s*([a-z]*)\.?", re.IGNORECASE)
_PER_YEAR = {
    **dict.fromkeys(("", "y", "yr", "yrs", "yo", "year", "years"), 1),
    **dict.fromkeys(("m", "mo", "month", "months"), 12),
    **dict.fromkeys(("w", "week", "weeks"), 52),
    **dict.fromkeys(("d", "day", "days"), 365),
}
_FIXES = (
    "write years, as 58 or 058Y; leave an unknown age blank",
    "write M or F; leave an unknown sex blank",
    "write PA or AP; leave an unknown view blank",
)
_PATIENT = re.compile(r"0*([0-9]{1,10})")
_SEX = {"m": "M", "male": "M", "man": "M", "f": "F", "female": "F", "woman": "F"}
_VIEW = {"posteroanterior": "PA", "anteroposterior": "AP", "pa": "PA", "ap": "AP"}


def parse_patient(text: str) -> int | None:
    """A whole number below 2^31, or None."""
    match = _PATIENT.fullmatch(text)
    return int(match[1]) if match and int(match[1]) < 2**31 else None


def parse_age(text: str) -> int:
    """'58', '058Y', '58.0', '58 years', '013M', '004D' → whole years; UNKNOWN_AGE if blank, unreadable or above 120."""
    match = _AGE.fullmatch(text)
    if match is None or match[2].lower() not in _PER_YEAR:
        return UNKNOWN_AGE
    years = int(match[1]) // _PER_YEAR[match[2].lower()]
    return years if years <= _MAX_AGE else UNKNOWN_AGE


def parse_sex(text: str) -> str:
    """'M' or 'F', also for 'male', 'Female', 'm'; any other text stays as it is."""
    return _SEX.get(text.casefold(), text)


def parse_view(text: str) -> str:
    """'PA' or 'AP', also for 'pa', 'AP Supine', 'postero-anterior'; any other text stays as it is."""
    words = re.findall(r"[a-z]+", text.casefold().replace("o-", "o"))
    views = {_VIEW[word] for word in words if word in _VIEW}
    return views.pop() if len(views) == 1 else text


class Reader:
    """Reads three columns, and reports one whose cells mostly have no known meaning.

    columns: the names of the columns of age, sex and view in the file.
    """

    def __init__(self, columns: tuple[str, str, str]) -> None:
        self._fixes = dict(zip(columns, _FIXES, strict=True))
        self._cells: Counter[str] = Counter()  # of each column, without blank ones
        self._unclear = {column: Counter[str]() for column in columns}

    def read(self, age_text: str, sex_text: str, view_text: str) -> tuple[int, str, str]:
        """Age in years, sex and view of one row."""
        age, sex, view = parse_age(age_text), parse_sex(sex_text), parse_view(view_text)
        age_column, sex_column, view_column = self._fixes
        self._count(age_column, age_text, age != UNKNOWN_AGE)
        self._count(sex_column, sex_text, sex in _SEX.values())
        self._count(view_column, view_text, view in _VIEW.values())
        return age, sex, view

    def _count(self, column: str, text: str, known: bool) -> None:
        self._cells[column] += bool(text)
        if text and not known:
            self._unclear[column][text[:40]] += 1

    def report(self, file: str, problems: Problems) -> None:
        """Adds a Problem for each column of which more than half of the cells have no known meaning."""
        for column, texts in self._unclear.items():
            n, cells = texts.total(), self._cells[column]
            if 2 * n > cells:
                what = f"{n} of {cells} cells of {column!r} have no known meaning"
                examples = ", ".join(repr(text) for text, _ in texts.most_common(3))
                problems.add(file, what, self._fixes[column], examples)
