"""A data root → the same root prepared: every image decoded and resized once, to be read without decoding.

    python -m kacl_jax.prepare --root=NIH --out=DIR --size=512 [--workers=N]

Train with --config.data.root=DIR. With --size equal to config.data.image_size the batches are those of the PNG files,
bit for bit. Stop it whenever you like: the same command goes on, and the result does not show it. DIR may be a bucket
path (gs://…); to train from there, copy it to a disk.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import signal
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

from kacl_jax.data import nih, tables
from kacl_jax.data.prepared.reader import (
    DATASET,
    MANIFEST,
    NAMES,
    SPLIT,
    WORK,
    Job,
    Manifest,
    Shard,
)
from kacl_jax.runtime import bucket_files
from kacl_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from kacl_jax.data.prepared.builder import Part

# A part is what a kill can cost a worker; every shard is a file that training holds open.
_SHARD_BYTES, _SHARD_IMAGES = 1 << 28, 1024
_RECORD_BYTES = 512  # of names and ArrayRecord's own, above
_PACKAGES = ("tensorflow-datasets", "array_record", "opencv-python-headless")
_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 a user's mistake, 75 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("absl").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="kacl_jax.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="NIH's folder: images/ and the text files")
    parser.add_argument("--out", required=True, help="a new folder, or gs://BUCKET/FOLDER")
    parser.add_argument("--size", type=int, required=True, help="pixels of a side")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads")
    parser.add_argument(
        "--allow_missing", action="store_true", help="leave out images without a file"
    )
    try:
        prepare(**vars(parser.parse_args(arguments)))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on with what is finished.", file=sys.stderr)
        return 75
    return 0


def prepare(
    *,
    root: str | Path,
    out: str | Path,
    size: int,
    workers: int,
    allow_missing: bool = False,
    shard_bytes: int = _SHARD_BYTES,
) -> Manifest:
    """Makes OUT, goes on with it, or finds it finished.

    Raises:
        UserError: everything that would stop it later, as far as it can be known now: problems of the root, an OUT that
            holds something else, a disk too small.
    """
    if size < 1 or workers < 1:
        raise UserError(f"--size={size} --workers={workers}: both must be at least 1")
    if bucket_files.is_bucket(root):
        raise UserError(
            f"--root={root}: the PNG files are read from a disk; copy them there first "
            f"(gcloud storage cp -r {root} FOLDER)"
        )
    target = bucket_files.opened(str(out), "--out")
    records = nih.read_records(Path(root).expanduser().absolute(), allow_missing=allow_missing)
    if not isinstance(records.images, nih.PngFiles):
        raise UserError(f"{records.root} is itself prepared; give NIH's folder by --root")
    names = [str(name) for name in records.names]
    job = Job(
        str(records.root), size, nih.RESIZE_NAME, records.checksums, _sha256(_lines(names))
    )  # fmt: skip
    finished = _finished(target, job)
    if finished is not None:
        _log.info("%s is already prepared (%s images); nothing to do.", target, finished.images)
        _remove_work(target)
        return finished
    per_part = min(max(1, shard_bytes // (size * size)), _SHARD_IMAGES)
    chunks = [
        records.images.paths[start : start + per_part] for start in range(0, len(names), per_part)
    ]
    _check_disk(target, len(names) * (size * size + _RECORD_BYTES))
    with _claimed(target, job):
        parts = _parts(target, job, chunks, workers)
        manifest = _finish(target, job, parts)
    _remove_work(target)
    _tell(target, manifest)
    return manifest


def _finished(out: epath.Path, job: Job) -> Manifest | None:
    """The manifest of a finished OUT. Refuses an OUT that holds another job or something else."""
    if (out / MANIFEST).exists():
        manifest = Manifest.from_json((out / MANIFEST).read_text(), out / MANIFEST)
        _refuse_other(out, manifest.job, job)
        return manifest
    begun = out / WORK / "job.json"
    if begun.exists():
        _refuse_other(out, Job(**json.loads(begun.read_text())), job)
    elif out.exists() and any(path.name != WORK for path in out.iterdir()):
        raise UserError(f"--out={out} holds other files; give a new folder")
    return None


def _refuse_other(out: epath.Path, there: Job, asked: Job) -> None:
    difference = there.difference(asked)
    if difference:
        raise UserError(f"--out={out} was prepared {difference}; give another folder by --out")


@contextmanager
def _claimed(out: epath.Path, job: Job) -> Iterator[None]:
    """OUT/prepare is there, says what the job is, and on a disk nobody else works in it."""
    work = out / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "job.json").exists():
            bucket_files.write_text(work / "job.json", json.dumps(asdict(job)), work)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written ({error})") from error
    if bucket_files.is_bucket(out):
        yield
        return
    with (work / "job.json").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is preparing {out}; wait for it") from error
        bucket_files.remove_drafts(work)
        yield


def _parts(
    out: epath.Path, job: Job, chunks: Sequence[Sequence[Path]], workers: int
) -> list[Part]:  # fmt: skip
    """Every part, those of an earlier attempt included."""
    from kacl_jax.data.prepared import builder  # imports tensorflow-datasets

    folder, stop = out / WORK, threading.Event()
    total = sum(map(len, chunks))
    with ThreadPoolExecutor(workers) as pool, _Progress(total, job.size) as progress:
        parts = list(pool.map(lambda k: builder.finished_part(folder, k), range(len(chunks))))
        left = [k for k, part in enumerate(parts) if part is None]
        progress.skip(total - sum(len(chunks[k]) for k in left))

        def make(k: int) -> Part:
            return builder.make_part(
                folder,
                k,
                chunks[k],
                root=Path(job.root),
                size=job.size,
                stop=stop,
                progress=progress.one,
            )

        making = {pool.submit(make, k): k for k in left}
        try:
            done, _ = wait(making, return_when=FIRST_EXCEPTION)
            for future in done:
                parts[making[future]] = future.result()
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{out} cannot be written ({error}); free some space and run the same command again"
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return [part for part in parts if part is not None]


def _check_disk(out: epath.Path, needed: int) -> None:
    """Counts what an earlier attempt has finished; before anything is written."""
    if bucket_files.is_bucket(out):
        return
    needed -= sum(path.stat().st_size for path in Path(out / WORK).glob("*.array_record"))
    there = next(path for path in (Path(out), *Path(out).parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"--out={out} needs {needed / 1e9:.1f} GB more and its disk has {free / 1e9:.1f} GB left; free some, or "
            "give another --out or a smaller --size"
        )


def _finish(out: epath.Path, job: Job, parts: Sequence[Part]) -> Manifest:
    """Shards by the builder, the text files beside them, and last of all the manifest."""
    from kacl_jax.data.prepared import builder

    folder = out / WORK
    full = [part for part in parts if part.names]
    if not full:
        raise UserError(f"{job.root}: no image can be read; --mode=verify says why")
    try:
        builder.pack(out, folder, full, job.size)
        for path in tables.text_files(Path(job.root)):
            epath.Path(path).copy(out / path.name, overwrite=True)
        listing = _lines([name for part in full for name in part.names])
        bucket_files.write_text(out / NAMES, listing, folder)
        shards = tuple(
            Shard(
                f"{DATASET}/{_shard_name(k, len(full))}", len(part.names), part.bytes, part.sha256
            )
            for k, part in enumerate(full)
        )
        manifest = Manifest(
            job=job,
            images=sum(shard.images for shard in shards),
            resized=sum(part.resized for part in full),
            names_sha256=_sha256(listing),
            shards=shards,
            broken={file: why for part in parts for file, why in part.broken.items()},
            made_by={name: importlib.metadata.version(name) for name in _PACKAGES},
        )
        bucket_files.write_text(out / MANIFEST, manifest.to_json(), folder)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}); run the same command again") from error
    return manifest


def _shard_name(k: int, of: int) -> str:
    """As tensorflow-datasets names it."""
    return f"{DATASET.split('/')[0]}-{SPLIT}.array_record-{k:05d}-of-{of:05d}"


def _remove_work(out: epath.Path) -> None:
    if (out / WORK).exists():
        (out / WORK).rmtree()


def _tell(out: epath.Path, manifest: Manifest) -> None:
    size = sum(shard.bytes for shard in manifest.shards) / 1e9
    _log.info(
        "%s: %s images at %d px in %d files, %.1f GB. Train with --config.data.root=%s",
        out, f"{manifest.images:,}", manifest.job.size, len(manifest.shards), size, out
    )  # fmt: skip
    for file, why in manifest.broken.items():
        _log.warning("left out, cannot be read: %s %s", file, why)


class _Progress:
    """A bar where somebody looks at the terminal, else a line at every tenth."""

    def __init__(self, total: int, size: int) -> None:
        self._bar = tqdm(total=total, unit="image", desc=f"Preparing at {size} px", disable=None)
        self._total, self._done, self._lock = total, 0, threading.Lock()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def skip(self, images: int) -> None:
        """`images` were finished by an earlier run."""
        self._done = self._bar.initial = self._bar.n = images
        if images:
            _log.info("Going on: %s of %s images are finished.", f"{images:,}", f"{self._total:,}")

    def one(self) -> None:
        """One image more. Safe to use from threads."""
        with self._lock:
            self._done += 1
            self._bar.update(1)
            tenth = self._done * 10 // self._total
            if self._bar.disable and tenth > (self._done - 1) * 10 // self._total:
                _log.info("Prepared %s of %s images.", f"{self._done:,}", f"{self._total:,}")


def _lines(names: Sequence[str]) -> str:
    return "".join(f"{name}\n" for name in names)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
