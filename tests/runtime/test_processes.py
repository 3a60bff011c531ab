"""Two processes of two devices each are one process of four, whoever of them is stopped, lost or mistaken.

The network is that of tiny_run.py; the processes, their radiomics workers and their connections are real.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import compile_fast
import jax
import numpy as np
import pytest
import tiny_run
from same_run import assert_same_run, config, metric_lines

from kacl_jax.data.batches import images_of_shards
from kacl_jax.models.encoders import ENCODERS
from kacl_jax.runtime import process_end, processes
from kacl_jax.runtime.errors import DONE, INTERRUPTED, USER_ERROR
from kacl_jax.train import checkpoint, experiment, job

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "tests" / "tiny_run.py"
SHARDS = 2


# ---- two processes --------------------------------------------------------------------------------------------

Ends = list[tuple[int, str]]  # exit code and output of each process


def pair(root: Path, workdir: Path, *ats: str, flags: tuple[str, ...] = ()) -> Ends:
    """The command in two processes; ats: what befalls each (see tiny_run)."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    words = [sys.executable, str(SCRIPT), f"--config={SCRIPT}", f"--config.data.root={root}"]
    words += [f"--config.data.shards={SHARDS}", f"--workdir={workdir}", *flags]
    outputs = [workdir.with_name(f"{workdir.name}.{index}.txt") for index in (0, 1)]
    children = []
    for index, output in enumerate(outputs):
        env = {
            **os.environ,
            "PYTHONPATH": str(REPO),
            "XLA_FLAGS": compile_fast.xla_flags(2),
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
            "HEARTBEAT_S": "10",
            "AT": ats[index] if ats else "",
        }
        with output.open("w") as file:
            children.append(subprocess.Popen(words, env=env, stdout=file, stderr=file))
    try:
        codes = [process.wait(timeout=300) for process in children]
    finally:
        for process in children:
            process.kill()
    return [(code, output.read_text()) for code, output in zip(codes, outputs, strict=True)]


PMAP = ("--config.parallel.mode=pmap",)


@pytest.fixture(scope="module")
def started(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Path, Future[list[Ends]]]]]:
    """Chains of pairs side by side: name → (workdir, future of the ends of each pair)."""
    folder = tmp_path_factory.mktemp("pairs")
    broken = folder / "broken_root"
    shutil.copytree(root, broken)
    c = config(broken, data__shards=SHARDS)
    split = experiment.read_data(c, folder)[1]
    for image in images_of_shards(split.train, range(1, 2), SHARDS):  # of process 1 alone
        (broken / "images" / split.names[image]).write_bytes(b"no picture")

    def chain(data: Path, workdir: Path, flags: tuple[str, ...], *ats: tuple[str, str]) -> Any:
        return [pair(data, workdir, *at, flags=flags) for at in ats]

    chains: dict[str, Any] = {
        "whole": (root, (), ("", "")),
        "harmed": (root, (), ("", "turn:2:SIGTERM"), ("turn:8:SIGKILL", ""), ("", "")),
        "pmap": (root, PMAP, ("", "turn:6:SIGKILL")),
        "broken": (broken, (), ("", "")),
    }
    with ThreadPoolExecutor(2) as threads:
        yield {
            name: (folder / name, threads.submit(chain, data, folder / name, *rest))
            for name, (data, *rest) in chains.items()
        }


@pytest.fixture(scope="module")
def whole(started: dict[str, tuple[Path, Future[list[Ends]]]]) -> Path:
    """Two processes, undisturbed."""
    workdir, future = started["whole"]
    ((first, second),) = future.result()
    assert (first[0], second[0]) == (DONE, DONE), first[1] + second[1]
    return workdir


@pytest.fixture(scope="module")
def alone(root: Path) -> Iterator[Any]:
    """Train in this process, which has four devices, with as many shards: (workdir, **changes) → nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "resnet18", tiny_run.tiny_encoder())
        yield lambda workdir, **changes: job.train_and_evaluate(
            config(root, data__shards=SHARDS, **changes), workdir
        )


@pytest.fixture(scope="module")
def single(alone: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, undisturbed."""
    workdir = tmp_path_factory.mktemp("single") / "w"
    alone(workdir)
    return workdir


def number(told: float | None) -> float:
    """NaN for null, what a step did not have."""
    return float("nan") if told is None else told


def assert_close(workdir: Path, other: Path, steps: list[int]) -> None:
    """Two runs are one but for the order of float sums; the loop's bookkeeping is exactly the same."""
    lines = [metric_lines(w) for w in (workdir, other)]
    assert len(lines[0]) == len(lines[1])
    for line, wanted in zip(*lines, strict=True):
        for name in ("step", "ready", "hit_rate", "age"):
            assert line.get(name) == wanted.get(name)
        for name in ("loss", "focal", "nt_xent", "auroc"):
            close = pytest.approx(number(wanted.get(name)), rel=2e-3, abs=1e-4, nan_ok=True)
            assert number(line.get(name)) == close, name
    saved = [checkpoint.Checkpoints(w / "checkpoints") for w in (workdir, other)]
    assert saved[0].steps() == saved[1].steps() == steps
    for step in steps:
        one, two = (s.restore(step) for s in saved)
        assert one.arrays.keys() == two.arrays.keys()
        assert one.meta["data"] == two.meta["data"]
        for told in (one.meta["tally"], two.meta["tally"]):
            del told["throughput"], told["best_auroc"]
        assert one.meta["tally"] == two.meta["tally"]
        for name in ("ready", "features_step", "pending_image", "pending_step"):
            np.testing.assert_array_equal(
                one.arrays[f"feedback/{name}"], two.arrays[f"feedback/{name}"]
            )
        # A rounding may move a region's edge by a pixel, but not those of many images.
        features = [r.arrays["feedback/features"] for r in (one, two)]
        same = np.isclose(*features, rtol=1e-3, atol=1e-5).all(1)
        assert same.mean() > 0.9
        for name, array in one.arrays.items():
            if name.startswith("state/params"):
                np.testing.assert_allclose(array, two.arrays[name], atol=1e-3, err_msg=name)
    rows = [np.array(probabilities(w)) for w in (workdir, other)]
    np.testing.assert_allclose(rows[0], rows[1], atol=2e-3)


def probabilities(workdir: Path) -> list[list[float]]:
    rows = [line.split(",") for line in (workdir / "predictions.csv").read_text().splitlines()]
    columns = [i for i, name in enumerate(rows[0]) if name.startswith("prob_")]
    return [[float(row[i]) for i in columns] for row in rows[1:]]


def test_two_processes_are_one_with_as_many_devices(whole: Path, single: Path) -> None:
    assert_close(whole, single, [9, 10, 12])


def test_everything_is_written_once_and_each_process_has_its_memo(whole: Path) -> None:
    lines = metric_lines(whole)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    assert len(list((whole / "tensorboard").iterdir())) == 1
    assert sorted(p.name for p in whole.glob("features*.sqlite")) == [
        "features.0of2.sqlite",
        "features.1of2.sqlite",
    ]
    told = json.loads((whole / "run.json").read_text())
    assert (told["processes"], len(told["devices"])) == (2, 4)
    outputs = [whole.with_name(f"whole.{index}.txt").read_text() for index in (0, 1)]
    assert "Written to" in outputs[0]
    assert "Written to" not in outputs[1]


def test_a_signal_to_one_process_saves_all_and_a_lost_one_ends_the_other(
    started: dict[str, tuple[Path, Future[list[Ends]]]], whole: Path
) -> None:
    """And the same command resumes, to the same bits."""
    workdir, future = started["harmed"]
    asked, lost, done = future.result()
    assert [code for code, _ in asked] == [INTERRUPTED] * 2, asked
    for _, told in asked:
        assert "Stopped after step 4 of 12" in told
    assert [code for code, _ in lost] == [-signal.SIGKILL, INTERRUPTED], lost
    assert "Resuming from step 4" in lost[0][1]
    assert "Another process of this run was lost" in lost[1][1]
    assert [code for code, _ in done] == [DONE] * 2, done
    assert_same_run(workdir, whole)


def test_a_pmap_run_that_lost_a_process_goes_on_in_one(
    started: dict[str, tuple[Path, Future[list[Ends]]]], alone: Any, single: Path
) -> None:
    workdir, future = started["pmap"]
    ((first, second),) = future.result()
    assert (first[0], second[0]) == (INTERRUPTED, -signal.SIGKILL), first[1]
    assert "Another process of this run was lost" in first[1]
    alone(workdir, parallel__mode="pmap")
    assert_close(workdir, single, [9, 10, 12])


def test_a_mistake_of_one_process_is_told_by_all(
    started: dict[str, tuple[Path, Future[list[Ends]]]],
) -> None:
    _, future = started["broken"]
    ((first, second),) = future.result()
    assert (first[0], second[0]) == (USER_ERROR, USER_ERROR), first[1] + second[1]
    words = "--config.data.on_error=skip"
    assert "Process 1 ended: " in first[1]
    assert words in first[1]
    assert words in second[1]
    assert "Traceback" not in first[1] + second[1]


# ---- their messages --------------------------------------------------------------------------------------------


def test_a_message_that_failed_is_no_mistake_of_this_process() -> None:
    """gloo says so in one of two ways, as another process was killed before or while they exchanged numbers."""
    text = "UNKNOWN: Gloo AllGather failed: Read error [127.0.0.1]:6529: Connection reset by peer"
    from_others = process_end._may_come_from_another_process
    assert from_others(ValueError(text))
    assert from_others(jax.errors.JaxRuntimeError(text))
    assert not from_others(ValueError("operands could not be broadcast together"))


def test_what_processes_tell_arrives_as_it_was() -> None:
    told = processes.Message(
        {"words": ["ä", None, 1.5]},
        {"state/a": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros((0, 4), bool)},
    )
    back = processes._unpack(np.concatenate([processes._pack(told)]))
    assert back.meta == told.meta
    assert back.arrays.keys() == told.arrays.keys()
    for name, array in told.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array)
        assert back.arrays[name].dtype == array.dtype
