"""A COCO file of instances: images, categories and annotations with boxes in pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kacl_jax.convert.box_units import RawBox, add_boxes
from kacl_jax.convert.checked_rows import POSITIVE, Collection, Image
from kacl_jax.convert.image_folder import ImageFolder
from kacl_jax.data.problems import Problems
from kacl_jax.data.text_files import read_text
from kacl_jax.runtime.errors import UserError

_LISTS = ("images", "annotations", "categories")


def read(
    path: Path, folder: ImageFolder, no_finding: Sequence[str], problems: Problems
) -> Collection:
    """An image has the findings of its annotations and no other. no_finding: categories that are none, in lower case.

    Raises:
        UserError: the file is no COCO file.
    """
    content = read_text(path, problems)
    if content is None:
        return Collection()
    return _Reader(path, _parse(path, content[0]), folder, no_finding, problems).read()


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); export it again") from error
    for name in _LISTS:
        items = content.get(name) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UserError(
                f"{path} has no list {name!r} of objects; give a COCO file of instances"
            )
    return content


class _Reader:
    def __init__(
        self,
        path: Path,
        content: dict[str, Any],
        folder: ImageFolder,
        no_finding: Sequence[str],
        problems: Problems,
    ) -> None:
        self.file, self.content, self.folder = path.name, content, folder
        self.no_finding, self.problems = no_finding, problems
        self.collection = Collection()
        self.names: dict[int | str, str | None] = {}  # id of an image → its name, if it can be used
        self.claimed: dict[str, tuple[int, int]] = {}

    def read(self) -> Collection:
        findings: dict[int | str, str] = {}
        for number, item, where in self._items("categories"):
            name = item.get("name")
            findings[number] = name if isinstance(name, str) else ""
            if not findings[number]:
                self._report("has a category without a name", "give it one", where)
        names = list(findings.values())
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            self._report("has two categories of one name", "keep one of them", repr(twice))
        self.collection.findings = tuple(
            name for name in dict.fromkeys(names) if name.casefold() not in self.no_finding
        )
        self._read_images()
        boxes = list(self._read_annotations(findings))
        add_boxes(boxes, self.collection, "pixels", self.file, self.problems)
        self.collection.notes.append(
            "An image has the findings of its annotations; it is negative for all others."
        )
        self.collection.check(self.file, self.problems)
        return self.collection

    def _items(self, name: str) -> Iterator[tuple[int | str, dict[str, Any], str]]:
        """(id, object, its place in the file) of a list; an id that is missing or there twice is a Problem."""
        seen = set()
        for place, item in enumerate(self.content[name]):
            number = item.get("id")
            where = f"{name}[{place}] (id {str(number)[:40]})"
            if not _is_id(number):
                self._report(f"has no id in its list {name}", "give each object an id", where)
            elif number in seen:
                self._report(f"has an id twice in its list {name}", "keep one of them", where)
            else:
                seen.add(number)
                yield number, item, where

    def _read_images(self) -> None:
        items = list(self._items("images"))
        has_patients = any(item.get("patient_id") is not None for _, item, _ in items)
        if not has_patients:
            self.collection.notes.append(
                "No image has a patient_id, so each image is a patient of its own. If a patient has several images, "
                "add it to the images of the file."
            )
        for number, item, where in items:
            self.names[number] = None
            name = item.get("file_name")
            if not isinstance(name, str):
                self._report("has an image without a file_name", "give it one", where)
                continue
            where = f"{where} {name[:200]}"
            source = self.folder.find(name, self.file, where, self.problems)
            if source is None:
                continue
            patient = item.get("patient_id") if has_patients else source.name
            if not _is_id(patient):
                fix = "give every image a patient_id, as a text or a whole number"
                self._report("has an image without a patient", fix, where)
                continue
            self.names[number] = source.name
            if all(type(item.get(side)) is int for side in ("width", "height")):
                self.claimed[source.name] = (item["width"], item["height"])
            image = Image(source.name, source, str(patient))
            self.collection.add_image(image, self.file, where, self.problems)

    def _read_annotations(self, findings: dict[int | str, str]) -> Iterator[RawBox]:
        for _, item, where in self._items("annotations"):
            image, category = item.get("image_id"), item.get("category_id")
            if not _is_id(image) or image not in self.names:
                self._report("has an annotation of no image", "correct its image_id", where)
            elif not _is_id(category) or category not in findings:
                self._report("has an annotation of no category", "correct its category_id", where)
            elif findings[category].casefold() in self.no_finding:
                self.collection.drop("annotations of a category that is no finding", where)
            elif (name := self.names[image]) is not None:
                self.collection.images[name].labels[findings[category]] = POSITIVE
                yield from self._read_box(item, name, findings[category], where)

    def _read_box(
        self, item: dict[str, Any], image: str, finding: str, where: str
    ) -> Iterator[RawBox]:
        box = item.get("bbox")
        where = f"{where} {image} {finding}"[:300]
        if item.get("iscrowd"):
            self.collection.drop("boxes of crowds (their images keep the finding)", where)
        elif box is None or box == []:
            what = "annotations without a box, as of a segmentation alone (their images keep the finding)"
            self.collection.drop(what, where)
        elif not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            fix = "give bbox as four numbers: x, y, w, h"
            self._report("has a box whose sides are no numbers", fix, f"{where} {str(box)[:80]}")
        elif min(box[2:]) <= 0:
            self._report("has a box without an area", "give w and h above 0", f"{where} {box}")
        else:
            x, y, w, h = map(float, box)
            yield RawBox(image, finding, (x, y, x + w, y + h), where, self.claimed.get(image))

    def _report(self, what: str, fix: str, where: str) -> None:
        self.problems.add(self.file, what, fix, where)


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e9  # NaN is not
