"""The commands of README and docs exist: files, keys, modes, and the one that CI runs."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from kacl_jax import config as config_keys
from kacl_jax.data.verify import check

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text()
PAGES = [
    REPO / "README.md",
    *sorted((REPO / "docs").glob("*.md")),
    REPO / "docs/evidence/README.md",
]
TEXT = "\n".join(page.read_text() for page in PAGES)


def blocks(text: str) -> list[str]:
    """The contents of fenced blocks, a command in one line."""
    return [
        re.sub(r" \\\n +", " ", block)
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]


COMMANDS = [
    line for block in blocks(README) for line in block.splitlines() if ".venv/bin/python" in line
]


def test_ci_runs_the_readmes_test_command_to_the_letter() -> None:
    (test,) = [line for line in COMMANDS if line.endswith("-m pytest")]
    assert test in (REPO / ".ci" / "run").read_text().splitlines()


def test_the_first_two_commands_need_nothing_before_them() -> None:
    for line in COMMANDS[:2]:
        assert line.startswith(
            "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.lock"
        )


def test_configs_requirements_and_modules_in_commands_exist() -> None:
    for path in re.findall(r"--config=(\S+?\.py)|-r (\S+)", TEXT):
        assert (REPO / (path[0] or path[1])).is_file(), path
    modules = set(
        re.findall(r"(?:-m |`)(kacl_jax\.\w+|(?:benchmarks|analyses)\.\w+)(?=[ `\n])", TEXT)
    )
    assert len(modules) > 10
    for module in modules:
        place = REPO / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module


def test_every_key_that_the_pages_name_is_a_key() -> None:
    keys = config_keys.flatten(config_keys.default())
    groups = {key.split(".")[0] for key in keys if "." in key}
    named = set(re.findall(r"--config\.([a-z_.]+?)(?==)", TEXT)) - {"key"}
    named |= {
        n
        for n in re.findall(r"`([a-z]+\.[a-z_]+)(?:=\w+)?`", TEXT)
        if n.split(".")[0] in groups and not n.endswith((".py", ".csv", ".json"))
    }
    assert len(named) > 10
    assert named <= keys.keys()


def test_files_that_the_pages_link_are_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_x_rays_laid_out_as_the_readme_shows_are_read(tmp_path: Path) -> None:
    """The very rows, and the images."""
    text = (REPO / "docs/data.md").read_text()
    (block,) = (b for b in blocks(text) if b.startswith("images.csv "))
    for part in re.split(r"\n(?=\S)", block.strip()):
        name, text = part.split(maxsplit=1)
        if name.endswith(".csv"):
            (tmp_path / name).write_text("".join(f"{line.strip()}\n" for line in text.splitlines()))
    (tmp_path / "images").mkdir()
    pixels = np.arange(1_000_000, dtype=np.uint8).reshape(1000, 1000)
    for name in ("ap_001.png", "ap_002.jpg"):
        cv2.imwrite(str(tmp_path / "images" / name), pixels)
    report = check(tmp_path, findings="all", uncertain="ignore", official_lists=False)
    assert not report.problems
    assert report.summary["positives"] == {"Cardiomegaly": 1, "Rib fracture": 0}
    assert report.summary["boxes"]["Cardiomegaly"] == 1


def figures(arm: str, metric: str, baseline: str = "") -> list[float]:
    """Value and both ends of its interval, or the difference and its, from the committed table."""
    with (REPO / "docs/evidence/nih/sweep.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["arm"], row["metric"]) == (arm, metric)]
    if baseline:
        rows = [row for row in rows if row["baseline"] == baseline]
        return [
            float(rows[0][n]) for n in ("difference", "difference_ci_low", "difference_ci_high")
        ]
    return [float(rows[0][name]) for name in ("value", "ci_low", "ci_high")]


def test_the_main_finding_is_the_evidences() -> None:
    finding = README[README.index("**What we found:**") : README.index("**What helps")]
    told = [float(x.replace("−", "-")) for x in re.findall(r"[−+]?\d\.\d+", finding)]
    with_loop, without = figures("kacl", "auroc")[0], figures("focal", "auroc")[0]
    expected = [with_loop, without, *figures("kacl", "auroc", "focal")]
    assert told == pytest.approx([round(x, 3) for x in expected])


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if len(line) > 120]
    for block in re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE):
        assert not [line for line in block.splitlines() if len(line) > 110]
