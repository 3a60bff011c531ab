"""Patient, age, sex and view, as people write them."""

from __future__ import annotations

import re

UNKNOWN_AGE = -1
SEXES = ("F", "M")
VIEWS = ("AP", "PA")
_MAX_AGE = 120  # years; NIH's file of 2017 has ages up to 414
_AGE = re.compile(r"([0-9]{1,5})(?:\.[0-9]*)?\s*([a-z]*)\.?", re.IGNORECASE)
_PER_YEAR = {
    **dict.fromkeys(("", "y", "yr", "yrs", "yo", "year", "years"), 1),
    **dict.fromkeys(("m", "mo", "month", "months"), 12),
    **dict.fromkeys(("w", "week", "weeks"), 52),
    **dict.fromkeys(("d", "day", "days"), 365),
}
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
