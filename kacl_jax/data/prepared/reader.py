"""A prepared data set on disk: its manifest, its pictures as records, and what can be wrong with it.

Layout: manifest.json (written last: with it the set is finished), images.txt (the name of each
record), the text files of the root it was made from, and `chest_xray14/1.0.0/`, which
tensorflow-datasets reads too. Until it is finished, `prepare/` holds the parts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.data.tables import Problems
from kacl_jax.images.reader import BrokenImage
from kacl_jax.images.resize import resize
from kacl_jax.runtime.errors import UserError

MANIFEST = "manifest.json"
NAMES = "images.txt"
WORK = "prepare"
DATASET = "chest_xray14/1.0.0"
SPLIT = "images"

_FORMAT = 1
_AGAIN = "prepare the data set again, or copy this file again"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is to be prepared. Equal jobs give equal bytes, as long as nobody changes a PNG file."""

    root: str
    size: int  # pixels of a side
    resize: str
    tables: dict[str, str]  # file name without .gz → sha256 of its unpacked content
    names_sha256: str  # of the names of all images, broken ones included, one a line

    def difference(self, other: Job) -> str:
        """'' or a clause: how this (what DIR holds) differs from `other` (what is asked for)."""
        if self.root != other.root:
            return f"from {self.root}, not from {other.root}"
        if self.size != other.size:
            return f"at {self.size} px, not at {other.size} px"
        if self.resize != other.resize:
            return f"with the resize {self.resize}, not {other.resize}"
        changed = [f for f in other.tables if self.tables.get(f) != other.tables[f]]
        if changed or self.tables.keys() != other.tables.keys():
            return f"when {', '.join(changed) or 'the text files'} of {self.root} read otherwise"
        return "" if self == other else f"when {self.root} had other image files"


@dataclass(frozen=True)
class Shard:
    """One ArrayRecord file; `file` is its place under the prepared root."""

    file: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished prepared data set says about itself."""

    job: Job
    images: int  # records, broken files not counted
    resized: int  # how many of them had another size before
    names_sha256: str  # of images.txt
    shards: tuple[Shard, ...]
    broken: dict[str, str]  # path of a PNG file under the job's root → why it cannot be read
    made_by: dict[str, str]  # package → version
    format: int = _FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Any) -> Manifest:
        """Raises UserError where `text` (of the file `path`) is no manifest of this version."""
        try:
            content = json.loads(text)
            if content["format"] != _FORMAT:
                raise UserError(
                    f"{path} is of format {content['format']}, this version of kacl_jax reads "
                    f"{_FORMAT}; prepare the data set again"
                )
            job = Job(**content.pop("job"))
            shards = tuple(Shard(**shard) for shard in content.pop("shards"))
            return cls(job=job, shards=shards, **content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); {_AGAIN}") from error

    def checksums(self, image_size: int | None) -> dict[str, str]:
        """Name → sha256 of what makes these pictures others than the PNG files at `image_size`.

        Empty where they are the same: prepared at that very size, or never resized at all.
        """
        size = self.job.size
        if image_size in (None, size) or not self.resized:
            return {}
        _log.info(
            "The data were prepared at %d px and are resized again to %d px: this is another data "
            "set than the PNG files at %d px.", size, image_size, image_size
        )  # fmt: skip
        digests = "\n".join(shard.sha256 for shard in self.shards)
        return {f"images prepared at {size} px": hashlib.sha256(digests.encode()).hexdigest()}


def is_prepared(root: Path) -> bool:
    """Whether this is a finished prepared data set.

    Raises:
        UserError: it is an unfinished one.
    """
    if (root / MANIFEST).is_file():
        return True
    if (root / WORK / "job.json").is_file():
        raise UserError(
            f"{root} is a prepared data set that was not finished; run the same "
            "`python -m kacl_jax.prepare` command again, it goes on where it stopped"
        )
    return False


class Prepared:
    """A finished prepared data set as a store of pictures."""

    def __init__(self, root: Path, problems: Problems) -> None:
        """Checks names and the size of every file, and reads no picture.

        Raises:
            UserError: the manifest itself cannot be read.
        """
        self.root = root
        self.manifest = Manifest.from_json((root / MANIFEST).read_text(), root / MANIFEST)
        text = (root / NAMES).read_text() if (root / NAMES).is_file() else ""
        if hashlib.sha256(text.encode()).hexdigest() != self.manifest.names_sha256:
            problems.add(NAMES, "is missing or damaged", _AGAIN)
        self._position = {name: k for k, name in enumerate(text.splitlines())}
        origin = Path(self.manifest.job.root)
        self.broken = {
            Path(file).name: BrokenImage(
                origin / file, f"{why} (when the data were prepared; mend it and prepare again)"
            )
            for file, why in self.manifest.broken.items()
        }
        for shard in self.manifest.shards:
            path = root / shard.file
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                found = "it is missing" if size is None else f"{size:,} bytes, not {shard.bytes:,}"
                problems.add(MANIFEST, "names a file that is damaged", _AGAIN,
                             f"{shard.file} ({found})")  # fmt: skip

    def __contains__(self, name: str) -> bool:
        return name in self._position or name in self.broken

    def select(self, names: Sequence[str]) -> PreparedImages:
        """The pictures of `names`, all of which must be there (be it as broken)."""
        position = np.array([self._position.get(name, -1) for name in names], np.int64)
        broken = {k: self.broken[names[k]] for k in np.flatnonzero(position < 0).tolist()}
        return PreparedImages(self.root, self.manifest, names, position, broken)

    def checksums(self, image_size: int | None) -> dict[str, str]:
        return self.manifest.checksums(image_size)

    def check_content(self, problems: Problems, read: Callable[[int], None]) -> None:
        """Hashes every shard that is there; after each, `read` is told how many images it has."""
        for shard in self.manifest.shards:
            path = self.root / shard.file
            if path.is_file() and sha256_of(path) != shard.sha256:
                problems.add(MANIFEST, "names a file whose sha256 is another", _AGAIN, shard.file)
            read(shard.images)


class PreparedImages:
    """Pictures out of ArrayRecord files, decoded and resized beforehand. Safe to use from threads.

    A record carries checksums of its own: a flipped bit is an error, never another picture.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        names: Sequence[str],
        position: np.ndarray,
        broken: dict[int, BrokenImage],
    ) -> None:
        """names: of the images. position: int64 [n], each one's record, −1 where it is broken."""
        self._root, self._shards = root, manifest.shards
        self._names, self._position, self._broken = names, position, broken
        self._records: Any = None
        self._lock = threading.Lock()

    def read(self, image_id: int | np.integer, size: int) -> np.ndarray:
        """As `Images.read`."""
        position = int(self._position[image_id])
        if position < 0:
            why = self._broken[int(image_id)]
            raise BrokenImage(why.path, why.why)  # a new one: its traceback is the thread's own
        try:
            record = self._open()[position]
        except RuntimeError as error:  # what array_record raises for files it cannot trust
            raise UserError(
                f"{self._root / self._shard_of(position)} is damaged ({error}); {_AGAIN} "
                "(--mode=verify checks all of them)"
            ) from error
        if record["name"].decode() != self._names[int(image_id)]:
            raise UserError(f"{self._root / NAMES} and the records disagree; {_AGAIN}")
        return resize(record["image"][..., 0], size)

    def _open(self) -> Any:
        """The records as tensorflow-datasets sees them; opened at the first read."""
        with self._lock:
            if self._records is None:
                import tensorflow_datasets as tfds  # a second, and only where pictures are read

                builder = tfds.builder_from_directory(self._root / DATASET)
                self._records = builder.as_data_source(SPLIT)
            return self._records

    def _shard_of(self, position: int) -> str:
        ends = accumulate(shard.images for shard in self._shards)
        return next(s.file for s, end in zip(self._shards, ends, strict=True) if position < end)


def sha256_of(path: Any) -> str:
    """Of a file's content; `path` may be an epath."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
