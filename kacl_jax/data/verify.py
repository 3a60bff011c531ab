"""Checks a complete data root before training (--mode=verify): lists every problem with its fix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.data.box_checks import check_box_frame, check_own_boxes
from kacl_jax.data.check_picture import choose_sample, draw_check_picture
from kacl_jax.data.image_source import open_image_store
from kacl_jax.data.problems import Problem, Problems
from kacl_jax.data.records import finding_names, missing_images, read_checked_tables
from kacl_jax.data.tables import Progress, RootCheck, Tables
from kacl_jax.images.reader import MAX_MEGAPIXELS


@dataclass(frozen=True)
class Report:
    """The result of `check`; `summary` is JSON-able and also has remarkable counts that are no mistakes.

    non_fatal: problems that do not stop the run, because the config allows them.
    picture: up to twelve images with their boxes, uint8 [h w 3] (BGR); None if no image could be read.
    """

    problems: list[Problem]
    non_fatal: list[Problem]
    summary: dict[str, Any]
    picture: np.ndarray | None


def check(
    root: Path | str,
    *,
    findings: int | str = 8,
    uncertain: str = "refuse",
    allow_missing: bool = False,
    skip_broken: bool = False,
    official_lists: bool = True,
    max_megapixels: int = MAX_MEGAPIXELS,
    progress: Progress | None = None,
) -> Report:
    """Checks text files, lists, boxes, patients and images of a root. A missing text file stops no other check.

    What is checked of the images depends on the kind of root; see the `verify` of the stores.

    Args:
        allow_missing: the run leaves out images without a file. skip_broken: it leaves out broken files.
        official_lists: the protocol uses the official lists, so no patient may be in both of them.
        max_megapixels: an image with more pixels counts as broken.

    Raises:
        UserError: the root does not exist or is empty, or does not know one of the `findings`.
    """
    problems, non_fatal = Problems(), Problems()
    tables = read_checked_tables(root, problems, uncertain)
    names = finding_names(findings, tables)
    _compare_list_patients(tables, problems if official_lists else non_fatal)
    summary = _summarise_tables(tables, names)
    store = open_image_store(tables.root, problems, max_megapixels)
    missing_images(tables, store, problems, non_fatal if allow_missing else problems)
    broken_file_problems = non_fatal if skip_broken else problems
    sample = choose_sample(tables, store.names())
    root_check = RootCheck(tables, problems, broken_file_problems, progress, sample)
    summary |= store.verify(root_check)
    check_box_sizes = check_own_boxes if tables.own_frames else check_box_frame
    check_box_sizes(tables, root_check.sizes, problems)
    return Report(problems.all(), non_fatal.all(), summary, draw_check_picture(root_check))


def _compare_list_patients(tables: Tables, problems: Problems) -> None:
    """Reports patients who are in both parts of the official split (the parser reports images in both)."""
    if not tables.lists:
        return
    patients = []
    for name in tables.list_names:
        rows = (tables.rows.get(image) for image in tables.lists.get(name, ()))
        patients.append({row.patient for row in rows if row is not None})
    first, second = tables.list_names
    shared = patients[0] & patients[1]
    for patient in sorted(shared, key=lambda name: (len(name), name)):
        fix = "move all images of a patient to one part; protocols A and B refuse this root"
        problems.add(second, f"shares patients with {first}", fix, f"patient {patient}")


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
        "lists": {name: lists[name] for name in tables.list_names if name in lists},
        "positives": {f: sum(f in row.labels for row in rows.values()) for f in findings},
        "boxes": {
            f: sum(len(boxes) for (_, finding), boxes in tables.boxes.items() if finding == f)
            for f in findings
        },
        "boxed_images": len({image for image, _ in tables.boxes}),
        "boxes_without_positive_label": len(unlabelled),
        "unknown_ages": sum(row.age < 0 for row in rows.values()),
        "sexes": _counts(row.sex for row in rows.values()),
        "views": _counts(row.view for row in rows.values()),
        "checksums": dict(tables.checksums),
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    """How often each value occurs; of many values the most frequent."""
    return dict(sorted(Counter(values).most_common(8)))


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
