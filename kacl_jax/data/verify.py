"""The complete check of a data root before any training: everything wrong, at once, with fixes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.data.nih import (
    BrokenImage,
    Problem,
    Problems,
    find_images,
    findings_of,
    read_image,
    read_root,
    report_missing,
)
from kacl_jax.data.prepared import Prepared
from kacl_jax.data.tables import LIST_FILES, Tables

Progress = Callable[[int, int], None]  # (images decoded, images in all)


@dataclass(frozen=True)
class Report:
    """What `check` found; `summary` is JSON-able and also says what is no mistake but notable."""

    problems: list[Problem]
    summary: dict[str, Any]


def check(
    root: Path | str,
    *,
    findings: int = 8,
    progress: Progress | None = None,
) -> Report:
    """Checks text files, lists, boxes, patients and, by decoding each, the images of a root; of a
    prepared root its record files, by their sha256.

    A missing text file does not end the check: what can still be checked is. All images with a
    label row are decoded; if no label row could be read, every PNG file that is there.

    Raises:
        UserError: the root is not there or empty, or `findings` is neither 8 nor 14.
    """
    problems = Problems()
    named = findings_of(findings)
    tables = read_root(root, problems)
    _compare_patients(tables, problems)
    summary = _count(tables, named)
    store = find_images(tables.root, problems)
    absent = sorted(name for name in tables.rows if name not in store)
    report_missing(absent, len(tables.rows), problems)
    if isinstance(store, Prepared):
        summary |= _check_prepared(store, tables, problems, progress)
    else:
        summary |= _check_files(store.files, tables, problems, progress)
    return Report(problems.all(), summary)


def _check_prepared(
    store: Prepared, tables: Tables, problems: Problems, progress: Progress | None
) -> dict[str, Any]:
    """Every record file against its checksum; what was broken when the data were prepared still is."""
    manifest, done = store.manifest, 0

    def read(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(done, manifest.images)

    for name, checksum in manifest.job.tables.items():
        if name in tables.checksums and tables.checksums[name] != checksum:
            fix = "copy the file again, or ignore this if you changed it on purpose"
            problems.add(name, "is not what it was when the data were prepared", fix)
    for error in store.broken.values():
        _report_broken(error, problems)
    store.check_content(problems, read)
    size = manifest.job.size
    return {
        "prepared_from": manifest.job.root,
        "images_prepared": manifest.images,
        "sizes": {f"{size}x{size}": manifest.images},
        "record_files": len(manifest.shards),
        "gigabytes": round(sum(shard.bytes for shard in manifest.shards) / 1e9, 3),
    }


def _check_files(
    files: dict[str, Path],
    tables: Tables,
    problems: Problems,
    progress: Progress | None,
) -> dict[str, Any]:
    wanted = tables.rows if tables.rows else [f for f in files if f.lower().endswith(".png")]
    paths = [files[name] for name in sorted(wanted) if name in files]
    found = {
        "files": len(files),
        "files_without_label_row": len(set(files) - set(tables.rows)),
    }
    return found | _decode_all(paths, problems, progress)


def _report_broken(error: BrokenImage, problems: Problems) -> None:
    fix = "fetch the file again, or leave it out with --config.data.on_error=skip"
    problems.add("images/", "a file cannot be read", fix, f"{error.path.name} {error.why}")


def _compare_patients(tables: Tables, problems: Problems) -> None:
    """No patient may be in both official lists (an image in both is told by the parser)."""
    patients = []
    for name in LIST_FILES:
        rows = (tables.rows.get(image) for image in tables.lists.get(name, ()))
        patients.append({row.patient for row in rows if row is not None})
    for patient in sorted(patients[0] & patients[1]):
        fix = "move all images of a patient to one list; protocols A and B refuse this root"
        what = f"shares patients with {LIST_FILES[0]}"
        problems.add(LIST_FILES[1], what, fix, f"patient {patient}")


def _count(tables: Tables, findings: tuple[str, ...]) -> dict[str, Any]:
    rows = tables.rows
    lists = {name: sum(i in rows for i in images) for name, images in tables.lists.items()}
    unlabelled = [
        (image, finding)
        for image, finding in tables.boxes
        if image in rows and finding not in rows[image].labels
    ]
    return {
        "root": str(tables.root),
        "images": len(rows),
        "patients": len({row.patient for row in rows.values()}),
        "lists": {name: lists[name] for name in LIST_FILES if name in lists},
        "positives": {f: sum(f in row.labels for row in rows.values()) for f in findings},
        "boxes": {f: sum(f == finding for _, finding in tables.boxes) for f in findings},
        "boxed_images": len({image for image, _ in tables.boxes}),
        "boxes_without_positive_label": len(unlabelled),
        "unknown_ages": sum(row.age < 0 for row in rows.values()),
        "views": dict(sorted(Counter(row.view for row in rows.values()).items())),
        "checksums": dict(tables.checksums),
    }


def _decode_all(paths: list[Path], problems: Problems, progress: Progress | None) -> dict[str, Any]:
    shapes: Counter[str] = Counter()
    constant = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, outcome in enumerate(pool.map(_decode, paths), 1):
            if isinstance(outcome, BrokenImage):
                _report_broken(outcome, problems)
            else:
                shapes["{1}x{0}".format(*outcome[0])] += 1
                constant += outcome[1]
            if progress is not None:
                progress(done, len(paths))
    return {"decoded": sum(shapes.values()), "sizes": dict(shapes), "constant_images": constant}


def _decode(path: Path) -> tuple[tuple[int, int], bool] | BrokenImage:
    """((h, w), whether all pixels are equal), or why not."""
    try:
        image = read_image(path)
    except BrokenImage as error:
        return error
    return (image.shape[0], image.shape[1]), bool(np.ptp(image) == 0)


def format_problems(problems: list[Problem]) -> str:
    """How many there are, then one line per problem, numbered."""
    lines = [f"{len(problems)} problem(s):"]
    lines += [f"  {number}. {problem}" for number, problem in enumerate(problems, 1)]
    return "\n".join(lines)


def format_summary(summary: dict[str, Any]) -> str:
    """One line per count, `name: value`, nested counts in one line."""
    lines = []
    for key, value in summary.items():
        if key == "checksums":
            lines += [f"sha256 {digest}  {name}" for name, digest in value.items()]
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
        lines.append(f"{key.replace('_', ' ')}: {value}")
    return "\n".join(lines)
