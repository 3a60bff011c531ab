"""The command: exit codes, and what a user reads instead of a traceback."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import compile_fast
import cv2
import pytest

from kacl_jax import config as config_keys
from kacl_jax.data.phantom import demo
from kacl_jax.runtime import files, huge_pages
from kacl_jax.runtime.errors import DONE, NON_FINITE, USER_ERROR, WORKDIR_IN_USE
from kacl_jax.runtime.workdir import lock_workdir

REPO = Path(__file__).resolve().parents[1]
NIH = "--config=configs/nih.py"
TINY = (
    "--config=configs/nih.py:pooled",
    "--config.folds=2",
    "--config.data.image_size=64",
    "--config.data.val_fraction=0.2",
    "--config.model.encoder=resnet18",
    "--config.model.pretrained=",
    "--config.model.output_stride=32",
    "--config.train.epochs=1",
    "--config.train.batch_size=12",
    "--config.eval.batch_size=12",
    "--config.eval.bootstrap=20",
    "--config.loss.focal_weight=1.0",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "root"
    demo.write_phantom(path, patients=24, size=64, seed=0)
    return path


def call(
    *flags: str,
    folder: Path = REPO,
    program: tuple[str, ...] = ("-m", "kacl_jax.main"),
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *program, *flags],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(REPO),
            "XLA_FLAGS": compile_fast.xla_flags(),
            **(env or {}),
        },
        capture_output=True,
        text=True,
        timeout=240,
    )


MINE = "from kacl_jax import config\ndef get_config():\n    c = config.default()\n"
CONFIGS = {
    "torn.py": "def get_config(:\n",
    "empty.py": "x = 1\n",
    "key.py": f"{MINE}    c.train.epoch = 3\n    return c\n",
    "lost.py": "import kacl_jx\n",
    "kind.py": f"{MINE}    c.train.epochs = '3'\n    return c\n",
    "number.py": f"{MINE}    c.train.learning_rate = float('1e-4x')\n    return c\n",
}
MISTAKES = [
    ((), "Which config? Give one: --config=configs/demo.py"),
    (
        ("--config=nope.py",),
        "no config file nope.py; choose from: configs/ablations.py, configs/bench.py",
    ),
    (("--config=nope.py", "--config.seed=1"), "no config file nope.py"),
    (("--config=configs",), "no config file configs"),
    (("--config=torn.py",), "torn.py, line 1"),
    (("--config=empty.py",), "defines no function get_config"),
    (("--config=key.py",), "key.py, line 4: there is no key epoch; did you mean epochs?"),
    (("--config=lost.py",), "lost.py, line 1: No module named 'kacl_jx'"),
    (("--config=kind.py",), "kind.py, line 4: Could not override field 'epochs'"),
    (("--config=number.py",), "number.py, line 4: could not convert string to float: '1e-4x'"),
    ((NIH + ":demi",), "no variant 'demi'; it has weak, semi, pooled"),
    ((NIH, "--config.trian.epochs=2"), "--config.trian.epochs; did you mean --config.train.epochs"),
    ((NIH, "--config.train.epoch=2"), "--config.train.epoch; did you mean --config.train.epochs?"),
    ((NIH, "--epochs=2"), "flag 'epochs'; the config key of that name is --config.train.epochs=…"),
    ((NIH, "--config.speed=2", "--config.seed=1"), "There is no key --config.speed"),
    ((NIH, "--config.speed=2"), "All keys with their defaults are in docs/keys.md."),
    ((NIH, "--config.data.root.x=2"), "There is no key --config.data.root.x"),
    ((NIH, "--config.train.epochs=two"), "epochs=two must be a whole number, like the default 20"),
    ((NIH, "--config.train.epochs=2.5"), "epochs=2.5 must be a whole number"),
    ((NIH, "--config.train.learning_rate=fast"), "learning_rate=fast must be a number"),
    ((NIH, "--config.cam.relu=maybe"), "--config.cam.relu=maybe must be True or False"),
    ((NIH, "--mode=tset"), "train|eval|verify"),
    ((NIH, "--wrokdir=x"), "Did you mean: workdir"),
    ((NIH, "train"), "Unknown argument train; options look like --config.fold=1"),
    ((NIH,), "config.data.root is empty"),
    ((NIH, "--config.fold=3"), "protocol A has one test set, so config.fold=3"),
    ((NIH, "--mode=verify"), "config.data.root is empty"),
    ((NIH, "--mode=verify", "--config.data.box_share=0.5"), "protocol A uses no box in training"),
    (
        (NIH + ":pooled", "--mode=verify", "--config.fold=5"),
        "config.fold is 5; with config.folds=5",
    ),
    ((NIH, "--config.data.root=phantom", "--config.protocol=D"), "config.protocol is 'D'"),
    ((NIH, "--config.data.root=/not/there", "--config.model.pretrained="), "/not/there"),
    ((NIH, "--mode=verify", "--config.data.root=/not/there"), "/not/there"),
]


def test_a_mistake_is_told_in_a_sentence(tmp_path: Path) -> None:
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    shutil.copytree(REPO / "configs", tmp_path / "configs")

    def make(flags: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        workdir = tmp_path / "runs" / str(abs(hash(flags)))
        # As good as any value: a process that need not start itself again.
        once = {"GLIBC_TUNABLES": f"{huge_pages.TUNABLE}=0"}
        return call(*flags, f"--workdir={workdir}", folder=tmp_path, env=once)

    with ThreadPoolExecutor(2) as threads:
        all_told = list(threads.map(make, [flags for flags, _ in MISTAKES]))
    for (flags, expected), done in zip(MISTAKES, all_told, strict=True):
        assert done.returncode == USER_ERROR, (flags, done.stderr)
        assert expected in done.stderr, (flags, done.stderr)
        assert "Traceback" not in done.stderr, (flags, done.stderr)
        assert "\\" not in done.stderr, (flags, done.stderr)
        assert len(done.stderr.strip().splitlines()) <= 3, (flags, done.stderr)


def test_several_values_are_refused_at_once(tmp_path: Path) -> None:
    done = call(NIH, "--config.seed=-1", "--config.cam.threshold=2", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == USER_ERROR
    for key in ("config.seed is -1", "config.cam.threshold is 2", "config.data.root is empty"):
        assert key in done.stderr


def test_verify_says_whether_a_root_is_sound(root: Path, tmp_path: Path) -> None:
    flags = ("--mode=verify", f"--config.data.root={root}", f"--workdir={tmp_path / 'w'}")
    # A terminal that lacks the letters must not end the command.
    ascii_only = {"PYTHONIOENCODING": "ascii:strict"}
    sound = call(NIH, "--config.train.batch_size=16", *flags, env=ascii_only)
    assert sound.returncode == DONE, sound.stderr
    assert "No problems found." in sound.stdout
    assert "A-weak (" in sound.stdout
    assert cv2.imread(str(tmp_path / "w" / "check.png")).any()
    # What a run would refuse although the root is sound: all at once.
    wrong = ("--config.feedback.lag=1000", "--config.cam.threshold=2")
    # In the folder of a run that began before some of today's keys existed.
    files.write_json(tmp_path / "w" / "config.json", {"config": {"seed": 0}, "data": {}})
    refused = call(NIH, *wrong, *flags)
    (tmp_path / "w" / "config.json").unlink()
    assert refused.returncode == USER_ERROR
    assert "it keeps data.split_version=1, model.input=imagenet" in refused.stderr
    assert "No problems found" not in refused.stdout
    assert "config.cam.threshold is 2" in refused.stderr
    assert "do not fill a batch of 64" in refused.stderr
    refused = call(NIH, "--config.train.batch_size=16", *wrong[:1], *flags)
    assert "config.feedback.lag is 1000 steps, but the run has 20" in refused.stderr
    broken = shutil.copytree(root, tmp_path / "broken")
    torn, missing = sorted((broken / "images").iterdir())[:2]
    torn.write_bytes(torn.read_bytes()[:200])
    missing.unlink()
    lax = (
        "--config.data.allow_missing=True",
        "--config.data.on_error=skip",
        "--config.train.batch_size=16",
        f"--workdir={tmp_path / 'w'}",
    )
    going_on = call(NIH, "--mode=verify", f"--config.data.root={broken}", *lax)
    assert going_on.returncode == DONE, going_on.stderr
    assert "The config allows these: 2 problem(s)" in going_on.stdout
    (broken / "BBox_List_2017.csv").write_text("what is this\n")
    done = call(NIH, "--mode=verify", f"--config.data.root={broken}", lax[-1])
    assert done.returncode == USER_ERROR
    for word in (torn.name, missing.name, "BBox_List_2017.csv", "Fix:"):
        assert word in done.stdout
    assert "Traceback" not in done.stderr


def test_a_platform_without_a_device_is_told(root: Path, tmp_path: Path) -> None:
    flags = (*TINY, f"--config.data.root={root}", f"--workdir={tmp_path / 'w'}")
    done = call(*flags, env={"JAX_PLATFORMS": "cuda"})
    assert done.returncode == USER_ERROR, done.stderr
    assert "jax finds no device with JAX_PLATFORMS=cuda" in done.stderr
    assert "Traceback" not in done.stderr


def test_testing_needs_a_checkpoint(root: Path, tmp_path: Path) -> None:
    flags = (*TINY, f"--config.data.root={root}", f"--workdir={tmp_path / 'w'}", "--mode=eval")
    done = call(*flags)
    assert done.returncode == USER_ERROR
    assert f"{tmp_path / 'w'} has no checkpoint; train first" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_relative_workdir_is_trained_in_tested_and_then_left_alone(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "configs").symlink_to(REPO / "configs")
    flags = (*TINY, f"--config.data.root={os.path.relpath(root, tmp_path)}")
    done = call(*flags, "--workdir=some/run", folder=tmp_path)
    assert done.returncode == DONE, done.stderr
    assert "AUROC" in done.stdout
    assert "1/1  validation AUROC" in done.stderr
    assert f"Written to {Path('some/run')}: report.html" in done.stdout
    left = {p: p.stat().st_mtime_ns for p in (tmp_path / "some/run").rglob("*") if p.is_file()}
    assert tmp_path / "some/run/results.json" in left
    typed = shlex.split(json.loads((tmp_path / "some/run/run.json").read_text())["command"])
    assert typed[1:] == ["-m", "kacl_jax.main", *flags, "--workdir=some/run"]
    again = call(*flags, "--workdir=some/run", folder=tmp_path)
    assert again.returncode == DONE, again.stderr
    assert "is finished; nothing to do" in again.stderr
    assert again.stdout == done.stdout
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "some/run").rglob("*") if p.is_file()}
    unchanged = {p for p in left if after[p] == left[p]}
    assert {p.name for p in left.keys() - unchanged} <= {".lock", "config.json"}
    assert after.keys() == left.keys()
    assert "report.html is missing" not in again.stderr
    (tmp_path / "some/run/report.html").unlink()
    third = call(*flags, "--workdir=some/run", folder=tmp_path)
    assert "report.html is missing. Write it with --mode=eval" in third.stderr


def test_a_workdir_in_use_and_a_changed_config_are_refused(root: Path, tmp_path: Path) -> None:
    flags = (*TINY, f"--config.data.root={root}", f"--workdir={tmp_path}")
    with lock_workdir(tmp_path):
        done = call(*flags)
    assert done.returncode == WORKDIR_IN_USE
    assert f"Another process uses {tmp_path}" in done.stderr
    other = {**config_keys.flatten(config_keys.default()), "seed": 7}
    files.write_json(tmp_path / "config.json", {"config": other, "data": {}})
    done = call(*flags)
    assert done.returncode == USER_ERROR
    assert "seed: 7 → 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_explodes_has_an_exit_code_of_its_own(root: Path, tmp_path: Path) -> None:
    """Here the validation images tell it; where the loss does: test_train."""
    script = str(REPO / "tests" / "tiny_run.py")
    flags = ("--config.train.epochs=3", "--config.train.learning_rate=1e38")
    done = call(
        f"--config={script}",
        f"--config.data.root={root}",
        f"--workdir={tmp_path}",
        "--config.loss.focal_weight=1.0",
        *flags,
        program=(script,),
    )
    assert done.returncode == NON_FINITE, done.stderr
    assert "not finite" in done.stderr
    assert ".png" in done.stderr
    assert "Traceback" not in done.stderr
