"""The complete check of a data root before any training: everything wrong, at once, with fixes."""

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
    find_images,
    findings_of,
    read_image,
    read_root,
    report_missing,
)
from kacl_jax.data.prepared.reader import Prepared
from kacl_jax.data.tables import BOX_FILE, LIST_FILES, Tables

Progress = Callable[[int, int], None]  # (images decoded, images in all)
_NEARLY_BLACK = 16  # 12 bits in a 16-bit file reach 15 of 255
_ENOUGH_BOXES = 20  # all of them in one corner by chance: no


@dataclass(frozen=True)
class Report:
    """What `check` found; `summary` is JSON-able and also says what is no mistake but notable.

    tolerated: problems that the run would go on with, as it was told to.
    """

    problems: list[Problem]
    tolerated: list[Problem]
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
    """Checks text files, lists, boxes, patients and, by decoding each, the images of a root; of a
    prepared root its record files, by their sha256.

    A missing text file does not end the check: what can still be checked is. All images with a
    label row are decoded; if no label row could be read, every PNG file that is there.

    Args:
        allow_missing, skip_broken: the run would leave images without a file, or with a broken one, out.
        official_lists: the protocol takes its parts from the lists, so that they may share no patient.

    Raises:
        UserError: the root is not there or empty, or `findings` is neither 8 nor 14.
    """
    problems, tolerated = Problems(), Problems()
    named = findings_of(findings)
    tables = read_root(root, problems)
    _compare_patients(tables, problems if official_lists else tolerated)
    summary = _count(tables, named)
    store = find_images(tables.root, problems)
    absent = sorted(name for name in tables.rows if name not in store)
    report_missing(absent, len(tables.rows), tolerated if allow_missing else problems)
    broken = tolerated if skip_broken else problems
    if isinstance(store, Prepared):
        summary |= _check_prepared(store, tables, problems, broken, progress)
    else:
        summary |= _check_files(store.files, tables, problems, broken, progress)
        _check_frame(tables, summary["sizes"], problems)
    return Report(problems.all(), tolerated.all(), summary)


def _check_prepared(
    store: Prepared,
    tables: Tables,
    problems: Problems,
    broken: Problems,
    progress: Progress | None,
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
        _report_broken(error, broken)
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
    broken: Problems,
    progress: Progress | None,
) -> dict[str, Any]:
    wanted = tables.rows if tables.rows else [f for f in files if f.lower().endswith(".png")]
    paths = [files[name] for name in sorted(wanted) if name in files]
    found = {
        "files": len(files),
        "files_without_label_row": len(set(files) - set(tables.rows)),
    }
    return found | _decode_all(paths, problems, broken, progress)


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


def _decode_all(
    paths: list[Path], problems: Problems, broken: Problems, progress: Progress | None
) -> dict[str, Any]:
    shapes: Counter[str] = Counter()
    constant = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = zip(paths, pool.map(_decode, paths), strict=True)
        for done, (path, outcome) in enumerate(outcomes, 1):
            if isinstance(outcome, BrokenImage):
                _report_broken(outcome, broken)
            else:
                shapes["{1}x{0}".format(*outcome.shape)] += 1
                constant += outcome.darkest == outcome.brightest
                if outcome.darkest < outcome.brightest <= _NEARLY_BLACK:
                    _report_dark(path, outcome.brightest, problems)
            if progress is not None:
                progress(done, len(paths))
    return {"decoded": sum(shapes.values()), "sizes": dict(shapes), "constant_images": constant}


class _Decoded(NamedTuple):
    shape: tuple[int, int]  # h, w
    darkest: int
    brightest: int


def _decode(path: Path) -> _Decoded | BrokenImage:
    """What an image is, or why it cannot be read."""
    try:
        image = read_image(path)
    except BrokenImage as error:
        return error
    return _Decoded((image.shape[0], image.shape[1]), int(image.min()), int(image.max()))


def _report_dark(path: Path, brightest: int, problems: Problems) -> None:
    fix = (
        "scale its grey values to 0–255, or in a 16-bit file to 0–65535 (12 bits in 16 are 0–4095)"
    )
    what = f"a file is nearly black, no grey value above {_NEARLY_BLACK} of 255"
    problems.add("images/", what, fix, f"{path.name} up to {brightest}")


def _check_frame(tables: Tables, sizes: dict[str, int], problems: Problems) -> None:
    """Boxes in pixels of smaller images pass as boxes of NIH's frame: all of them in its upper left part."""
    sides = [max(map(int, size.split("x"))) for size in sizes]
    ends = [max(x + w, y + h) for x, y, w, h in tables.boxes.values()]
    if len(ends) >= _ENOUGH_BOXES and sides and max(ends) <= max(sides) < NIH_SIDE:
        what = f"all boxes end within {max(sides)} px, as if they were in pixels of the images"
        fix = f"give them in NIH's frame: x and w times {NIH_SIDE} by the image's width, y and h by its height"
        problems.add(BOX_FILE, what, fix)


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
