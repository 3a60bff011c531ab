"""Reads and checks a prepared data set on disk: its manifest and its pictures, which are ArrayRecord records.

Layout: manifest.json (written last, so a set that has it is complete), images.txt (the image name of each record),
image_facts.csv (size and grey range of each original file), copies of the text files of the original root, and
`chest_xray14/1.0.0/`, which tensorflow-datasets can read too.
While the set is being prepared, `prepare/` holds the parts.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import threading
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.data.image_facts import ImageFacts, check_grey, summarise
from kacl_jax.data.png_folder import report_broken
from kacl_jax.data.problems import Problems
from kacl_jax.data.tables import CHECK_SIDE, RootCheck
from kacl_jax.images.reader import BrokenImage
from kacl_jax.images.resizing import resize, shrink
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.files import file_sha256

MANIFEST_FILE = "manifest.json"
NAMES_FILE = "images.txt"
FACTS_FILE = "image_facts.csv"
WORK_FOLDER = "prepare"
DATASET = "chest_xray14/1.0.0"
DESCRIPTION_FILES = (f"{DATASET}/dataset_info.json", f"{DATASET}/features.json")
TFDS_SPLIT = "images"

_MANIFEST_FORMAT = 1
_DIGEST = "sha256"
_HOW_TO_REPAIR = "prepare the data set again, or copy this file again"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What to prepare, and how. Equal jobs give equal bytes, as long as nobody changes a PNG file."""

    root: str
    size: int  # pixels along one side
    resize: str
    tables: dict[str, str]  # file name without .gz → sha256 of its unpacked content
    names_sha256: str  # of the names of all images, one per line; broken images count too

    @classmethod
    def from_json(cls, text: str, path: Any) -> Job:
        """Parses `text`, the content of the file `path`.

        Raises:
            UserError: this is not a job.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path} is damaged ({error}); delete its folder to start again"
            ) from error

    def describe_difference(self, other: Job) -> str:
        """'' for equal jobs, else a clause for an error message.

        It says how this job (the one in the folder) differs from `other` (the one that the user asks for).
        """
        if self.root != other.root:
            return f"from {self.root}, not from {other.root}"
        if self.size != other.size:
            return f"at {self.size} px, not at {other.size} px"
        if self.resize != other.resize:
            return f"with the resize {self.resize}, not {other.resize}"
        changed = [f for f in other.tables if self.tables.get(f) != other.tables[f]]
        if changed or self.tables.keys() != other.tables.keys():
            return (
                f"when {', '.join(changed) or 'the text files'} of {self.root} had other contents"
            )
        return "" if self == other else f"when {self.root} had other image files"


@dataclass(frozen=True)
class Shard:
    """One ArrayRecord file; `file` is its path relative to the prepared root."""

    file: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json: how a complete prepared data set was made, and the checksums of its files."""

    job: Job
    images: int  # how many records there are; broken files have none
    resized: int  # how many of these images had another size as PNG files
    names_sha256: str  # of images.txt
    shards: tuple[Shard, ...]
    broken: dict[str, str]  # path of a PNG file, relative to the job's root → reason
    made_by: dict[str, str]  # package → version
    # Path → sha256 of FACTS_FILE and DESCRIPTION_FILES; empty in a set of an older version.
    files: dict[str, str] = field(default_factory=dict)
    format: int = _MANIFEST_FORMAT

    def to_json(self) -> str:
        """With a digest of all the rest, so that no flipped bit is read."""
        content = asdict(self)
        return _dump(content | {_DIGEST: text_sha256(_dump(content))})

    @classmethod
    def from_json(cls, text: str, path: Any) -> Manifest:
        """Parses `text`, the content of the file `path`.

        Raises:
            UserError: this is not a manifest, or one of another format version.
        """
        try:
            content = json.loads(text)
            if content["format"] != _MANIFEST_FORMAT:
                raise UserError(
                    f"{path} has format {content['format']}, but this version of kacl_jax reads format "
                    f"{_MANIFEST_FORMAT}; prepare the data set again"
                )
            digest = content.pop(_DIGEST, None)
            if digest is not None and digest != text_sha256(_dump(content)):
                raise ValueError("its content does not match its digest")
            job = Job(**content.pop("job"))
            shards = tuple(Shard(**shard) for shard in content.pop("shards"))
            return cls(job=job, shards=shards, **content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); {_HOW_TO_REPAIR}") from error

    def checksums(self, image_size: int | None) -> dict[str, str]:
        """One entry, label → sha256, if pictures read at `image_size` differ from those of the PNG files.

        Empty if they are equal: the data were prepared at this size, or preparing resized no image.
        """
        size = self.job.size
        if image_size in (None, size) or not self.resized:
            return {}
        _log.info(
            "The data were prepared at %d px and are resized again to %d px. The result differs from "
            "the PNG files at %d px.", size, image_size, image_size
        )  # fmt: skip
        digests = "\n".join(shard.sha256 for shard in self.shards)
        return {f"images prepared at {size} px": hashlib.sha256(digests.encode()).hexdigest()}


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_utf8(path: Any) -> str:
    """The text of a pathlib or epath file.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged (it is not UTF-8 text); {_HOW_TO_REPAIR}") from error


def is_prepared(root: Path) -> bool:
    """Whether `root` is a complete prepared data set.

    Raises:
        UserError: `root` is a prepared data set that is not complete yet.
    """
    if (root / MANIFEST_FILE).is_file():
        return True
    if (root / WORK_FOLDER / "job.json").is_file():
        raise UserError(
            f"{root} is a prepared data set that is not finished; run the same "
            "`python -m kacl_jax.prepare` command again to resume"
        )
    return False


class PreparedFolder:
    """A complete prepared data set as a store of pictures."""

    def __init__(self, root: Path, problems: Problems) -> None:
        """Checks images.txt and the size of every record file; reads no picture.

        Raises:
            UserError: the manifest cannot be read.
        """
        self.root = root
        path = root / MANIFEST_FILE
        self.manifest = Manifest.from_json(read_utf8(path), path)
        text = read_utf8(root / NAMES_FILE) if (root / NAMES_FILE).is_file() else ""
        if text_sha256(text) != self.manifest.names_sha256:
            problems.add(NAMES_FILE, "is missing or damaged", _HOW_TO_REPAIR)
        self._damaged: set[str] = set()
        for file in self.manifest.files or DESCRIPTION_FILES:
            path = root / file
            digest = self.manifest.files.get(file)
            if not path.is_file() or (digest is not None and file_sha256(path) != digest):
                problems.add(file, "is missing or damaged", _HOW_TO_REPAIR)
                self._damaged.add(file)
        self._record_index = {name: k for k, name in enumerate(text.split("\n")[:-1])}
        png_root = Path(self.manifest.job.root)
        self.broken = {
            Path(file).name: BrokenImage(
                png_root / file,
                f"{reason} (when the data were prepared; repair it and prepare again)",
            )
            for file, reason in self.manifest.broken.items()
        }
        for shard in self.manifest.shards:
            path = root / shard.file
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                state = "it is missing" if size is None else f"{size:,} bytes, not {shard.bytes:,}"
                problems.add(MANIFEST_FILE, "names a file that is damaged", _HOW_TO_REPAIR,
                             f"{shard.file} ({state})")  # fmt: skip

    def __contains__(self, name: str) -> bool:
        return name in self._record_index or name in self.broken

    def names(self) -> Collection[str]:
        return [*self._record_index, *self.broken]

    def select(self, names: Sequence[str]) -> PreparedImages:
        """The pictures of `names`; the set must contain every one of them, as a record or as a broken file."""
        record_index = np.array([self._record_index.get(name, -1) for name in names], np.int64)
        broken = {k: self.broken[names[k]] for k in np.flatnonzero(record_index < 0).tolist()}
        return PreparedImages(self.root, self.manifest, names, record_index, broken)

    def checksums(self, image_size: int | None) -> dict[str, str]:
        return self.manifest.checksums(image_size)

    def verify(self, check: RootCheck) -> dict[str, Any]:
        """See `ImageStore.verify`. Hashes every record file; reports files that were broken during preparing."""
        manifest = self.manifest
        for name, checksum in manifest.job.tables.items():
            if check.tables.checksums.get(name, checksum) != checksum:
                fix = "copy the file again, or ignore this if you changed it on purpose"
                check.problems.add(name, "has changed since the data were prepared", fix)
        for error in self.broken.values():
            report_broken(error, check.broken_file_problems)
        self._hash_shards(check)
        self._read_sample(check)
        summary: dict[str, Any] = {
            "prepared_from": manifest.job.root,
            "prepared_size": manifest.job.size,
            "images_prepared": manifest.images,
            "record_files": len(manifest.shards),
            "gigabytes": round(sum(shard.bytes for shard in manifest.shards) / 1e9, 3),
        }
        if FACTS_FILE not in manifest.files:
            return summary | {
                "sizes": "unknown; prepare the data again to check grey range and box frame"
            }
        facts = self._facts
        check_grey(facts, check.problems)
        check.sizes.update((name, (one.width, one.height)) for name, one in facts.items())
        return summary | summarise(facts)

    def size(self, name: str) -> tuple[int, int] | None:
        facts = self._facts.get(name)
        return None if facts is None else (facts.width, facts.height)

    @cached_property
    def _facts(self) -> dict[str, ImageFacts]:
        """Of the original files; empty where FACTS_FILE was never made, or is damaged, which `__init__` reports."""
        if FACTS_FILE not in self.manifest.files or FACTS_FILE in self._damaged:
            return {}
        with (self.root / FACTS_FILE).open(encoding="utf-8", newline="") as file:
            _, *rows = csv.reader(file)
        return {name: ImageFacts(*map(int, values)) for name, *values in rows}

    def _read_sample(self, check: RootCheck) -> None:
        names = sorted(name for name in check.sample if name in self._record_index)
        images = self.select(names)
        for k, name in enumerate(names):
            try:
                check.pictures[name] = images.read(k, CHECK_SIDE)
            except UserError as error:
                check.problems.add(DATASET, "cannot be read", _HOW_TO_REPAIR, str(error))
                return

    def _hash_shards(self, check: RootCheck) -> None:
        done = 0
        for shard in self.manifest.shards:
            path = self.root / shard.file
            if path.is_file() and file_sha256(path) != shard.sha256:
                check.problems.add(
                    MANIFEST_FILE,
                    "names a file with another sha256",
                    _HOW_TO_REPAIR,
                    shard.file,
                )
            done += shard.images
            if check.progress is not None:
                check.progress(done, self.manifest.images)


class PreparedImages:
    """Pictures from ArrayRecord files, which `kacl_jax.prepare` decoded and resized. Safe to use from threads.

    Every record has its own checksums, so a flipped bit raises an error and never gives a wrong picture.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        names: Sequence[str],
        record_index: np.ndarray,
        broken: dict[int, BrokenImage],
    ) -> None:
        """names: of the n images. record_index: int64 [n], the record of each image, −1 if the image is broken."""
        self._root, self._shards = root, manifest.shards
        self._names, self._record_index, self._broken = names, record_index, broken
        self._records: Any = None
        self._lock = threading.Lock()

    def read(self, image_id: int | np.integer, size: int) -> np.ndarray:
        """See `Images.read`."""
        return resize(self._stored(image_id), size)

    def read_shrunk(self, image_id: int | np.integer, longest: int) -> np.ndarray:
        """See `Images.read_shrunk`: of the picture as it was prepared, a square."""
        return shrink(self._stored(image_id), longest)

    def _stored(self, image_id: int | np.integer) -> np.ndarray:
        """uint8 [size size], as it was prepared."""
        index = int(self._record_index[image_id])
        if index < 0:
            error = self._broken[int(image_id)]
            # Raise a new exception each time: threads must not share one traceback.
            raise BrokenImage(error.path, error.reason)
        records = self._open_records()
        try:
            record = records[index]
        except (
            Exception
        ) as error:  # array_record and tfds raise whatever they meet in a damaged file
            raise UserError(
                f"{self._root / self._shard_file(index)} is damaged ({error}); {_HOW_TO_REPAIR} "
                "(--mode=verify checks all of them)"
            ) from error
        if record["name"].decode() != self._names[int(image_id)]:
            raise UserError(f"{self._root / NAMES_FILE} and the records disagree; {_HOW_TO_REPAIR}")
        pixels: np.ndarray = record["image"][..., 0]
        return pixels

    def _open_records(self) -> Any:
        """The tensorflow-datasets data source of all records; the first call opens it."""
        with self._lock:
            if self._records is None:
                import tensorflow_datasets as tfds  # takes 1 s: import only where pictures are read

                try:
                    builder = tfds.builder_from_directory(self._root / DATASET)
                    self._records = builder.as_data_source(TFDS_SPLIT)
                except Exception as error:  # tfds raises whatever it meets in a damaged description
                    folder = self._root / DATASET
                    raise UserError(f"{folder} is damaged ({error}); {_HOW_TO_REPAIR}") from error
            return self._records

    def _shard_file(self, index: int) -> str:
        ends = accumulate(shard.images for shard in self._shards)
        return next(s.file for s, end in zip(self._shards, ends, strict=True) if index < end)
