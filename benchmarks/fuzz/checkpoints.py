"""Mutations of a folder of three checkpoints. The oracle is the arrays as they were saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.fuzz.finished import ask, made_once, row
from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.scene import Kind, Random, take, write
from benchmarks.fuzz.table_lines import damage

STEPS = (4, 8, 12)
_NEWEST = f"{STEPS[-1]:08d}"
_NAMES = (
    *(
        "00000099",
        "000000012",
        "0000000000099",
        "-0000001",
        "0000001x",
        "1e6",
        "١٢٣٤٥٦٧٨",
        "\udcff",
    ),
    *("00000099.orbax-checkpoint-tmp-7", "notes.txt", ".DS_Store", "best"),
)


def _arrays(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    return {
        "state/params/w": random.normal(size=(5, 7)).astype(np.float32),
        "state/step": np.array(step, np.int32),
        "state/key": random.integers(0, 2**32, 2, np.uint32),
        "feedback/ready": random.random(30) < 0.5,
        "feedback/late": np.zeros((0, 3), np.float32),
    }


def _meta(step: int) -> dict[str, Any]:
    return {"tally": {"best_step": STEPS[0], "steps": step}, "data": [{"place": step}]}


def _make(folder: Path) -> None:
    from kacl_jax.train import checkpoint

    checkpoints = checkpoint.Checkpoints(folder)
    for step in STEPS:
        checkpoints.save(step, _arrays(step), _meta(step), best=STEPS[0])


_files = made_once(_make)


def _saved(step: int) -> tuple[Any, ...]:
    """What comes out where this step's checkpoint is the newest intact one, and every newer one is named."""
    return "all newer ones are named", step, _arrays(step), _meta(step), "the next one is saved"


def _go_on(folder: Path) -> tuple[Any, ...]:
    """As a run that resumes and saves once more. Whether it names the checkpoints that it leaves out is part of it."""
    from kacl_jax.train import checkpoint

    checkpoints = checkpoint.Checkpoints(folder)
    steps = checkpoints.steps()
    restored = checkpoints.restore_latest()
    if restored is None:
        return ("there is none",)
    left_out = [f"{step:08d}" for step in steps if step > restored.step]
    named = all(any(name in text for text in checkpoints.damaged) for name in left_out)
    step, meta = restored.step + 1, restored.meta
    checkpoints.save(step, restored.arrays, meta, best=restored.step)
    again = checkpoint.Checkpoints(folder).restore_latest()
    saved = again is not None and again.step == step
    return (
        "all newer ones are named" if named else f"unnamed: {left_out}",
        restored.step,
        restored.arrays,
        meta,
        "the next one is saved" if saved else "the next one is lost",
    )


def _case(what: str, folder: Path, *steps: int, may_refuse: bool = False) -> Case:
    truths = [_saved(step) for step in steps]
    question = lambda: _go_on(folder / "checkpoints")  # noqa: E731
    return Case(what, lambda: ask(question, names="checkpoints"), [row(*truths, may_refuse=may_refuse)])  # fmt: skip


def _byte(random: Random, folder: Path, turn: int) -> Case:
    """Bytes of a file of the newest one: it, or the one before."""
    files = dict(_files())
    name = take([name for name in files if name.startswith(_NEWEST)], turn)
    what, files[name] = damage(random, files[name], int(random.integers(4)))
    write(folder / "checkpoints", files)
    return _case(f"{name}: {what}", folder, *STEPS[1:])


def _every_byte(random: Random, folder: Path, turn: int) -> Case:
    """A file of each checkpoint is damaged: any of them, or a sentence."""
    files = dict(_files())
    inner = take([name for name in files if name.startswith(_NEWEST)], turn).partition("/")[2]
    names = [
        name
        for name in files
        if name.partition("/")[2] == inner or (inner not in name and name.endswith("_METADATA"))
    ]
    for name in names:
        _, files[name] = damage(random, files[name], int(random.integers(4)))
    write(folder / "checkpoints", files)
    return _case(f"bytes of {', '.join(names)[:120]}", folder, *STEPS, may_refuse=True)


def _missing(random: Random, folder: Path, turn: int) -> Case:
    """A file of the newest one is not there, is empty, is a folder, or is that of another step or another file."""
    files = dict(_files())
    name = take([name for name in files if name.startswith(_NEWEST)], turn)
    way = str(random.choice(["missing", "empty", "a folder", "of another step", "another file"]))
    data = files.pop(name)
    if way == "empty":
        files[name] = b""
    elif way == "a folder":
        files[f"{name}/inside"] = data
    elif way == "of another step":
        files[name] = files.get(name.replace(_NEWEST, f"{STEPS[1]:08d}"), data)
    elif way == "another file":
        files[name] = files[str(random.choice([other for other in files if _NEWEST in other]))]
    write(folder / "checkpoints", files)
    return _case(f"{name} is {way}", folder, *STEPS[1:])


def _copied(random: Random, folder: Path, turn: int) -> Case:
    """A checkpoint under the name of another step is not the checkpoint of that step."""
    place = folder / "checkpoints"
    write(place, _files())
    old, middle, new = (place / f"{step:08d}" for step in STEPS)
    later = place / f"{int(random.integers(13, 10**8)):08d}"
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "the newest is copied": (lambda: shutil.copytree(new, later), 12),
        "the newest is renamed": (lambda: new.rename(later), 8),
        "an older one is copied": (lambda: shutil.copytree(old, later), 12),
        "an older one lies over the newest": (lambda: (shutil.rmtree(new), shutil.copytree(middle, new)), 8),
        "a link to the newest": (lambda: later.symlink_to(new), 12),
        "the last two are exchanged": (lambda: (new.rename(later), middle.rename(new), later.rename(middle)), 4),
    }  # fmt: skip
    way = take(ways, turn)
    ways[way][0]()
    return _case(f"{way} ({later.name})", folder, ways[way][1])


def _stray(random: Random, folder: Path, turn: int) -> Case:
    """Something in the folder that is no checkpoint costs nothing."""
    place = folder / "checkpoints"
    write(place, _files())
    name = str(random.choice(_NAMES))
    ways: dict[str, Callable[[], object]] = {
        "file": lambda: (place / name).write_bytes(b"\0"),
        "folder": lambda: (place / name).mkdir(),
        "folder with a file": lambda: write(place, {f"{name}/{name}": b"{}"}),
        "link to nothing": lambda: (place / name).symlink_to("nowhere"),
        "link to itself": lambda: (place / name).symlink_to(name),
        "link to a folder": lambda: (place / name).symlink_to(folder),
    }
    way = take(ways, turn)
    ways[way]()
    return _case(f"{name!a}, a {way}", folder, STEPS[-1])


def _not_finite(random: Random, folder: Path, turn: int) -> Case:
    """The newest holds NaN or infinity, with a right digest."""
    from kacl_jax.train import checkpoint

    place = folder / "checkpoints"
    write(place, _files())
    value = take([np.nan, np.inf, -np.inf], turn)  # type: ignore[type-var]
    arrays = _arrays(STEPS[-1])
    arrays["state/params/w"].flat[int(random.integers(35))] = value
    with mock.patch.object(checkpoint, "_non_finite", return_value="", create=True):
        checkpoint.Checkpoints(place).save(STEPS[-1], arrays, _meta(STEPS[-1]), best=STEPS[0])
    return _case(f"{value} in the newest", folder, STEPS[1])


KINDS: dict[str, Kind] = {
    "checkpoint_byte": _byte,
    "checkpoint_every_byte": _every_byte,
    "checkpoint_missing": _missing,
    "checkpoint_copied": _copied,
    "checkpoint_stray": _stray,
    "checkpoint_not_finite": _not_finite,
}
