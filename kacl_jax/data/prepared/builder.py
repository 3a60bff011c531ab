"""The writing side of a prepared data set: part files, and the tensorflow-datasets builder for them.

tensorflow-datasets throws a half-built set away, so each part is made first, on its own, whole or
not at all, already in the form in which the builder's writer would have written it. The builder
then gives the parts their names as shards and describes them; no pixel is copied.
"""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core import writer as tfds_writer

from kacl_jax.data.prepared.reader import DATASET, SPLIT, sha256_of
from kacl_jax.images.reader import BrokenImage, read_image
from kacl_jax.images.resize import resize
from kacl_jax.runtime import bucket_files

# Pixels of X-rays shrink to 79 % at zstd:1, and reading them back then costs four times as much.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class StoppedError(Exception):
    """`stop` was set while a part was being made; nothing of it is left."""


@dataclass(frozen=True)
class Part:
    """One finished part: `names` are its records in order, `broken` the paths that gave none."""

    number: int
    names: tuple[str, ...]
    broken: dict[str, str]
    resized: int
    bytes: int
    sha256: str

    def records(self, folder: epath.Path) -> epath.Path:
        return folder / f"{self.number:05d}.array_record"


def features(size: int) -> tfds.features.FeaturesDict:
    """A record: its image's file name, and uint8 [size size 1]."""
    image = tfds.features.Tensor(shape=(size, size, 1), dtype=np.uint8, encoding="bytes")
    return tfds.features.FeaturesDict({"name": tfds.features.Text(), "image": image})


def finished_part(folder: epath.Path, number: int) -> Part | None:
    """The part, if it is whole and its checksum is right."""
    told = folder / f"{number:05d}.json"
    if not told.exists():
        return None
    content = json.loads(told.read_text())
    part = Part(**(content | {"names": tuple(content["names"])}))
    records = part.records(folder)
    return part if records.exists() and sha256_of(records) == part.sha256 else None


def make_part(
    folder: epath.Path,
    number: int,
    paths: Sequence[Path],
    *,
    root: Path,
    size: int,
    stop: threading.Event,
    progress: Callable[[], Any],
) -> Part:
    """Decodes and resizes `paths` into one part; `progress` is called after each.

    Raises:
        StoppedError: `stop` was set.
        OSError, RuntimeError: the disk refuses.
    """
    names: list[str] = []
    broken: dict[str, str] = {}
    resized = 0
    kind = features(size)
    serializer = example_serializer.ExampleSerializer(kind.get_serialized_info())
    with bucket_files.draft(folder) as draft:
        writer = array_record_module.ArrayRecordWriter(str(draft), _WRITER_OPTIONS)
        for path in paths:
            if stop.is_set():
                writer.close()
                raise StoppedError
            try:
                image = read_image(path)
            except BrokenImage as error:
                broken[path.relative_to(root).as_posix()] = error.why
            else:
                resized += image.shape != (size, size)
                example = {"name": path.name, "image": resize(image, size)[..., None]}
                record = serializer.get_tf_example(kind.encode_example(example))
                writer.write(record.SerializeToString(deterministic=True))
                names.append(path.name)
            progress()
        writer.close()
        part = Part(
            number, tuple(names), broken, resized, draft.stat().st_size, sha256_of(draft)
        )  # fmt: skip
        bucket_files.publish(draft, part.records(folder))
    # Last: with it the part is finished.
    told = folder / f"{number:05d}.json"
    bucket_files.write_text(told, json.dumps(asdict(part)), folder)
    return part


class ChestXray14(tfds.core.ShardBasedBuilder):
    """NIH ChestX-ray14 as pictures of one size; labels and boxes stay in NIH's own text files."""

    VERSION = tfds.core.Version(DATASET.split("/")[1])

    def __init__(
        self, *, size: int, parts: Sequence[Part] = (), folder: epath.Path | None = None, **rest: Any
    ) -> None:  # fmt: skip
        """parts: those with records, in order, lying in `folder`."""
        self._size, self._parts, self._folder = size, parts, folder
        super().__init__(**rest)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Chest X-rays, resized to {self._size} pixels a side.",
            features=features(self._size),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, Any]:
        def entries(part: Part) -> Callable[[], Iterator[tuple[str, None]]]:
            return lambda: ((name, None) for name in part.names)

        return {SPLIT: [entries(part) for part in self._parts]}

    def _example_writer(self) -> tfds_writer.ExampleWriter:
        assert self._folder is not None
        records = [part.records(self._folder) for part in self._parts]
        return _PartsInPlace(self.info.file_format, iter(records))


class _PartsInPlace(tfds_writer.ExampleWriter):
    """Writes shard after shard by giving the next part its name there."""

    def __init__(self, file_format: Any, records: Iterator[epath.Path]) -> None:
        super().__init__(file_format)
        self._records = records

    def write(self, path: Any, examples: Any) -> None:
        bucket_files.same_content(next(self._records), epath.Path(path))


def pack(out: epath.Path, folder: epath.Path, parts: Sequence[Part], size: int) -> None:
    """Lets the builder make OUT/chest_xray14/… of the parts; what an earlier attempt left is removed."""
    home = out / DATASET.split("/")[0]
    if home.exists():
        home.rmtree()
    builder = ChestXray14(
        size=size,
        parts=[part for part in parts if part.names],
        folder=folder,
        data_dir=out,
        file_format="array_record",
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it would tell of a download
        builder.download_and_prepare(download_dir=folder)
