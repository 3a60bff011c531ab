"""CheXpert's train.csv and valid.csv."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kacl_jax.convert.checked_rows import Collection, Image, parse_label
from kacl_jax.convert.image_folder import is_file
from kacl_jax.data.metadata import parse_sex
from kacl_jax.data.problems import Problems
from kacl_jax.data.text_files import Line, csv_header, csv_lines, read_text
from kacl_jax.runtime.errors import UserError

_OWN = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
_NO_FINDING = "No Finding"
_PATH = re.compile(r"(?:.*/)?(patient\d+)/(study\d+)/([^/]+)")
_SPLITS = {"train": "train", "valid": "test"}


def read(
    paths: Sequence[Path], images: Path | None, *, any_view: bool, problems: Problems
) -> Collection:
    """The rows of all files.

    images: the folder to which the paths are relative, with or without their first part; by default the file's folder.

    Raises:
        UserError: a file is neither train.csv nor valid.csv.
    """
    collection = Collection()
    for path in paths:
        split = next((s for word, s in _SPLITS.items() if path.name.startswith(word)), None)
        if split is None:
            raise UserError(f"--in={path} must be train.csv or valid.csv: the name gives the split")
        content = read_text(path, problems)
        header = content and csv_header(path.name, content[0], problems)
        if content is None or not header:
            continue
        findings = tuple(cell for cell in header if cell and cell not in (*_OWN, _NO_FINDING))
        if collection.findings and set(findings) != set(collection.findings):
            fix = "give files with the same findings"
            problems.add(path.name, f"has other findings than {paths[0].name}", fix)
            continue
        collection.findings = collection.findings or findings
        reader = _Rows(path, images or path.parent, split, findings, collection, problems)
        for line in csv_lines(path.name, content[0], [(c,) for c in (*_OWN, *findings)], problems):
            reader.add(line, any_view=any_view)
        if _NO_FINDING in header:
            note = f"{path.name}: the column {_NO_FINDING!r} is no finding, so it is not in images.csv."
            collection.notes.append(note)
    collection.notes.append("The rows of train.csv have the split train, those of valid.csv test.")
    collection.check(", ".join(path.name for path in paths), problems)
    return collection


class _Rows:
    """Adds the rows of one file to the collection."""

    def __init__(
        self,
        path: Path,
        images: Path,
        split: str,
        findings: Sequence[str],
        collection: Collection,
        problems: Problems,
    ) -> None:
        self.file, self.images, self.split, self.findings = path.name, images, split, findings
        self.collection, self.problems = collection, problems

    def add(self, line: Line, *, any_view: bool) -> None:
        path, sex, age, side, view, *labels = line.cells
        where = f"row {line.number} ({path[:200]})"
        match = _PATH.fullmatch(path)
        if side not in ("Frontal", "Lateral"):
            fix = "write Frontal or Lateral"
            self._report("has a row without a view", fix, f"{where} {side[:40]!r}")
        elif match is None:
            fix = "write .../patientN/studyN/FILE"
            self._report("has a path that does not name the patient and the study", fix, where)
        elif side == "Lateral" and not any_view:
            self.collection.drop("lateral images (--any_view keeps them)", f"{self.file} {where}")
        elif source := self._find(path, where):
            name, patient = "_".join(match.groups()), match[1]
            image = Image(name, source, patient, self._labels(labels, where), self.split)
            image.sex, image.age, image.view = (
                parse_sex(sex),
                age,
                view or side.replace("Frontal", ""),
            )
            self.collection.add_image(image, self.file, where, self.problems)

    def _find(self, path: str, where: str) -> Path | None:
        """The file at `path` below the folder, or at `path` without its first part, which is the folder's name."""
        for below in (path, path.partition("/")[2]):
            source = self.images.absolute() / below
            if is_file(source):
                return source
        fix = f"give the folder of the images by --images; now it is {self.images}"
        self._report("names an image that does not exist", fix, where)
        return None

    def _labels(self, texts: Sequence[str], where: str) -> dict[str, str]:
        labels = {}
        for finding, text in zip(self.findings, texts, strict=True):
            label = parse_label(text)
            if label is None:
                fix = "write 1.0, 0.0, -1.0 or leave the cell blank"
                example = f"{where} {finding} {text[:40]!r}"
                self._report("has a label that is no number", fix, example)
            else:
                labels[finding] = label
        return labels

    def _report(self, what: str, fix: str, where: str) -> None:
        self.problems.add(self.file, what, fix, where)
