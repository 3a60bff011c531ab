"""A table in parts: each of N calls measures one part of the images, and another call joins their tables.

The first and the last line of a part's table are a mark of what all parts must have in common: the settings, and the
list of images or boxes. So neither tables of different calls nor a table that was cut are joined.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kacl_jax.radiomics.image_folder import list_images
from kacl_jax.runtime.errors import UserError

_T = TypeVar("_T")
_SETTINGS = (
    *("frame", "label", "threshold", "max_megapixels"),
    *("backend", "bin_width", "bin_count"),
)


@dataclass(frozen=True)
class Part:
    """Part `index` of `count` parts, from 0."""

    index: int
    count: int

    def select(self, items: Sequence[_T]) -> Sequence[_T]:
        """The part's items. The parts lie one after the other and differ in length by at most 1."""
        start, end = (len(items) * i // self.count for i in (self.index, self.index + 1))
        return items[start:end]

    def path(self, out: Path) -> Path:
        """The part's table: features.csv.3of16"""
        return out.with_name(f"{out.name}.{self.index}of{self.count}")


WHOLE = Part(0, 1)


def parse(text: str) -> Part:
    """'3/16' → part 3 of 16. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"--part={text} must be I/N with I from 0 to N − 1, such as --part=0/16")
    return Part(int(match[1]), int(match[2]))


def mark(flags: Namespace) -> str:
    """The first and the last line of each part's table. flags: of the command.

    Raises:
      UserError: the folder or the boxes cannot be read.
    """
    names = "\n".join(path.name for path in list_images(flags.images))
    digest = hashlib.sha256(os.fsencode(names))
    if flags.boxes is not None:
        try:
            digest.update(flags.boxes.read_bytes())
        except OSError as error:
            raise UserError(
                f"--boxes={flags.boxes} cannot be read ({error.strerror}); give another file"
            ) from error
    settings = {name: getattr(flags, name) for name in _SETTINGS}
    return json.dumps({**settings, "regions": digest.hexdigest()}) + "\n"


def merge(out: Path, count: int, common: str, joined: Path) -> int:
    """Write what one call would write, byte for byte, to `joined`; return the number of regions.

    out: the table that the parts belong to. common: from `mark`.

    Raises:
      UserError: a part is missing, is cut, or was made with other settings, images or boxes; nothing is written then.
        Or `joined` cannot be written.
    """
    paths = [Part(index, count).path(out) for index in range(count)]
    missing = [index for index, path in enumerate(paths) if not path.is_file()]
    if missing:
        raise UserError(
            f"{paths[missing[0]]} is missing; run --part={missing[0]}/{count} "
            f"({len(missing)} of {count} parts are missing: {', '.join(map(str, missing))})"
        )
    for index, path in enumerate(paths):
        with path.open("rb") as file:
            first_line = file.readline()
            file.seek(-min(len(first_line), path.stat().st_size), os.SEEK_END)
            last_line = file.read()
        if first_line != common.encode():
            raise UserError(
                f"{path} was made with other settings, images or boxes; run --part={index}/{count} again"
            )
        if last_line != first_line or path.stat().st_size < 2 * len(first_line):
            raise UserError(f"{path} is cut; run --part={index}/{count} again")
    try:
        return _join(paths, common.encode(), joined)
    except OSError as error:
        raise UserError(
            f"{joined} cannot be written ({error.strerror}); free some disk space or give another --out"
        ) from error


def _join(paths: Sequence[Path], common: bytes, joined: Path) -> int:
    """Write the names of the columns once, then the rows of all tables; return the number of rows."""
    n_rows = 0
    with joined.open("wb") as table:
        for index, path in enumerate(paths):
            with path.open("rb") as file:
                file.readline()
                names = file.readline()
                table.write(b"" if index else names)
                for row in itertools.takewhile(lambda line: line != common, file):
                    table.write(row)
                    n_rows += 1
    return n_rows
