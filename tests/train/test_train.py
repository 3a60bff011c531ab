"""A whole run: killed, interrupted, resumed, with other workers, lags and modes, it is the same run.

The network is that of tiny_run.py; everything around it is the real program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import compile_fast
import jax
import numpy as np
import pytest
import tiny_run
from same_run import assert_same_run, comparable, config, metric_lines

from kacl_jax.config import keys, stored
from kacl_jax.data.batches import ShardBatches
from kacl_jax.data.records import Records, read_records
from kacl_jax.evaluation.results import FeedbackSummary
from kacl_jax.feedback.visibility import Feedback
from kacl_jax.models.encoders import ENCODERS
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.runtime import devices
from kacl_jax.runtime.errors import (
    DONE,
    INTERRUPTED,
    InterruptedRunError,
    NonFiniteError,
    UserError,
)
from kacl_jax.train import checkpoint, experiment, job, loop

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "tests" / "tiny_run.py"
STEPS = 12


# ---- runs in processes of their own ---------------------------------------------------------------------------


def call(root: Path, workdir: Path, at: str = "") -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(SCRIPT), f"--config={SCRIPT}", f"--config.data.root={root}"]
    fusion = "--config.fusion.kind=both", "--config.fusion.grid=2"
    return subprocess.run(
        [*words, *fusion, f"--workdir={workdir}"],
        env={
            **os.environ,
            "PYTHONPATH": str(REPO),
            "XLA_FLAGS": compile_fast.xla_flags(),
            "AT": at,
        },
        capture_output=True,
        text=True,
        timeout=180,
    )


def chain(root: Path, workdir: Path, *ats: str) -> list[tuple[str, int, str]]:
    """The same command again and again, disturbed each time but the last: (where, exit code, stderr)."""
    told = []
    for at in (*ats, ""):
        if at == "damage":
            damage_newest(workdir)
        else:
            done = call(root, workdir, at)
            told.append((at, done.returncode, done.stderr))
    return told


def damage_newest(workdir: Path) -> None:
    newest = max((workdir / "checkpoints").iterdir())
    path = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.fixture(scope="module")
def started(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Path, Future[Any]]]]:
    """The long chains run side by side: name → (workdir, future)."""
    step = int(np.random.default_rng().integers(7, STEPS - 1))
    chains = {
        "undisturbed": (),
        "killed": (
            "turn:0:SIGKILL",
            "saving:4:SIGKILL",
            "saved:6:SIGKILL",
            "damage",
            f"turn:{step}:SIGKILL",
            "fusing:0:SIGKILL",
        ),
        "interrupted": ("turn:4:SIGTERM", "saving:9:SIGINT"),
    }
    with ThreadPoolExecutor(2) as threads:
        runs = {}
        for name, ats in chains.items():
            workdir = tmp_path_factory.mktemp(name) / "w"
            runs[name] = workdir, threads.submit(chain, root, workdir, *ats)
        yield runs


@pytest.fixture(scope="module")
def undisturbed(started: dict[str, tuple[Path, Future[Any]]]) -> Path:
    workdir, future = started["undisturbed"]
    ((_, code, told),) = future.result()
    assert code == DONE, told
    return workdir


def test_a_run_leaves_what_it_should(undisturbed: Path) -> None:
    assert sorted(p.name for p in undisturbed.iterdir() if not p.name.startswith(".")) == [
        "boxes.csv",
        "calibration.json",
        "checkpoints",
        "config.json",
        "familiarity.json",
        "features.sqlite",
        "fusion.json",
        "grid.sqlite",
        "metrics.jsonl",
        "predictions.csv",
        "predictions_control.csv",
        "predictions_fused.csv",
        "report.html",
        "results.json",
        "run.json",
        "tensorboard",
        "training_images.csv",
    ]
    lines = metric_lines(undisturbed)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if line["kind"] == "val"] == [3, 6, 9, 12]
    results = json.loads((undisturbed / "results.json").read_text())
    assert results["feedback"]["hit_rate"] > 0.3
    assert results["feedback"]["mean_age_steps"] >= 3
    told = json.loads((undisturbed / "run.json").read_text())
    assert told["split_hash"] == results["split_hash"]
    assert told["reproducible"] is True


def test_the_names_in_a_workdir_are_those_of_older_versions(undisturbed: Path) -> None:
    """workdir_format.json was written by the commit before the package had folders (a8401be), at step 7 of this run.

    A run that an older version began resumes only as long as every name, dtype and shape is the same. Where this
    fails, give the name back, or let `resume` read both; a new name alone may be added to the file.
    """
    form = json.loads((Path(__file__).parent / "workdir_format.json").read_text())
    latest = checkpoint.Checkpoints(undisturbed / "checkpoints").restore_latest()
    assert latest is not None
    arrays = {name: [str(a.dtype), list(a.shape)] for name, a in latest.arrays.items()}
    for name, (_, shape) in form["arrays"].items():
        if shape is None and name in arrays:  # as many rows as regions are on their way
            arrays[name][1] = None
    assert arrays == form["arrays"]
    assert sorted(latest.meta["tally"]) == form["meta"]["tally"]
    assert len(latest.meta["data"]) == form["meta"]["data"]
    assert sorted(json.loads(latest.arrays["feedback/told"].tobytes())) == form["told"]
    keys = json.loads((undisturbed / "config.json").read_text())["config"]
    assert sorted(keys) == form["config"]
    with contextlib.closing(sqlite3.connect(undisturbed / "features.sqlite")) as file:
        assert file.execute("SELECT sql FROM sqlite_master").fetchone() == (form["memo"],)


def test_killed_at_any_step_the_same_command_gives_the_same_run(
    started: dict[str, tuple[Path, Future[Any]]], undisturbed: Path
) -> None:
    workdir, future = started["killed"]
    told = future.result()
    assert [code for _, code, _ in told] == [-signal.SIGKILL] * 5 + [DONE], told
    assert_same_run(workdir, undisturbed)
    errors = [error for _, _, error in told]
    assert "Resuming" not in errors[1]
    assert "Resuming from step" in errors[2]
    # The checkpoint of step 6 was damaged between two runs: named, and the one before taken.
    assert "00000006 is damaged" in errors[3]
    assert "Resuming from step 4" in errors[3]


def test_an_interrupted_run_says_so_and_goes_on(
    started: dict[str, tuple[Path, Future[Any]]], undisturbed: Path
) -> None:
    workdir, future = started["interrupted"]
    told = future.result()
    assert [code for _, code, _ in told] == [INTERRUPTED] * 2 + [DONE], told
    assert f"Stopped after step 5 of {STEPS}" in told[0][2]
    assert "Resuming from step 5" in told[1][2]
    assert "Resuming from step 9" in told[2][2]
    assert "Traceback" not in told[0][2] + told[1][2]
    assert_same_run(workdir, undisturbed)


# ---- runs in this process -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """This process has four host devices; the runs below use one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "resnet18", tiny_run.tiny_encoder())
        one = jax.devices()[:1]
        patch.setattr(
            experiment, "DataParallel", lambda mode: devices.DataParallel(mode, devices=one)
        )
        yield


Runner = Callable[..., Path]


@pytest.fixture
def run_here(tiny: None, root: Path, tmp_path: Path) -> Runner:
    """Train with changed keys in a new workdir (or a given one) and return it."""

    def start(workdir: Path | None = None, **changes: Any) -> Path:
        workdir = workdir or tmp_path / f"w{len(list(tmp_path.iterdir()))}"
        job.train_and_evaluate(config(root, **changes), workdir)
        return workdir

    return start


@pytest.fixture(scope="module")
def plain(tiny: None, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `tiny_run.get_config` in this process."""
    workdir = tmp_path_factory.mktemp("plain") / "w"
    job.train_and_evaluate(config(root), workdir)
    return workdir


class Events:
    """What the loop does, in order: ('lookup' | 'dispatch' | 'regions', step); and the loops themselves."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.order: list[tuple[str, int]] = []
        self.loops: list[Any] = []
        begin, lookup, submit = loop.TrainingLoop.__init__, Feedback.lookup, Feedback.submit

        def init(loop: Any, *args: Any) -> None:
            begin(loop, *args)
            self.order.clear()
            self.loops.append(loop)
            step = loop._train_step

            def dispatch(*args: Any) -> Any:
                self.order.append(("dispatch", sum(kind == "dispatch" for kind, _ in self.order)))
                return step(*args)

            loop._train_step = dispatch

        def looked_up(feedback: Any, step: int, *args: Any) -> Any:
            self.order.append(("lookup", step))
            return lookup(feedback, step, *args)

        def submitted(feedback: Any, step: int, *args: Any) -> None:
            self.order.append(("regions", step))
            submit(feedback, step, *args)

        patch.setattr(loop.TrainingLoop, "__init__", init)
        patch.setattr(Feedback, "lookup", looked_up)
        patch.setattr(Feedback, "submit", submitted)

    def at(self, kind: str, step: int) -> int:
        return self.order.index((kind, step))

    def counters(self) -> dict[str, int | float]:
        return self.loops[-1].feedback.counters


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    return Events(monkeypatch)


def test_workers_do_not_change_the_weights(plain: Path, run_here: Runner, events: Events) -> None:
    assert_same_run(run_here(feedback__workers=4, data__threads=4), plain)
    assert len(events.loops[0].feedback._pool._workers) == 4
    # A step is dispatched before the CAMs of the one before are read; a checkpoint and validation read everything.
    for step in (0, 4, 6, 10):
        assert events.at("dispatch", step + 1) < events.at("regions", step)


def test_the_synchronous_loop_sees_its_own_regions(run_here: Runner, events: Events) -> None:
    first = run_here(feedback__lag=0, train__epochs=2)
    for step in range(6):
        assert events.at("regions", step) < events.at("lookup", step) < events.at("dispatch", step)
    assert {line["hit_rate"] for line in metric_lines(first, "train")} == {1.0}
    assert {line["age"] for line in metric_lines(first, "train")} == {0.0}
    assert_same_run(run_here(feedback__lag=0, train__epochs=2, feedback__workers=2), first)


@pytest.mark.parametrize("lag, steps", [(1, 1), (-1, 3)])
def test_other_lags(run_here: Runner, events: Events, lag: int, steps: int) -> None:
    workdir = run_here(feedback__lag=lag, train__epochs=3)
    for step in range(9 - steps):
        assert events.at("regions", step) < events.at("lookup", step + steps)
    seen = [line["age"] for line in metric_lines(workdir, "train") if line["ready"]]
    assert seen
    assert min(seen) >= steps


def test_without_any_box_classification_is_trained_and_scored(
    run_here: Runner, root: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(root, bare)
    boxes = bare / "BBox_List_2017.csv"
    boxes.write_text(boxes.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match="holds no box; use"):
        run_here(data__root=str(bare), train__epochs=2)
    workdir = run_here(data__root=str(bare), data__box_share=0.0, train__epochs=2)
    results = json.loads((workdir / "results.json").read_text())
    assert results["classification"]["auroc"]["mean"]["value"] is not None
    unseen = results["localization"]["iou"]["0.1"]["mean"]
    assert unseen["value"] is None
    assert unseen["reason"]
    assert (workdir / "report.html").exists()


def test_what_is_dropped_is_counted_and_told(run_here: Runner, events: Events) -> None:
    workdir = run_here(feedback__lag=1, feedback__late="drop", train__epochs=3)
    assert events.counters()["late"] + events.counters()["dropped"] > 0
    assert json.loads((workdir / "run.json").read_text())["reproducible"] is False
    told = json.loads((workdir / "results.json").read_text())["feedback"]
    for name in ("late", "dropped"):
        assert told[name] == events.counters()[name]


def test_a_killed_worker_costs_nothing_but_time(
    plain: Path, run_here: Runner, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Feedback.submit

    def submit_and_kill(feedback: Any, step: int, *args: Any) -> None:
        submit(feedback, step, *args)
        if step in (3, 7):
            deadline = time.monotonic() + 60
            while not feedback._pool.pids() and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(feedback._pool.pids()[0], signal.SIGKILL)

    monkeypatch.setattr(Feedback, "submit", submit_and_kill)
    assert_same_run(run_here(), plain)
    assert events.counters()["restarts"] >= 1


class Poisoned(ShardBatches):
    """The labels of step 8 are not numbers."""

    drawn = 0
    names: tuple[str, ...] = ()

    def __next__(self) -> Any:
        batch = super().__next__()
        if self.drawn == 8:
            batch["labels"] = np.full_like(batch["labels"], np.nan)
            Poisoned.names = tuple(self._records.names[batch["image_id"]])
        self.drawn += 1
        return batch


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(
    plain: Path, run_here: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "w"
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "ShardBatches", Poisoned)
        with pytest.raises(NonFiniteError, match="step 8 are not finite") as told:
            run_here(workdir)
    assert len(Poisoned.names) == 12
    for name in Poisoned.names:
        assert name in str(told.value)
    latest = checkpoint.Checkpoints(workdir / "checkpoints").restore_latest()
    assert latest is not None
    assert latest.step == 8
    assert all(np.isfinite(a).all() for a in latest.arrays.values() if a.dtype.kind == "f")
    # Nothing of the poison is in it: without it the run goes on as if nothing had been.
    assert_same_run(run_here(workdir), plain)


def test_two_augmented_views_need_no_radiomics(
    run_here: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And evaluation may read the map before the last stage, which such a training never looks at."""
    monkeypatch.setattr(experiment, "RadiomicsPool", None)
    arm = {"loss__positive": "augmented", "augment__contrast": 0.3, "cam__stage": 3}
    workdir = run_here(**arm, train__epochs=2, train__checkpoint_every=0)
    assert not (workdir / "features.sqlite").exists()
    results = json.loads((workdir / "results.json").read_text())
    assert results["feedback"] == dataclasses.asdict(FeedbackSummary())
    assert results["evaluation"]["grid"] == [16, 16]
    assert all(line["nt_xent"] > 0 for line in metric_lines(workdir, "train"))


def test_the_arms_keys_reach_the_parts_of_a_run(tiny: None, root: Path, tmp_path: Path) -> None:
    arm = {"cam__stage": 3, "roi__shape": "box", "radiomics__families": "ngtdm,shape2D"}
    parts = experiment.build_experiment(config(root, **arm), tmp_path)
    chosen = ("original_shape2D_", "original_ngtdm_")
    assert parts.programs.feature_columns == tuple(
        name.startswith(chosen) for name in FEATURE_NAMES
    )
    assert parts.state_template().params["radiomics_encoder"]["Dense_0"]["kernel"].shape[0] == 14
    assert parts.state_template().cam_mean.shape[1:] == (16, 16)
    assert parts.region_rule.shape == "box"
    inside = {"radiomics__backend": "jax", "roi__shape": "box"}
    in_step = experiment.build_experiment(
        config(root, **inside), tmp_path
    ).programs.in_step_radiomics
    assert in_step is not None
    assert in_step.rule.shape == "box"
    augmented = {"loss__positive": "augmented", "augment__shift": 0.1, "radiomics__backend": "jax"}
    assert (
        experiment.build_experiment(config(root, **augmented), tmp_path).programs.in_step_radiomics
        is None
    )


def test_a_finished_run_is_left_alone_and_a_changed_config_refused(
    plain: Path, tiny: None, root: Path, tmp_path: Path
) -> None:
    """Also where the data have moved. One changed picture makes other data."""
    before, written = comparable(plain), (plain / "config.json").read_bytes()
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    job.train_and_evaluate(config(moved), plain)
    assert (plain / "config.json").read_bytes() == written
    first = min((moved / "images").iterdir())
    first.write_bytes(max((moved / "images").iterdir()).read_bytes())
    with pytest.raises(UserError, match=r"pixels of 16 images of data\.root"):
        job.train_and_evaluate(config(moved), plain)
    again = job.train_and_evaluate(config(root), plain)
    assert again.to_json() == json.loads((plain / "results.json").read_text())
    with pytest.raises(UserError, match=r"loss\.temperature: 0\.5 → 0\.1"):
        job.train_and_evaluate(config(root, loss__temperature=0.1), plain)
    assert comparable(plain) == before


def test_a_run_of_an_older_commit_goes_on_as_its_code_did(
    plain: Path, run_here: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the config.json of commit 22a5f99, the first whose form can be read, after a default has changed."""
    workdir = tmp_path / "w"
    shutil.copytree(plain, workdir)
    (workdir / "results.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / f"{STEPS:08d}")
    shutil.copy(Path(__file__).parent / "oldest_config.json", workdir / "config.json")
    stage = dataclasses.replace(keys.KEYS["cam.stage"], default=3)
    monkeypatch.setitem(keys.KEYS, "cam.stage", stage)
    with pytest.raises(UserError, match=r"\n  cam\.stage: 4 → 3\n"):
        run_here(workdir)
    # Keys whose defaults have changed since; nothing of them shows in this run.
    younger = {"data.split_version": 1, "model.input": "imagenet", "loss.turned_box": "hull"}
    run_here(workdir, cam__stage=4, **{key.replace(".", "__"): v for key, v in younger.items()})
    assert_same_run(workdir, plain)
    after, before = (json.loads((w / "config.json").read_text()) for w in (workdir, plain))
    assert after == {**before, "config": before["config"] | younger}


def test_a_run_whose_features_all_fail_says_so(
    run_here: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = run_here(radiomics__bin_width=1e-12, train__epochs=2)
    results = json.loads((workdir / "results.json").read_text())
    failures, regions = (results["feedback"][name] for name in ("failures", "regions"))
    assert results["feedback"]["hit_rate"] == 0
    warning = f"Warning: {sum(failures.values())} of {sum(regions.values())} regions gave no radiomic features"
    assert warning in capsys.readouterr().err


def test_a_lag_that_no_feature_outlives_is_refused(run_here: Runner) -> None:
    with pytest.raises(UserError, match=r"feedback\.lag is 50"):
        run_here(feedback__lag=50)
    with pytest.raises(UserError, match=r"train\.epochs is 1, so every image is used only once"):
        run_here(train__epochs=1, train__warmup_epochs=0)


def test_images_that_come_or_go_make_another_split_and_are_refused(
    tiny: None, root: Path, tmp_path: Path
) -> None:
    """Folds follow from the patients that are there: what was trained on could be scored otherwise."""
    part = tmp_path / "part"
    shutil.copytree(root, part)
    gone = sorted((part / "images").iterdir())[0]
    content = gone.read_bytes()
    gone.unlink()
    begun = config(root, data__root=str(part), data__allow_missing=True)
    with pytest.raises(UserError, match="has no checkpoint"):
        job.evaluate_only(begun, tmp_path / "w")
    assert not (tmp_path / "w" / "config.json").exists()  # nothing is written where nothing runs
    _, identity = job._prepare_experiment(begun, tmp_path / "w")
    stored.write_config(tmp_path / "w", *identity)  # as a run writes it when it begins
    gone.write_bytes(content)
    with pytest.raises(UserError, match=r"split of data\.root"):
        job.train_and_evaluate(begun, tmp_path / "w")


def test_a_damaged_best_checkpoint_is_told_and_the_newest_stands_in(
    plain: Path, tiny: None, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workdir = tmp_path / "w"
    shutil.copytree(plain, workdir)
    best = json.loads((workdir / "results.json").read_text())["best_step"]
    steps = checkpoint.Checkpoints(workdir / "checkpoints").steps()
    assert best != steps[-1]
    shutil.rmtree(workdir / "checkpoints" / f"{best:08d}" / "arrays")
    found = job.evaluate_only(config(root), workdir)
    assert found.best_step_lost == best
    assert found.best_step == steps[-1]
    assert f"{best:08d} is damaged" in caplog.text


def test_a_signal_in_the_last_step_still_stops_the_run(
    tiny: None, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = loop.TrainingLoop.run_step

    def stop(loop: Any, step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        turn(loop, step)

    short = config(root, train__epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "run_step", stop)
        with pytest.raises(InterruptedRunError, match="step 6 of 6"):
            job.train_and_evaluate(short, tmp_path / "w")
    assert not (tmp_path / "w" / "results.json").exists()
    assert job.train_and_evaluate(short, tmp_path / "w").trained_steps == 6


def test_evaluation_alone_writes_the_same_tables(plain: Path, tiny: None, root: Path) -> None:
    before = comparable(plain)
    for name in ("predictions.csv", "boxes.csv", "results.json"):
        (plain / name).unlink()
    job.evaluate_only(config(root), plain)
    assert comparable(plain) == before


def test_unreadable_images_are_left_out_and_named_once(
    run_here: Runner, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harmed = tmp_path / "harmed"
    shutil.copytree(root, harmed)
    victims = sorted((harmed / "images").iterdir())[::10]
    for path in victims:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="on_error=skip"):
        run_here(data__root=str(harmed), train__epochs=2)
    caplog.clear()
    workdir = run_here(data__root=str(harmed), train__epochs=2, data__on_error="skip")
    told = json.loads((workdir / "run.json").read_text())["images_unreadable"]
    assert told
    assert set(told) <= {str(path) for path in victims}
    for path in told:
        assert caplog.text.count(path) == 1


def test_testing_an_unfinished_run_does_not_finish_it(
    plain: Path, tiny: None, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "w"
    turn = loop.TrainingLoop.run_step

    def stop(loop: Any, step: int) -> None:
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        turn(loop, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "run_step", stop)
        with pytest.raises(InterruptedRunError, match="step 8"):
            job.train_and_evaluate(config(root), workdir)
    early = job.evaluate_only(config(root), workdir)
    assert early.best_step <= 6
    job.train_and_evaluate(config(root), workdir)
    final = json.loads((workdir / "results.json").read_text())
    assert final["trained_steps"] == STEPS
    assert metric_lines(workdir) == metric_lines(plain)
    assert (workdir / "boxes.csv").read_bytes() == (plain / "boxes.csv").read_bytes()


def test_four_devices_are_the_run_of_one(
    plain: Path, run_here: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To float tolerance, over few steps: with the roundings differ regions, at their edges."""
    monkeypatch.setattr(experiment, "DataParallel", devices.DataParallel)
    expected = metric_lines(plain, "train")[:5]
    lines = metric_lines(run_here(train__epochs=2), "train")[:5]
    for line, wanted in zip(lines, expected, strict=True):
        assert line.keys() == wanted.keys()
        for name in ("loss", "focal", "ready", "hit_rate"):
            assert line[name] == pytest.approx(wanted[name], rel=2e-3, abs=1e-4), name
        for name in ("nt_xent", "age"):  # null where no row was ready
            assert (line[name] is None) == (wanted[name] is None) == (wanted["ready"] == 0)
            if wanted[name] is not None:
                assert line[name] == pytest.approx(wanted[name], rel=2e-3, abs=1e-4), name


def mass_inside(workdir: Path, trained: Any) -> float:
    """Share of the softmax mass of the class maps inside the truth boxes of training images; trained: its config."""
    parts = experiment.build_experiment(trained, workdir)
    saved = checkpoint.Checkpoints(workdir / "checkpoints")
    arrays = saved.restore(saved.steps()[-1]).arrays
    state = parts.parallel.replicate(
        checkpoint.from_arrays(parts.state_template(), arrays, "state")
    )
    image, finding = np.nonzero(parts.split.annotated)
    outputs = parts.inference.outputs(state, np.unique(image), center=None)
    maps = outputs.class_maps()[np.searchsorted(outputs.image_id, image), finding]
    share = np.exp(maps - maps.max((1, 2), keepdims=True))
    share /= share.sum((1, 2), keepdims=True)
    centre = (np.arange(maps.shape[-1]) + 0.5) / maps.shape[-1]
    x0, y0, x1, y1 = parts.records.boxes[image, finding, 0].T[..., None]
    down, across = (y0 <= centre) & (centre < y1), (x0 <= centre) & (centre < x1)
    return float((share * down[:, :, None] * across[:, None, :]).sum((1, 2)).mean())


def test_box_guidance_moves_the_map_into_the_box_and_needs_no_worker(
    run_here: Runner, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "RadiomicsPool", None)
    changes = {"loss__focal_weight": 1.0, "train__epochs": 12, "train__checkpoint_every": 0}
    without = run_here(**changes)
    guided = run_here(**changes, loss__box_weight=0.5)
    guidance = [line["box"] for line in metric_lines(guided, "train")]
    assert np.mean(guidance[-6:]) < 0.8 * np.mean(guidance[:6])
    trained = config(root, **changes)
    assert mass_inside(guided, trained) > 1.5 * mass_inside(without, trained)
    assert not (without / "features.sqlite").exists()
    results = json.loads((without / "results.json").read_text())
    assert results["feedback"] == dataclasses.asdict(FeedbackSummary())


def test_a_box_that_is_given_twice_trains_as_one_and_is_scored_as_two(
    run_here: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"loss__box_weight": 0.5, "train__epochs": 2, "eval__report_images": 4}
    once = run_here(**changes)

    def read_twice(*args: Any, **options: Any) -> Records:
        records = read_records(*args, **options)
        return dataclasses.replace(records, boxes=np.repeat(records.boxes, 2, axis=2))

    monkeypatch.setattr(experiment, "read_records", read_twice)
    twice = run_here(**changes)
    for key in ("loss", "box", "focal"):
        values, same = ([line[key] for line in metric_lines(w, "train")] for w in (once, twice))
        assert same == pytest.approx(values, rel=1e-4)
    one, two = (json.loads((w / "results.json").read_text())["localization"] for w in (once, twice))
    for t, table in one["iou"].items():
        assert two["iou"][t]["mean"]["value"] == pytest.approx(table["mean"]["value"])
        assert two["iou"][t]["mean"]["n"] == 2 * table["mean"]["n"]
    assert two["pointing_game"] == one["pointing_game"]
    assert two["afp"] == one["afp"]


def test_a_profile_is_written_however_the_run_is_cut(run_here: Runner, tmp_path: Path) -> None:
    """A run that goes on between the first and the last step of a profile, or ends before its last one."""
    workdir = run_here(train__epochs=2, profile__steps=(4, 99))
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    for name in ("results.json", "profile"):
        (workdir / name).rename(tmp_path / name)
    before = sorted((workdir / "checkpoints").iterdir())
    assert before[-1].name == "00000006"
    before[-1].rename(tmp_path / "6")
    run_here(workdir, train__epochs=2, profile__steps=(3, 5))
