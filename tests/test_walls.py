"""The walls of the house: which folder may import which, and that no config key is read by nobody."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kacl_jax import config as config_keys

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "kacl_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# A folder (or a file of the top level) → what it may import. Each row names rows above it only, so imports go one way.
# CONTRIBUTING.md shows the same table.
MAY_IMPORT = {
    "runtime": "",
    "images": "runtime",
    "data": "images, runtime",
    "models": "runtime",
    "radiomics": "images, runtime",
    "config": "models, radiomics, runtime",
    "step": "models, radiomics, runtime",
    "feedback": "radiomics, runtime",
    "evaluation": "data, images, runtime, step",
    "fusion": "evaluation, feedback, images, radiomics, runtime",
    "report": "config, data, evaluation, fusion, radiomics, runtime, step",
    "train": "config, data, evaluation, feedback, fusion, images, models, radiomics, report, runtime, step",
    "predict": "evaluation, fusion, images, radiomics, report, runtime, step, train",
    "convert": "data, images, runtime",
    "sweep": "config, data, evaluation, models, report, runtime",
    "prepare.py": "data, images, runtime",
    "main.py": "config, data, evaluation, runtime, train",
}
# What concerns the machine and nothing of the method; a new file here needs that reason.
RUNTIME = {
    "bucket_files",
    "clusters",
    "compilation",
    "connection",
    "devices",
    "errors",
    "files",
    "huge_pages",
    "jax_private",
    "output",
    "piped_process",
    "process_end",
    "processes",
    "progress",
    "provenance",
    "sealed_json",
    "signals",
    "workdir",
}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of all modules that a file imports anywhere, and of what it takes from them."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def rooms_that_import(package: str) -> set[str]:
    return {
        room_of(path)
        for path in FILES
        if any(name == package or name.startswith(package + ".") for name in imports(path))
    }


def test_every_text_file_is_utf8() -> None:
    """Whatever the locale says: a file that one machine wrote must read on another."""
    locale_decides = []
    for path in FILES:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            named = {keyword.arg: keyword.value for keyword in call.keywords}
            words = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
            opens = call.func.attr == "open" and not any("b" in str(word) for word in words)
            reads = call.func.attr in ("read_text", "write_text") and len(call.args) < 2
            if ((opens and words) or reads or "text" in named) and "encoding" not in named:
                locale_decides.append(f"{path.name}:{call.lineno} {ast.unparse(call)[:60]}")
    assert not locale_decides


def test_imports_go_one_way() -> None:
    rooms = list(MAY_IMPORT)
    assert {room_of(path) for path in FILES} - {"__init__.py", "__main__.py"} == set(rooms)
    for place, (room, allowed) in enumerate(MAY_IMPORT.items()):
        assert set(filter(None, allowed.split(", "))) <= set(rooms[:place]), room
    known = {room.removesuffix(".py"): room for room in rooms}
    wrong = []
    for path in FILES:
        room = room_of(path)
        for name in imports(path):
            package, _, rest = name.partition(".")
            other = known.get(rest.split(".")[0])
            # Only the package's own __init__.py, which is the door of Python's users, is not in the table.
            free = {None, room, *MAY_IMPORT.get(room, "predict").split(", ")}
            if package == "kacl_jax" and other not in free:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_the_contributors_read_the_same_table() -> None:
    rows = re.findall(
        r"^\| `([a-z]+(?:\.py|/))` \|.*\| ([a-z, ]*)\|$",
        (REPO / "CONTRIBUTING.md").read_text(),
        re.M,
    )
    assert {room.rstrip("/"): allowed.strip() for room, allowed in rows} == MAY_IMPORT


def test_the_machines_room_is_no_drawer() -> None:
    assert {path.stem for path in (PACKAGE / "runtime").glob("*.py")} == RUNTIME | {"__init__"}
    names = {part for path in FILES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & {"utils", "util", "common", "base", "registry", "helpers", "misc"}


def test_each_library_has_one_room() -> None:
    assert rooms_that_import("orbax") == {"train"}
    assert rooms_that_import("grain") == {"data"}
    assert rooms_that_import("tensorflow_datasets") == {"data"}


def test_what_jax_keeps_private_has_one_door() -> None:
    users = [p.name for p in FILES if any(n.startswith("jax._src") for n in imports(p))]
    assert users == ["jax_private.py"]


def test_no_program_asks_which_device_traces_it() -> None:
    """`extraction.py` asks for the device that it is about to run on."""
    asks = [path.name for path in FILES if "default_backend" in path.read_text(encoding="utf-8")]
    assert asks == ["extraction.py"]


def test_leaves_never_see_a_config() -> None:
    assert rooms_that_import("ml_collections") <= {"config", "train", "sweep", "main.py"}


def test_what_workers_and_readers_import_is_free_of_jax() -> None:
    code = (
        "import sys; import kacl_jax, kacl_jax.radiomics.host, kacl_jax.feedback.worker, "
        "kacl_jax.feedback.visibility, kacl_jax.feedback.feature_cache, kacl_jax.data.records, "
        "kacl_jax.data.splits, kacl_jax.data.batches, kacl_jax.data.phantom.demo, "
        "kacl_jax.evaluation.metrics, kacl_jax.evaluation.predictions, kacl_jax.sweep.page, "
        "kacl_jax.fusion.measuring, kacl_jax.fusion.scores, "
        "kacl_jax.sweep.__main__, kacl_jax.convert.__main__, kacl_jax.main; print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_nothing_is_unpickled() -> None:
    """Class names from a weights file are looked up in a fixed table; nothing else may unpickle."""
    banned = ("pickle.load(", "pickle.loads(", "allow_pickle", "torch.load", "eval(", "exec(")
    found = [(path.name, word) for path in FILES for word in banned if word in path.read_text()]
    assert not found


def test_no_large_file_is_tracked() -> None:
    """Data, weights and caches do not belong into the repository."""
    if not (REPO / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(
        ["git", "-C", str(REPO), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    paths = [REPO / name for name in listed.stdout.split("\0") if name]
    assert paths
    assert not [path.name for path in paths if path.is_file() and path.stat().st_size > 1_000_000]


def test_every_config_key_is_read() -> None:
    """As `loss.box_weight` after anything, or `config.seed`, outside config/'s own defaults and checks."""
    read: set[tuple[str, str]] = set()
    for path in FILES:
        if room_of(path) == "config":
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                read.add((name, node.attr))
    groups_read_whole = {"augment", "loss"}  # handed over as keyword arguments in one go
    for key in config_keys.flatten(config_keys.default()):
        group, _, leaf = key.rpartition(".")
        owners = [group] if group else ["config", "c"]
        assert group in groups_read_whole or any((owner, leaf) in read for owner in owners), (
            f"config.{key} is read by nobody"
        )
    assert {("config", group) for group in groups_read_whole} <= read
