"""Writes a prepared data set: part files, and the tensorflow-datasets builder that turns parts into shards.

tensorflow-datasets deletes a set that it could not finish. So each part is a complete file first, in the same format
that the builder's writer would write. The builder then only links the parts under their shard names and writes its
description of the set; it copies no pixel.
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

from kacl_jax.data.image_facts import ImageFacts, image_facts
from kacl_jax.data.prepared.reader import DATASET, TFDS_SPLIT
from kacl_jax.images.reader import BrokenImage, read_grey8
from kacl_jax.images.resizing import resize
from kacl_jax.runtime import bucket_files
from kacl_jax.runtime.files import file_sha256

# zstd:1 shrinks the pixels of X-rays only to 79 %, and makes reading them four times slower.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class StoppedError(Exception):
    """`stop` was set while a part was being made; the incomplete part is deleted."""


@dataclass(frozen=True)
class Part:
    """One finished part file.

    names: image names of its records, in order. facts: an `ImageFacts` for each of them.
    broken: paths of images without a record → reason.
    """

    number: int
    names: tuple[str, ...]
    facts: tuple[tuple[int, ...], ...]
    broken: dict[str, str]
    resized: int
    bytes: int
    sha256: str

    def record_file(self, folder: epath.Path) -> epath.Path:
        return folder / f"{self.number:05d}.array_record"


def record_features(size: int) -> tfds.features.FeaturesDict:
    """The fields of one record: the file name of the image, and its pixels uint8 [size size 1]."""
    image = tfds.features.Tensor(shape=(size, size, 1), dtype=np.uint8, encoding="bytes")
    return tfds.features.FeaturesDict({"name": tfds.features.Text(), "image": image})


def read_finished_part(folder: epath.Path, number: int) -> Part | None:
    """The part `number` if it is complete and its checksum is right, else None: it is made again."""
    description = folder / f"{number:05d}.json"
    if not description.exists():
        return None
    try:
        content = json.loads(description.read_bytes())
        facts = tuple(map(tuple, content["facts"]))
        part = Part(**(content | {"names": tuple(content["names"]), "facts": facts}))
    except (ValueError, KeyError, TypeError):
        return None
    file = part.record_file(folder)
    return part if file.exists() and file_sha256(file) == part.sha256 else None


def make_part(
    folder: epath.Path,
    number: int,
    paths: Sequence[Path],
    *,
    root: Path,
    size: int,
    max_megapixels: int,
    stop: threading.Event,
    progress: Callable[[], Any],
) -> Part:
    """Decodes and resizes the images `paths` into one part; calls `progress` after each image.

    Raises:
        StoppedError: `stop` was set.
        OSError, RuntimeError: the disk cannot be written.
    """
    names: list[str] = []
    facts: list[ImageFacts] = []
    broken: dict[str, str] = {}
    resized = 0
    features = record_features(size)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    with bucket_files.open_draft(folder) as draft:
        writer = array_record_module.ArrayRecordWriter(str(draft), _WRITER_OPTIONS)
        for path in paths:
            if stop.is_set():
                writer.close()
                raise StoppedError
            try:
                image = read_grey8(path, max_megapixels)
            except BrokenImage as error:
                broken[path.relative_to(root).as_posix()] = error.reason
            else:
                resized += image.pixels.shape != (size, size)
                facts.append(image_facts(image))
                example = {"name": path.name, "image": resize(image.pixels, size)[..., None]}
                record = serializer.get_tf_example(features.encode_example(example))
                writer.write(record.SerializeToString(deterministic=True))
                names.append(path.name)
            progress()
        writer.close()
        part = Part(
            number, tuple(names), tuple(facts), broken, resized, draft.stat().st_size, file_sha256(draft)
        )  # fmt: skip
        bucket_files.publish(draft, part.record_file(folder))
    # Written last: a part counts as finished once this file exists.
    description = folder / f"{number:05d}.json"
    bucket_files.publish_text(description, json.dumps(asdict(part)), folder)
    return part


class ChestXray14(tfds.core.ShardBasedBuilder):
    """NIH ChestX-ray14 as pictures of one size; labels and boxes stay in NIH's own text files."""

    VERSION = tfds.core.Version(DATASET.split("/")[1])

    def __init__(
        self, *, size: int, parts: Sequence[Part] = (), folder: epath.Path | None = None, **builder_options: Any
    ) -> None:  # fmt: skip
        """parts: the parts that have records, in order; their files are in `folder`."""
        self._size, self._parts, self._folder = size, parts, folder
        super().__init__(**builder_options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Chest X-rays, resized to {self._size} pixels a side.",
            features=record_features(self._size),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, Any]:
        def entries(part: Part) -> Callable[[], Iterator[tuple[str, None]]]:
            return lambda: ((name, None) for name in part.names)

        return {TFDS_SPLIT: [entries(part) for part in self._parts]}

    def _example_writer(self) -> tfds_writer.ExampleWriter:
        assert self._folder is not None
        files = [part.record_file(self._folder) for part in self._parts]
        return _LinkingWriter(self.info.file_format, iter(files))


class _LinkingWriter(tfds_writer.ExampleWriter):
    """Writes each shard as a link to the next part file (a copy where links are impossible)."""

    def __init__(self, file_format: Any, part_files: Iterator[epath.Path]) -> None:
        super().__init__(file_format)
        self._part_files = part_files

    def write(self, path: Any, examples: Any) -> None:
        bucket_files.link_or_copy(next(self._part_files), epath.Path(path))


def build_dataset(out: epath.Path, folder: epath.Path, parts: Sequence[Part], size: int) -> None:
    """Runs the builder: OUT/chest_xray14/… from the parts. Removes what an earlier attempt left there."""
    dataset_folder = out / DATASET.split("/")[0]
    if dataset_folder.exists():
        dataset_folder.rmtree()
    builder = ChestXray14(
        size=size,
        parts=[part for part in parts if part.names],
        folder=folder,
        data_dir=out,
        file_format="array_record",
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints messages about a download
        builder.download_and_prepare(download_dir=folder)
