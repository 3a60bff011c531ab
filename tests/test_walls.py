"""The walls of the house: who may import whom, and that no config key is read by nobody."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from kacl_jax import config as config_keys

PACKAGE = Path(__file__).resolve().parents[1] / "kacl_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Lower files never import higher ones. A name stands for the file or the whole folder.
ORDER = [
    ("errors", "compilation", "huge_pages", "numerals"),
    ("atomic",),
    ("data", "radiomics", "metrics", "gradcam", "losses", "augment", "layers", "torch_file"),
    ("encoders", "prepare", "optimizer"),
    ("models", "pool", "parallel", "run", "progress", "tally", "config", "roi"),
    ("hosts", "shards", "command_line"),
    (
        "checkpoint",
        "feature_cache",
        "feedback_state",
        "pretrained",
        "fresh",
        "objective",
        "step",
        "probe",
    ),
    ("feedback", "outputs"),
    ("operating", "subgroups", "inference"),
    ("locate",),
    ("evaluate", "terminal"),
    ("results", "tested"),
    ("experiment",),
    ("report",),
    ("score", "saving"),
    ("train",),
    ("main", "sweep"),
]
ALONE = {"data", "radiomics", "metrics", "gradcam", "losses", "augment", "layers", "torch_file"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def uses(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in imports(path))


def test_every_file_has_its_place_in_the_order() -> None:
    placed = {name for level in ORDER for name in level} | {"__init__"}
    assert {part_of(path) for path in FILES} == placed


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    level = {name: i for i, names in enumerate(ORDER) for name in names}
    own = part_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "kacl_jax" or len(parts) < 2 or parts[1] in (own, "__init__"):
            continue
        assert level[parts[1]] <= level[own], f"{own} imports {parts[1]}, which stands above it"


@pytest.mark.parametrize("path", [p for p in FILES if part_of(p) in ALONE], ids=lambda p: p.name)
def test_the_lowest_files_do_not_know_each_other(path: Path) -> None:
    known = {name.split(".")[1] for name in imports(path) if name.startswith("kacl_jax.")}
    assert known <= {part_of(path), "errors"}


def test_only_checkpoint_knows_orbax_and_only_data_knows_grain() -> None:
    assert {part_of(p) for p in FILES if uses(p, "orbax")} == {"checkpoint"}
    assert {part_of(p) for p in FILES if uses(p, "grain")} == {"data"}
    assert {part_of(p) for p in FILES if uses(p, "tensorflow_datasets")} <= {"data"}


def test_leaves_never_see_a_config() -> None:
    allowed = {"config", "command_line", "experiment", "train", "main"}
    assert {part_of(p) for p in FILES if uses(p, "ml_collections")} <= allowed


def test_what_workers_and_readers_import_is_free_of_jax() -> None:
    code = (
        "import sys; import kacl_jax, kacl_jax.radiomics.host, kacl_jax.feedback, kacl_jax.pool, "
        "kacl_jax.feature_cache, kacl_jax.data.nih, kacl_jax.data.splits, kacl_jax.data.pipeline, "
        "kacl_jax.data.phantom, kacl_jax.metrics, kacl_jax.main; print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_nothing_is_unpickled() -> None:
    """Class names from a weights file are looked up in a fixed table; nothing else may unpickle."""
    for path in FILES:
        text = path.read_text()
        for banned in (
            "pickle.load(",
            "pickle.loads(",
            "allow_pickle",
            "torch.load",
            "eval(",
            "exec(",
        ):
            assert banned not in text, (path.name, banned)


def test_no_large_file_is_tracked() -> None:
    """Data, weights and caches do not belong into the repository."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    paths = [root / name for name in listed.stdout.split("\0") if name]
    assert paths
    assert not [path.name for path in paths if path.is_file() and path.stat().st_size > 1_000_000]


def test_no_drawer_for_odds_and_ends() -> None:
    assert not {p.stem for p in FILES} & {
        "utils",
        "util",
        "common",
        "base",
        "registry",
        "helpers",
        "misc",
    }


def test_every_config_key_is_read() -> None:
    """As `loss.box_weight` after anything, or `config.seed`, outside config.py's own defaults and checks."""
    read: set[tuple[str, str]] = set()
    for path in FILES:
        if part_of(path) == "config":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                read.add((name, node.attr))
    groups_read_whole = {"augment"}  # handed over as keyword arguments in one go
    for key in config_keys.flatten(config_keys.default()):
        group, _, leaf = key.rpartition(".")
        owners = [group] if group else ["config", "c"]
        assert group in groups_read_whole or any((owner, leaf) in read for owner in owners), (
            f"config.{key} is read by nobody"
        )
    assert ("config", "augment") in read
