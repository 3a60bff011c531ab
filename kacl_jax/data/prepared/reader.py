"""Reads and checks a prepared data set on disk: its manifest and its pictures, which are ArrayRecord records.

Layout: manifest.json (written last, so a set that has it is complete), images.txt (the image name of each record),
copies of the text files of the original root, and `chest_xray14/1.0.0/`, which tensorflow-datasets can read too.
While the set is being prepared, `prepare/` holds the parts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.data.png_folder import report_broken
from kacl_jax.data.tables import Problems, RootCheck
from kacl_jax.images.reader import BrokenImage
from kacl_jax.images.resizing import resize
from kacl_jax.runtime.errors import UserError

MANIFEST_FILE = "manifest.json"
NAMES_FILE = "images.txt"
WORK_FOLDER = "prepare"
DATASET = "chest_xray14/1.0.0"
TFDS_SPLIT = "images"

_MANIFEST_FORMAT = 1
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
            return f"when {', '.join(changed) or 'the text files'} of {self.root} read otherwise"
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
    format: int = _MANIFEST_FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

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
                    f"{path} is of format {content['format']}, this version of kacl_jax reads "
                    f"{_MANIFEST_FORMAT}; prepare the data set again"
                )
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
            "The data were prepared at %d px and are resized again to %d px: this is another data "
            "set than the PNG files at %d px.", size, image_size, image_size
        )  # fmt: skip
        digests = "\n".join(shard.sha256 for shard in self.shards)
        return {f"images prepared at {size} px": hashlib.sha256(digests.encode()).hexdigest()}


def is_prepared(root: Path) -> bool:
    """Whether `root` is a complete prepared data set.

    Raises:
        UserError: `root` is a prepared data set that is not complete yet.
    """
    if (root / MANIFEST_FILE).is_file():
        return True
    if (root / WORK_FOLDER / "job.json").is_file():
        raise UserError(
            f"{root} is a prepared data set that was not finished; run the same "
            "`python -m kacl_jax.prepare` command again, it goes on where it stopped"
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
        self.manifest = Manifest.from_json((root / MANIFEST_FILE).read_text(), root / MANIFEST_FILE)
        text = (root / NAMES_FILE).read_text() if (root / NAMES_FILE).is_file() else ""
        if hashlib.sha256(text.encode()).hexdigest() != self.manifest.names_sha256:
            problems.add(NAMES_FILE, "is missing or damaged", _HOW_TO_REPAIR)
        self._record_index = {name: k for k, name in enumerate(text.splitlines())}
        png_root = Path(self.manifest.job.root)
        self.broken = {
            Path(file).name: BrokenImage(
                png_root / file,
                f"{reason} (when the data were prepared; mend it and prepare again)",
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
                check.problems.add(name, "is not what it was when the data were prepared", fix)
        for error in self.broken.values():
            report_broken(error, check.broken_file_problems)
        self._hash_shards(check)
        size = manifest.job.size
        return {
            "prepared_from": manifest.job.root,
            "images_prepared": manifest.images,
            "sizes": {f"{size}x{size}": manifest.images},
            "record_files": len(manifest.shards),
            "gigabytes": round(sum(shard.bytes for shard in manifest.shards) / 1e9, 3),
        }

    def _hash_shards(self, check: RootCheck) -> None:
        done = 0
        for shard in self.manifest.shards:
            path = self.root / shard.file
            if path.is_file() and file_sha256(path) != shard.sha256:
                check.problems.add(
                    MANIFEST_FILE,
                    "names a file whose sha256 is another",
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
        index = int(self._record_index[image_id])
        if index < 0:
            error = self._broken[int(image_id)]
            # Raise a new exception each time: threads must not share one traceback.
            raise BrokenImage(error.path, error.reason)
        try:
            record = self._open_records()[index]
        except RuntimeError as error:  # array_record raises it for a damaged file
            raise UserError(
                f"{self._root / self._shard_file(index)} is damaged ({error}); {_HOW_TO_REPAIR} "
                "(--mode=verify checks all of them)"
            ) from error
        if record["name"].decode() != self._names[int(image_id)]:
            raise UserError(f"{self._root / NAMES_FILE} and the records disagree; {_HOW_TO_REPAIR}")
        return resize(record["image"][..., 0], size)

    def _open_records(self) -> Any:
        """The tensorflow-datasets data source of all records; the first call opens it."""
        with self._lock:
            if self._records is None:
                import tensorflow_datasets as tfds  # takes 1 s: import only where pictures are read

                builder = tfds.builder_from_directory(self._root / DATASET)
                self._records = builder.as_data_source(TFDS_SPLIT)
            return self._records

    def _shard_file(self, index: int) -> str:
        ends = accumulate(shard.images for shard in self._shards)
        return next(s.file for s, end in zip(self._shards, ends, strict=True) if index < end)


def file_sha256(path: Any) -> str:
    """The sha256 of a file's content in hex; `path` is a pathlib or an epath path."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
