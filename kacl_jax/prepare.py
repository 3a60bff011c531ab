"""Prepare a data root: decode and resize every image once, so that training reads it faster.

    python -m kacl_jax.prepare --root=NIH --out=DIR --size=512 [--workers=N]

Train with --config.data.root=DIR. With --size equal to config.data.image_size the batches are those of the PNG files,
bit for bit. You may stop it at any time. Run the same command again to resume; the final files are the same bytes. DIR
may be a bucket path (gs://…). To train from it, copy it to a disk.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports, during which a signal may come
    from kacl_jax.runtime import output, signals

    signals.exit_on_signals("Stopped. Run the same command again to continue.")
    output.prepare_streams()

import argparse
import csv
import fcntl
import importlib.metadata
import io
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath
from tqdm import tqdm

from kacl_jax.data import layouts
from kacl_jax.data.image_facts import ImageFacts, check_grey
from kacl_jax.data.png_folder import PngFiles
from kacl_jax.data.prepared.reader import (
    DATASET,
    DESCRIPTION_FILES,
    FACTS_FILE,
    MANIFEST_FILE,
    NAMES_FILE,
    TFDS_SPLIT,
    WORK_FOLDER,
    Job,
    Manifest,
    Shard,
    read_utf8,
    text_sha256,
)
from kacl_jax.data.problems import Problems
from kacl_jax.data.records import read_records
from kacl_jax.images.reader import MAX_MEGAPIXELS
from kacl_jax.images.resizing import RESIZE_NAME
from kacl_jax.runtime import bucket_files, output, signals
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.files import file_sha256

if TYPE_CHECKING:
    from kacl_jax.data.prepared.builder import Part

# Small parts: a killed process loses at most one part per worker. Few parts: training keeps every shard open as a file.
_SHARD_BYTES, _SHARD_IMAGES = 1 << 28, 1024
_RECORD_BYTES = 512  # upper bound per image for its name and ArrayRecord's own data
_PACKAGES = ("tensorflow-datasets", "array_record", "opencv-python-headless")
_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 for success, 1 for a user's mistake, 75 for an interruption."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("absl").setLevel(logging.WARNING)
    output.silence_pydicom()
    signals.raise_keyboard_interrupt()
    parser = argparse.ArgumentParser(
        prog="python -m kacl_jax.prepare", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--root", required=True, help="NIH's folder: images/ and the text files")
    parser.add_argument("--out", required=True, help="a new folder, or gs://BUCKET/FOLDER")
    parser.add_argument(
        "--size", type=int, required=True, help="side of the square images in pixels"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads")
    parser.add_argument(
        "--allow_missing", action="store_true", help="leave out images without a file"
    )
    parser.add_argument(
        "--max_megapixels",
        type=int,
        default=MAX_MEGAPIXELS,
        help="the largest image that can be read, in million pixels (default: %(default)s)",
    )
    try:
        prepare_root(**vars(parser.parse_args(arguments)))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to resume.", file=sys.stderr)
        return 75
    return 0


def prepare_root(
    *,
    root: str | Path,
    out: str | Path,
    size: int,
    workers: int,
    allow_missing: bool = False,
    max_megapixels: int = MAX_MEGAPIXELS,
    shard_bytes: int = _SHARD_BYTES,
) -> Manifest:
    """Makes OUT, or continues an earlier attempt; does nothing if OUT is complete already.

    Raises:
        UserError: the root has problems, OUT holds something else, or the disk is too small (all checked before
            anything is written); or writing fails later.
    """
    if min(size, workers, max_megapixels) < 1:
        flags = f"--size={size} --workers={workers} --max_megapixels={max_megapixels}"
        raise UserError(f"{flags}: each must be at least 1")
    if bucket_files.is_bucket_path(root):
        raise UserError(
            f"--root={root}: the image files are read from a disk; copy them there first "
            f"(gcloud storage cp -r {root} FOLDER)"
        )
    target = bucket_files.open_folder(str(out), "--out")
    records = read_records(
        Path(root).expanduser().absolute(),
        findings="all",
        uncertain="ignore",  # a run decides; the pictures do not depend on it
        allow_missing=allow_missing,
        max_megapixels=max_megapixels,
    )
    if not isinstance(records.images, PngFiles):
        raise UserError(f"{records.root} is already prepared; give NIH's folder by --root")
    names = [str(name) for name in records.names]
    job = Job(
        str(records.root), size, RESIZE_NAME, records.checksums, text_sha256(_join_lines(names))
    )  # fmt: skip
    existing = _read_finished_manifest(target, job)
    if existing is not None:
        _log.info("%s is already prepared (%s images); nothing to do.", target, existing.images)
        _remove_work_folder(target)
        return existing
    per_part = min(max(1, shard_bytes // (size * size)), _SHARD_IMAGES)
    chunks = [
        records.images.paths[start : start + per_part] for start in range(0, len(names), per_part)
    ]
    _check_free_space(target, len(names) * (size * size + _RECORD_BYTES))
    with _lock_work_folder(target, job):
        parts = _make_parts(target, job, chunks, workers, max_megapixels)
        manifest = _publish_dataset(target, job, parts)
    _remove_work_folder(target)
    _log_result(target, manifest)
    _log_grey_problems(parts)
    return manifest


def _read_finished_manifest(out: epath.Path, job: Job) -> Manifest | None:
    """The manifest if OUT is complete, None if OUT is empty or this job is unfinished there.

    Raises:
        UserError: OUT holds another job or other files.
    """
    if (out / MANIFEST_FILE).exists():
        manifest = Manifest.from_json(read_utf8(out / MANIFEST_FILE), out / MANIFEST_FILE)
        _refuse_other_job(out, manifest.job, job)
        return manifest
    unfinished_job = out / WORK_FOLDER / "job.json"
    if unfinished_job.exists():
        _refuse_other_job(out, Job.from_json(read_utf8(unfinished_job), unfinished_job), job)
    elif out.exists() and any(path.name != WORK_FOLDER for path in out.iterdir()):
        raise UserError(f"--out={out} holds other files; give a new folder")
    return None


def _refuse_other_job(out: epath.Path, existing: Job, requested: Job) -> None:
    difference = existing.describe_difference(requested)
    if difference:
        raise UserError(f"--out={out} was prepared {difference}; give another folder by --out")


@contextmanager
def _lock_work_folder(out: epath.Path, job: Job) -> Iterator[None]:
    """Creates OUT/prepare with its job.json, and on a disk locks it against other processes."""
    work = out / WORK_FOLDER
    try:
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "job.json").exists():
            bucket_files.publish_text(work / "job.json", json.dumps(asdict(job)), work)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written ({error})") from error
    if bucket_files.is_bucket_path(out):
        yield
        return
    with (work / "job.json").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is preparing {out}; wait for it") from error
        bucket_files.remove_drafts(work)
        yield


def _make_parts(
    out: epath.Path, job: Job, chunks: Sequence[Sequence[Path]], workers: int, max_megapixels: int
) -> list[Part]:
    """Makes the missing parts; returns all of them, with the finished parts of earlier attempts."""
    from kacl_jax.data.prepared import builder  # imports tensorflow-datasets

    folder, stop = out / WORK_FOLDER, threading.Event()
    total = sum(map(len, chunks))
    with ThreadPoolExecutor(workers) as pool, _Progress(total, job.size) as progress:
        parts = list(pool.map(lambda k: builder.read_finished_part(folder, k), range(len(chunks))))
        missing = [k for k, part in enumerate(parts) if part is None]
        progress.skip(total - sum(len(chunks[k]) for k in missing))

        def make_part(k: int) -> Part:
            return builder.make_part(
                folder,
                k,
                chunks[k],
                root=Path(job.root),
                size=job.size,
                max_megapixels=max_megapixels,
                stop=stop,
                progress=progress.count_image,
            )

        part_numbers = {pool.submit(make_part, k): k for k in missing}
        try:
            done, _ = wait(part_numbers, return_when=FIRST_EXCEPTION)
            for future in done:
                parts[part_numbers[future]] = future.result()
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{out} cannot be written ({error}); free some disk space and run the same command again"
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return [part for part in parts if part is not None]


def _check_free_space(out: epath.Path, needed: int) -> None:
    """Raises UserError if the disk cannot hold `needed` bytes less those that earlier attempts have written."""
    if bucket_files.is_bucket_path(out):
        return
    needed -= sum(path.stat().st_size for path in Path(out / WORK_FOLDER).glob("*.array_record"))
    folder = next(path for path in (Path(out), *Path(out).parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"--out={out} needs {needed / 1e9:.1f} GB more, but its disk has only {free / 1e9:.1f} GB left; free some "
            "disk space, or give another --out or a smaller --size"
        )


def _publish_dataset(out: epath.Path, job: Job, parts: Sequence[Part]) -> Manifest:
    """Writes OUT: the shards by the builder, then copies of the text files, and the manifest last."""
    from kacl_jax.data.prepared import builder

    folder = out / WORK_FOLDER
    nonempty = [part for part in parts if part.names]
    if not nonempty:
        raise UserError(f"{job.root}: no image can be read; --mode=verify says why")
    try:
        builder.build_dataset(out, folder, nonempty, job.size)
        for path in layouts.text_file_paths(Path(job.root)):
            epath.Path(path).copy(out / path.name, overwrite=True)
        listing = _join_lines([name for part in nonempty for name in part.names])
        bucket_files.publish_text(out / NAMES_FILE, listing, folder)
        bucket_files.publish_text(out / FACTS_FILE, _facts_table(nonempty), folder)
        shards = tuple(
            Shard(
                f"{DATASET}/{_shard_name(k, len(nonempty))}",
                len(part.names),
                part.bytes,
                part.sha256,
            )
            for k, part in enumerate(nonempty)
        )
        manifest = Manifest(
            job=job,
            images=sum(shard.images for shard in shards),
            resized=sum(part.resized for part in nonempty),
            names_sha256=text_sha256(listing),
            shards=shards,
            broken={file: reason for part in parts for file, reason in part.broken.items()},
            files={file: file_sha256(out / file) for file in (FACTS_FILE, *DESCRIPTION_FILES)},
            made_by={name: importlib.metadata.version(name) for name in _PACKAGES},
        )
        bucket_files.publish_text(out / MANIFEST_FILE, manifest.to_json(), folder)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}); run the same command again") from error
    return manifest


def _facts_table(parts: Sequence[Part]) -> str:
    """image_facts.csv: a row per image, in the order of the records."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["name", *ImageFacts._fields])
    for part in parts:
        writer.writerows([name, *facts] for name, facts in zip(part.names, part.facts, strict=True))
    return table.getvalue()


def _shard_name(k: int, count: int) -> str:
    """The name that tensorflow-datasets gives to shard k of `count`."""
    return f"{DATASET.split('/')[0]}-{TFDS_SPLIT}.array_record-{k:05d}-of-{count:05d}"


def _remove_work_folder(out: epath.Path) -> None:
    if (out / WORK_FOLDER).exists():
        (out / WORK_FOLDER).rmtree()


def _log_result(out: epath.Path, manifest: Manifest) -> None:
    gigabytes = sum(shard.bytes for shard in manifest.shards) / 1e9
    _log.info(
        "%s: %s images at %d px in %d files, %.1f GB. Train with --config.data.root=%s",
        out, f"{manifest.images:,}", manifest.job.size, len(manifest.shards), gigabytes, out
    )  # fmt: skip
    for file, reason in manifest.broken.items():
        _log.warning("left out, cannot be read: %s %s", file, reason)


def _log_grey_problems(parts: Sequence[Part]) -> None:
    """Warns now of a grey range that --mode=verify would report later."""
    problems = Problems()
    names_and_facts = (pair for part in parts for pair in zip(part.names, part.facts, strict=True))
    check_grey({name: ImageFacts(*facts) for name, facts in names_and_facts}, problems)
    for problem in problems.all():
        _log.warning(str(problem))


class _Progress:
    """A progress bar on a terminal; without one, a log line after every tenth of the images."""

    def __init__(self, total: int, size: int) -> None:
        self._bar = tqdm(total=total, unit="image", desc=f"Preparing at {size} px", disable=None)
        self._total, self._done, self._lock = total, 0, threading.Lock()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def skip(self, images: int) -> None:
        """Starts the count at `images`, which an earlier run has finished."""
        self._done = self._bar.initial = self._bar.n = images
        if images:
            _log.info("Resuming: %s of %s images are finished.", f"{images:,}", f"{self._total:,}")

    def count_image(self) -> None:
        """Adds one image to the count. Safe to use from threads."""
        with self._lock:
            self._done += 1
            self._bar.update(1)
            tenth = self._done * 10 // self._total
            if self._bar.disable and tenth > (self._done - 1) * 10 // self._total:
                _log.info("Prepared %s of %s images.", f"{self._done:,}", f"{self._total:,}")


def _join_lines(names: Sequence[str]) -> str:
    return "".join(f"{name}\n" for name in names)


if __name__ == "__main__":
    sys.exit(main())
