"""What a source gives: images, findings and boxes, checked while they come in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kacl_jax.data import image_names
from kacl_jax.data.problems import Problems
from kacl_jax.images import file_names
from kacl_jax.runtime.errors import UserError

POSITIVE, NEGATIVE, UNKNOWN, UNCERTAIN = "1", "0", "", "-1"
COLUMNS = ("image", "patient", "split", "sex", "age", "view")  # of images.csv, before the findings

_MAX_PROBLEMS = 10
_WHOLE = re.compile(r"([01]|-1)(\.0+)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
_SPLITS = {
    "": "",
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}


@dataclass
class Image:
    """One row of images.csv. A finding that `labels` does not name is NEGATIVE."""

    name: str
    source: Path
    patient: str
    labels: dict[str, str] = field(default_factory=dict)
    split: str = ""
    sex: str = ""
    age: str = ""
    view: str = ""


class Box(NamedTuple):
    """One row of annotations.csv, in pixels of the image as it is seen."""

    image: str
    finding: str
    x: float
    y: float
    w: float
    h: float


@dataclass
class Collection:
    """All rows of the new tables, and what the summary says of them.

    notes: sentences. dropped: what was left out and why → each case.
    """

    findings: tuple[str, ...] = ()
    images: dict[str, Image] = field(default_factory=dict)
    boxes: list[Box] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, what: str, example: str) -> None:
        self.dropped.setdefault(what, []).append(example)

    def add_image(self, image: Image, file: str, where: str, problems: Problems) -> None:
        """Adds an image, or a Problem if an image of this name is there already."""
        other = self.images.get(image.name)
        if other is None:
            _check_texts(image, file, where, problems)
            self.images[image.name] = image
        elif other.source == image.source:
            problems.add(file, "has an image twice", "keep one row per image", where)
        else:
            fix = "rename one of the two files, and its row"
            example = f"{other.source} and {image.source}"
            problems.add(file, "names two files of one name", fix, example)

    def check(self, file: str, problems: Problems) -> None:
        """Adds the Problems that only the whole collection shows."""
        if not problems.all():  # else this may be the consequence of another mistake
            if not self.images:
                problems.add(file, "has no row of an image", "give the file of your images")
            elif not self.findings:
                fix = "name the columns or the file that say what the images show"
                problems.add(file, "has no finding", fix)
        _check_findings(self.findings, file, problems)
        blank = [image.name for image in self.images.values() if not image.split]
        if 0 < len(blank) < len(self.images):
            fix = "give every image a split, or none"
            problems.add(file, "has images without a split beside others", fix, blank[0])
        split_of: dict[str, Image] = {}
        for image in self.images.values():
            first = split_of.setdefault(image.patient, image) if image.split else image
            if first.split != image.split:
                fix = "put all images of a patient into one split"
                example = f"{image.patient}: {first.name} {first.split}, {image.name} {image.split}"
                problems.add(file, "has a patient in two splits", fix, example)


def raise_problems(problems: Problems) -> None:
    """Raises UserError with the first problems, if there is any."""
    lines = [f"\n  {number}. {problem}" for number, problem in enumerate(problems.all(), 1)]
    if lines:
        more = len(lines) - _MAX_PROBLEMS
        rest = [f"\n  and {more} more"] if more > 0 else []
        text = "".join([*lines[:_MAX_PROBLEMS], *rest])
        raise UserError(f"nothing was written, because of {len(lines)} problem(s):{text}")


def parse_label(text: str) -> str | None:
    """'1', '0', '' or '-1', also for '1.0', '0.0' and '-1.0'; None for any other text."""
    match = _WHOLE.fullmatch(text)
    return match[1] if match else "" if not text else None


def parse_number(text: str) -> float | None:
    """A decimal number, or None."""
    return float(text) if _NUMBER.fullmatch(text) else None


def read_split(text: str, file: str, where: str, problems: Problems) -> str:
    """'train', 'val', 'test' or ''; '' with a Problem for any other text."""
    split = _SPLITS.get(text.casefold())
    if split is None:
        fix = "write train, val, test, or leave the cell blank"
        problems.add(file, "has a split of another name", fix, f"{where} {text[:40]!r}")
    return split or ""


def objection(text: str) -> str | None:
    """Why a name of a finding or of a patient may not stand in the tables, as one clause; None for a good one."""
    if not text:
        return "is blank"
    if text != text.strip():
        return "begins or ends with a space"
    if re.search("[\ud800-\udfff]", text):
        return "holds half a letter (a lone surrogate), which UTF-8 cannot write"
    return file_names.objection(text)


def _check_texts(image: Image, file: str, where: str, problems: Problems) -> None:
    wrong = image_names.objection(image.name)
    clause = objection(image.name)
    wrong = wrong or ((clause, "rename the file, and its rows in all tables") if clause else None)
    if wrong:
        problems.add(file, f"has an image whose name {wrong[0]}", wrong[1], where)
    if clause := objection(image.patient):
        fix = "give every image a patient, in plain text"
        problems.add(file, f"has a patient whose name {clause}", fix, where)
    for column in ("sex", "age", "view"):
        text = getattr(image, column)
        if text and (clause := objection(text)):
            fix = "write plain text, or leave the cell blank"
            problems.add(file, f"has a cell of {column} that {clause}", fix, where)


def _check_findings(findings: Sequence[str], file: str, problems: Problems) -> None:
    alike: dict[str, str] = {}
    for finding in findings:
        if clause := objection(finding):
            problems.add(file, f"has a finding whose name {clause}", "rename it", repr(finding))
        if finding in COLUMNS:
            what = "has a finding that is called like a column of images.csv"
            problems.add(file, what, "rename it", repr(finding))
        first = alike.setdefault(re.sub(r"[\W_]", "", finding.casefold()) or finding, finding)
        if first != finding:
            fix = "give both one spelling, or two names that differ more"
            example = f"{first!r} and {finding!r}"
            what = "has two findings that differ only in case, spaces or signs"
            problems.add(file, what, fix, example)
