"""Every number, interval and p-value of a sweep that a page states is the one in docs/evidence."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from kacl_jax.evaluation.number_format import p_value

REPO = Path(__file__).resolve().parents[1]
COLUMNS = {
    "AUROC [95 %]": "auroc",
    "AUROC": "auroc",
    "AUPRC": "auprc",
    "IoU above 0.1": "iou_0.1",
    "IoU > 0.1": "iou_0.1",
    "> 0.3": "iou_0.3",
    "> 0.5": "iou_0.5",
}
# Per page, its tables in their order: the evidence, then the rows, each an arm or an arm and its baseline.
TABLES = {
    "README.md": [("nih", "focal, kacl, simclr, guided_kacl, prior_map")],
    "docs/results.md": [
        (
            "nih",
            "focal, kacl, kacl_random_roi, simclr, guided_focal, guided_kacl, guided_kacl_random_roi, prior_map, "
            "kacl − focal, kacl − kacl_random_roi, simclr − focal, simclr − kacl, simclr − prior_map, "
            "guided_kacl − guided_focal, guided_kacl − guided_kacl_random_roi, guided_kacl − prior_map",
        )
    ],
    "docs/experiment.md": [
        (
            "nih",
            "focal, kacl, kacl_random_roi, kacl_whole_image, simclr, prior_map, kacl − focal, simclr − focal, "
            "simclr − kacl, focal − prior_map, kacl − prior_map, kacl_random_roi − prior_map, "
            "kacl_whole_image − prior_map, simclr − prior_map, kacl − kacl_random_roi, kacl_random_roi − focal, "
            "kacl_whole_image − kacl",
        ),
        ("nih", "kacl_truth_roi, kacl_truth_roi − kacl, kacl_truth_roi − prior_map"),
        (
            "nih",
            "guided_focal, guided_kacl, guided_kacl_random_roi, prior_map, guided_focal − prior_map, "
            "guided_kacl − prior_map, guided_kacl_random_roi − prior_map, guided_kacl − guided_focal, "
            "guided_kacl − guided_kacl_random_roi, guided_kacl_random_roi − guided_focal",
        ),
        (
            "nih",
            "guided_kacl_cam_roi, guided_simclr, guided_kacl_cam_roi − guided_kacl, "
            "guided_kacl_cam_roi − guided_kacl_random_roi, guided_kacl_cam_roi − prior_map, "
            "guided_simclr − guided_focal, guided_simclr − guided_kacl, guided_simclr − prior_map",
        ),
        (
            "nih",
            "guided_focal_share20, guided_kacl_share20, guided_kacl_share20 − guided_focal_share20, "
            "guided_focal_share20 − guided_focal, guided_focal_share20 − prior_map, guided_kacl_share20 − prior_map",
        ),
        (
            "nih",
            "guided_focal_share20_weight.02, guided_kacl_share20_weight.02, "
            "guided_kacl_share20_weight.02 − guided_focal_share20_weight.02, "
            "guided_focal_share20_weight.02 − guided_focal_share20, guided_focal_share20_weight.02 − prior_map, "
            "guided_kacl_share20_weight.02 − prior_map",
        ),
    ],
    "docs/phantom.md": [
        (
            "phantom",
            "focal, kacl, kacl_random_roi, simclr, guided_focal, guided_kacl, guided_kacl_random_roi, prior_map",
        ),
        (
            "phantom",
            "focal − prior_map, guided_focal − prior_map, kacl − focal, kacl − kacl_random_roi, simclr − focal, "
            "simclr − kacl, guided_kacl − guided_focal, guided_kacl − guided_kacl_random_roi",
        ),
        (
            "phantom_12",
            "focal, kacl, kacl_random_roi, simclr, focal − prior_map, kacl − focal, kacl − kacl_random_roi, "
            "kacl_random_roi − focal, simclr − focal, simclr − kacl",
        ),
    ],
}
OTHER_TABLES = r"how the map is read|fold 0 of 5|share of the boxes"  # not a sweep's
PAGES = tuple(TABLES)


@lru_cache
def evidence(folder: str) -> list[dict[str, str]]:
    with (REPO / "docs/evidence" / folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def written(value: float) -> str:
    """With three digits, and without the sign of a zero."""
    text = f"{value:.3f}"
    return "0.000" if float(text) == 0 else text


def numbers(folder: str, name: str, metric: str) -> list[str]:
    """Of an arm: value, standard deviation and both ends of the interval; of a difference without the second."""
    arm, _, baseline = name.partition(" − ")
    row = next(
        row
        for row in evidence(folder)
        if (row["arm"], row["metric"]) == (arm, metric) and baseline in ("", row["baseline"])
    )
    keys = ["difference", "difference_ci_low", "difference_ci_high"]
    keys = keys if baseline else ["value", "sd", "ci_low", "ci_high"]
    return [written(float(row[key])) for key in keys if row[key]]


def tables(page: str) -> Iterator[list[list[str]]]:
    """The tables of a page with an IoU column that show a sweep: rows of stripped cells."""
    for block in re.findall(r"(?:^\|.*\n)+", (REPO / page).read_text(), re.MULTILINE):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
        if "IoU" in block and rows[0][-1] in COLUMNS and not re.search(OTHER_TABLES, rows[0][0]):
            yield rows


def numbers_in(cell: str) -> list[str]:
    return [written(float(x.replace("−", "-"))) for x in re.findall(r"[−+]?\d+\.\d+", cell)]


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_a_page_are_the_evidences(page: str) -> None:
    """A cell states the value alone, or the value with the first or all of what belongs to it."""
    found = list(tables(page))
    assert len(found) == len(TABLES[page])
    for (head, _, *rows), (folder, names) in zip(found, TABLES[page], strict=True):
        for row, name in zip(rows, names.split(", "), strict=True):
            for column, cell in zip(head[1:], row[1:], strict=True):
                if cell:
                    expected = numbers(folder, name, COLUMNS[column])
                    assert numbers_in(cell) in (expected, expected[:1], expected[:2]), (name, cell)


@pytest.mark.parametrize("page", PAGES)
def test_the_p_values_of_a_page_are_the_evidences(page: str) -> None:
    """Each "p … , after Holm …" is a pair of one row."""
    text = " ".join((REPO / page).read_text().split())
    rows = [row for folder, _ in TABLES[page] for row in evidence(folder) if row["p"]]
    pairs = {tuple(p_value(float(row[key])) for key in ("p", "p_holm")) for row in rows}
    stated = re.findall(r"\bp (< 0\.\d+|0\.\d+)", text)
    with_holm = re.findall(
        r"\bp (< 0\.\d+|0\.\d+), after Holm[a-z ]* (< 0\.\d+|0\.\d+|1\.000)", text
    )
    assert len(stated) == len(with_holm)  # no p-value without its correction
    assert set(with_holm) <= pairs


FUSION_TABLES = {
    "fusion.csv": (("network", "radiomics", "image", "both"), ("both-network", "both-image")),
    "second_image_model.csv": (
        ("network", "image", "both", "two images", "all"),
        ("two images-image", "both-two images", "all-two images"),
    ),
}


@pytest.mark.parametrize("table", FUSION_TABLES)
def test_the_tables_of_fusion_are_the_evidences(table: str) -> None:
    """docs/fusion.md has every arm."""
    halves = (REPO / "docs/fusion.md").read_text().split("### A second image model")
    text = halves[list(FUSION_TABLES).index(table)]
    levels, pairs = FUSION_TABLES[table]
    for row in fusion_rows(table):
        names = [*levels]
        for pair in pairs:
            names += [pair, f"{pair}_ci_low", f"{pair}_ci_high"]
        (line,) = re.findall(rf"^\| {row['arm']} \|.*$", text, re.MULTILINE)
        assert numbers_in(line.split("|", 3)[3]) == [written(float(row[name])) for name in names]


def test_the_readme_says_what_fusion_adds() -> None:
    (stated,) = re.findall(r"\[Fusion\].*", (REPO / "README.md").read_text())
    first, second = fusion_rows("fusion.csv")[0], fusion_rows("second_image_model.csv")[0]
    values = [*(first[name] for name in ("network", "both", "image")), second["two images"]]
    assert numbers_in(stated) == [written(float(value)) for value in values]


def fusion_rows(table: str) -> list[dict[str, str]]:
    with (REPO / "docs/evidence/nih" / table).open(newline="") as file:
        return list(csv.DictReader(file))
