"""Writes a collection as a folder: images.csv, annotations.csv and images/, whole or not at all."""

from __future__ import annotations

import csv
import io
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kacl_jax.convert.checked_rows import (
    COLUMNS,
    NEGATIVE,
    POSITIVE,
    UNCERTAIN,
    UNKNOWN,
    Collection,
)
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.files import write_text

_FIX = "free some disk space or give another --out"
_EXAMPLES = 3


def refuse_used_folder(out: Path) -> None:
    """Raises UserError if `out` is a file, or a folder that holds anything."""
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out={out} holds other files; give a new folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a new folder")


def write_folder(collection: Collection, out: Path, *, copy: bool) -> None:
    """Makes `out`, which must be new or empty.

    copy: images/ gets copies of the files; else symbolic links to them.

    Raises:
        UserError: the folder cannot be written; nothing of it stays.
    """
    out = out.resolve()
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        (draft / "images").mkdir(parents=True)
        for image in collection.images.values():
            target = draft / "images" / image.name
            if copy:
                shutil.copyfile(image.source, target)
            else:
                target.symlink_to(image.source.resolve())
        write_text(draft / "images.csv", _csv(_image_rows(collection)), fix=_FIX)
        if collection.boxes:
            write_text(draft / "annotations.csv", _csv(_box_rows(collection)), fix=_FIX)
        draft.rename(out)
    except OSError as error:
        hint = "" if copy else ", or give --copy if the disk has no symbolic links"
        raise UserError(f"--out={out} cannot be written ({error}); {_FIX}{hint}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _image_rows(collection: Collection) -> Iterator[Sequence[str]]:
    """The header and a row per image; of the optional columns those that have a cell."""
    images = collection.images.values()
    optional = [column for column in COLUMNS[2:] if any(getattr(i, column) for i in images)]
    yield [*COLUMNS[:2], *optional, *collection.findings]
    for image in images:
        texts = (getattr(image, column) for column in optional)
        labels = (image.labels.get(finding, NEGATIVE) for finding in collection.findings)
        yield [image.name, image.patient, *texts, *labels]


def _box_rows(collection: Collection) -> Iterator[Sequence[str]]:
    yield ["image", "finding", "x", "y", "w", "h"]
    for image, finding, *sides in collection.boxes:
        yield [image, finding, *(f"{side:.4f}".rstrip("0").rstrip(".") for side in sides)]


def summary(collection: Collection, out: Path, *, copy: bool) -> str:
    """What was written, what was left out and why, and the next command."""
    images = collection.images.values()
    patients = len({image.patient for image in images})
    lines = [
        f"{out}: {len(images):,} images of {patients:,} patients, {len(collection.findings)} findings, "
        f"{len(collection.boxes):,} boxes",
        "images/ holds copies of the files."
        if copy
        else "images/ holds symbolic links, so keep the files where they are. With --copy it holds copies.",
        "",
        *_findings_table(collection),
    ]
    splits = Counter(image.split or "blank" for image in images)
    if set(splits) != {"blank"}:
        lines += ["", "split: " + ", ".join(f"{name} {n:,}" for name, n in sorted(splits.items()))]
    lines += ["", *collection.notes] if collection.notes else []
    for what, cases in collection.dropped.items():
        more = ", …" if len(cases) > _EXAMPLES else ""
        lines.append(f"Left out: {what}: {len(cases):,} ({', '.join(cases[:_EXAMPLES])}{more})")
    next_command = (
        f"  python -m kacl_jax.main --config=configs/own.py --config.data.root={shlex.quote(str(out))} "
        "--mode=verify"
    )
    return "\n".join([*lines, "", "Next, check the folder:", next_command])


def _findings_table(collection: Collection) -> Iterator[str]:
    width = max(len(finding) for finding in (*collection.findings, "finding"))
    names = ("positive", "negative", "unknown", "uncertain", "boxes")
    yield f"{'finding':{width}}" + "".join(f"{name:>11}" for name in names)
    boxes = Counter(box.finding for box in collection.boxes)
    for finding in collection.findings:
        labels = Counter(i.labels.get(finding, NEGATIVE) for i in collection.images.values())
        counts = (*(labels[k] for k in (POSITIVE, NEGATIVE, UNKNOWN, UNCERTAIN)), boxes[finding])
        yield f"{finding:{width}}" + "".join(f"{count:>11,}" for count in counts)
