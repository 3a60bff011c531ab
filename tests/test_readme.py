"""The commands of README and docs exist: files, keys, modes, and the one that CI runs."""

from __future__ import annotations

import re
from pathlib import Path

from kacl_jax import config as config_keys

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text()
PAGES = [
    REPO / "README.md",
    *sorted((REPO / "docs").glob("*.md")),
    REPO / "docs/evidence/README.md",
]
TEXT = "\n".join(page.read_text() for page in PAGES)
BLOCKS = re.findall(r"```\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if ".venv/bin/python" in line]


def test_ci_runs_the_readmes_test_command_to_the_letter() -> None:
    (test,) = [line for line in COMMANDS if line.endswith("-m pytest")]
    assert test in (REPO / ".ci" / "run").read_text().splitlines()


def test_the_first_two_commands_need_nothing_before_them() -> None:
    for line in COMMANDS[:2]:
        assert line.startswith(
            "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt"
        )


def test_configs_requirements_and_modules_in_commands_exist() -> None:
    for path in re.findall(r"--config=(\S+?\.py)|-r (\S+)", TEXT):
        assert (REPO / (path[0] or path[1])).is_file(), path
    modules = set(re.findall(r"(?:-m |`)(kacl_jax\.\w+|benchmarks\.\w+)(?=[ `\n])", TEXT))
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
        if n.split(".")[0] in groups and not n.endswith(".py")
    }
    assert len(named) > 10
    assert named <= keys.keys()


def test_files_that_the_pages_link_are_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
