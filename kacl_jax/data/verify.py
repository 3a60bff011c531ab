"""Checks a complete data root before training (--mode=verify): lists every problem with its fix."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kacl_jax.data.nih import (
    NIH_SIDE,
    BrokenImage,
    Problem,
    Problems,
    finding_names,
    open_image_store,
    read_checked_tables,
    read_image,
    report_missing,
)
from kacl_jax.data.prepared.reader import PreparedFolder
from kacl_jax.data.tables import BOX_FILE, LIST_FILES, Tables

Progress = Callable[[int, int], None]  # (images decoded, images in all)
_NEARLY_BLACK_LEVEL = 16  # of 255; a 12-bit image in a 16-bit file has grey values up to 15
_MIN_BOXES = 20  # so many boxes do not all lie in one corner by chance


@dataclass(frozen=True)
class Report:
    """The result of `check`; `summary` is JSON-able and also has remarkable counts that are no mistakes.

    non_fatal: problems that do not stop the run, because the config allows them.
    """

    problems: list[Problem]
    non_fatal: list[Problem]
    summary: dict[str, Any]


def check(
    root: Path | str,
    *,
    findings: int = 8,
    allow_missing: bool = False,
    skip_broken: bool = False,
    official_lists: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Checks text files, lists, boxes, patients and images of a root. It decodes every PNG file; of a
    prepared root it compares the sha256 of every record file.

    A missing text file does not stop the other checks. The images with a label row are decoded; if no
    label row can be read, all PNG files are.

    Args:
        allow_missing: the run leaves out images without a file. skip_broken: it leaves out broken files.
        official_lists: the protocol uses the official lists, so no patient may be in both of them.

    Raises:
        UserError: the root does not exist or is empty, or `findings` is neither 8 nor 14.
    """
    problems, non_fatal = Problems(), Problems()
    names = finding_names(findings)
    tables = read_checked_tables(root, problems)
    _compare_list_patients(tables, problems if official_lists else non_fatal)
    summary = _summarise_tables(tables, names)
    store = open_image_store(tables.root, problems)
    missing = sorted(name for name in tables.rows if name not in store)
    report_missing(missing, len(tables.rows), non_fatal if allow_missing else problems)
    broken_file_problems = non_fatal if skip_broken else problems
    if isinstance(store, PreparedFolder):
        summary |= _check_prepared_folder(store, tables, problems, broken_file_problems, progress)
    else:
        summary |= _check_png_files(store.files, tables, problems, broken_file_problems, progress)
        _check_box_frame(tables, summary["sizes"], problems)
    return Report(problems.all(), non_fatal.all(), summary)


def _check_prepared_folder(
    store: PreparedFolder,
    tables: Tables,
    problems: Problems,
    broken_file_problems: Problems,
    progress: Progress | None,
) -> dict[str, Any]:
    """Compares every record file with its checksum; reports the files that were broken during preparing."""
    manifest, done = store.manifest, 0

    def count_images(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(done, manifest.images)

    for name, checksum in manifest.job.tables.items():
        if name in tables.checksums and tables.checksums[name] != checksum:
            fix = "copy the file again, or ignore this if you changed it on purpose"
            problems.add(name, "is not what it was when the data were prepared", fix)
    for error in store.broken.values():
        _report_broken(error, broken_file_problems)
    store.check_content(problems, count_images)
    size = manifest.job.size
    return {
        "prepared_from": manifest.job.root,
        "images_prepared": manifest.images,
        "sizes": {f"{size}x{size}": manifest.images},
        "record_files": len(manifest.shards),
        "gigabytes": round(sum(shard.bytes for shard in manifest.shards) / 1e9, 3),
    }


def _check_png_files(
    files: dict[str, Path],
    tables: Tables,
    problems: Problems,
    broken_file_problems: Problems,
    progress: Progress | None,
) -> dict[str, Any]:
    names = tables.rows if tables.rows else [f for f in files if f.lower().endswith(".png")]
    paths = [files[name] for name in sorted(names) if name in files]
    counts = {
        "files": len(files),
        "files_without_label_row": len(set(files) - set(tables.rows)),
    }
    return counts | _decode_images(paths, problems, broken_file_problems, progress)


def _report_broken(error: BrokenImage, problems: Problems) -> None:
    fix = "fetch the file again, or leave it out with --config.data.on_error=skip"
    problems.add("images/", "a file cannot be read", fix, f"{error.path.name} {error.reason}")


def _compare_list_patients(tables: Tables, problems: Problems) -> None:
    """Reports patients who are in both official lists (the parser reports images in both)."""
    patients = []
    for name in LIST_FILES:
        rows = (tables.rows.get(image) for image in tables.lists.get(name, ()))
        patients.append({row.patient for row in rows if row is not None})
    for patient in sorted(patients[0] & patients[1]):
        fix = "move all images of a patient to one list; protocols A and B refuse this root"
        what = f"shares patients with {LIST_FILES[0]}"
        problems.add(LIST_FILES[1], what, fix, f"patient {patient}")


def _summarise_tables(tables: Tables, findings: tuple[str, ...]) -> dict[str, Any]:
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


def _decode_images(
    paths: list[Path], problems: Problems, broken_file_problems: Problems, progress: Progress | None
) -> dict[str, Any]:
    shapes: Counter[str] = Counter()
    constant = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = zip(paths, pool.map(_decode_image, paths), strict=True)
        for done, (path, outcome) in enumerate(outcomes, 1):
            if isinstance(outcome, BrokenImage):
                _report_broken(outcome, broken_file_problems)
            else:
                shapes["{1}x{0}".format(*outcome.shape)] += 1
                constant += outcome.darkest == outcome.brightest
                if outcome.darkest < outcome.brightest <= _NEARLY_BLACK_LEVEL:
                    _report_dark(path, outcome.brightest, problems)
            if progress is not None:
                progress(done, len(paths))
    return {"decoded": sum(shapes.values()), "sizes": dict(shapes), "constant_images": constant}


class _ImageInfo(NamedTuple):
    shape: tuple[int, int]  # h, w
    darkest: int
    brightest: int


def _decode_image(path: Path) -> _ImageInfo | BrokenImage:
    """Size and range of grey values of an image, or the error why it cannot be read."""
    try:
        image = read_image(path)
    except BrokenImage as error:
        return error
    return _ImageInfo((image.shape[0], image.shape[1]), int(image.min()), int(image.max()))


def _report_dark(path: Path, brightest: int, problems: Problems) -> None:
    fix = (
        "scale its grey values to 0–255, or in a 16-bit file to 0–65535 (12 bits in 16 are 0–4095)"
    )
    what = f"a file is nearly black, no grey value above {_NEARLY_BLACK_LEVEL} of 255"
    problems.add("images/", what, fix, f"{path.name} up to {brightest}")


def _check_box_frame(tables: Tables, sizes: dict[str, int], problems: Problems) -> None:
    """Reports boxes that are in pixels of smaller images, not of NIH's frame: all end in its upper left part."""
    sides = [max(map(int, size.split("x"))) for size in sizes]
    ends = [max(x + w, y + h) for x, y, w, h in tables.boxes.values()]
    if len(ends) >= _MIN_BOXES and sides and max(ends) <= max(sides) < NIH_SIDE:
        what = f"all boxes end within {max(sides)} px, as if they were in pixels of the images"
        fix = f"give them in NIH's frame: x and w times {NIH_SIDE} by the image's width, y and h by its height"
        problems.add(BOX_FILE, what, fix)


def format_problems(problems: list[Problem]) -> str:
    """The number of problems, then one numbered line per problem."""
    lines = [f"{len(problems)} problem(s):"]
    lines += [f"  {number}. {problem}" for number, problem in enumerate(problems, 1)]
    return "\n".join(lines)


def format_summary(summary: dict[str, Any]) -> str:
    """One line `name: value` per entry; a nested dictionary takes one line."""
    lines = []
    for key, value in summary.items():
        if key == "checksums":
            lines += [f"sha256 {digest}  {name}" for name, digest in value.items()]
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
        lines.append(f"{key.replace('_', ' ')}: {value}")
    return "\n".join(lines)
