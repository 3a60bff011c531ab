"""launch/slurm.sbatch under a real Slurm of this machine: what it requeues, and that the run is then the same.

The network is that of tiny_run.py. `.venv/bin/python` is a small program that starts it, so that nothing is installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import compile_fast
import pytest
from launch_scene import LAUNCH, ROOT, program
from same_run import assert_same_run
from slurm_cluster import Cluster, slurm_cluster, wait_until

SCRIPT = ROOT / "tests" / "tiny_run.py"
CPU = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": compile_fast.xla_flags(1)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes, for two jobs at a time."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=4) as running:
        yield running


class Job:
    """A run on two nodes, in a house of its own. `variables` are those of its processes."""

    def __init__(self, cluster: Cluster, folder: Path, *flags: str, **variables: str) -> None:
        self.cluster, self.workdir = cluster, folder / "w"
        house = folder / "house"
        shutil.copytree(LAUNCH, house / "launch")
        (house / "requirements.lock").write_text("numpy\n")
        values = {"PYTHONPATH": str(ROOT), "HEARTBEAT_S": "10", **variables}
        values["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # they start three times
        exports = "".join(f"export {name}='{value}'\n" for name, value in values.items())
        start = f'shift 2\nexec {sys.executable} {SCRIPT} "$@"\n'
        program(house / ".venv/bin", "python", f"#!/bin/sh\n{exports}{start}")
        (house / ".venv/installed").write_text("numpy\njax[cuda13]\n")
        words = ("--mem=2000", "launch/slurm.sbatch", f"--config={SCRIPT}", *flags)
        workdir = f"--workdir={self.workdir}"
        self.number = cluster.call(
            "sbatch", "--parsable", "--nodes=2", *words, workdir, cwd=house
        ).strip()
        self.log = house / f"kacl-{self.number}.log"

    def end(self) -> tuple[str, int, str]:
        """State, number of restarts and log, once it has ended for good."""
        told = self.cluster.wait(self.number, 300)
        return told["JobState"], int(told["Restarts"]), self.log.read_text()

    def limit(self, time: str) -> None:
        self.cluster.call("scontrol", "update", f"JobId={self.number}", f"TimeLimit={time}")

    def lines(self, words: str) -> int:
        return self.log.read_text().count(words)


@pytest.fixture(scope="module")
def whole(cluster: Cluster, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Never stopped."""
    data = f"--config.data.root={root}"
    return Job(cluster, tmp_path_factory.mktemp("whole"), data, "--allow_cpu", **CPU)


def held(folder: Path) -> list[int]:
    """The ids of the run's two processes, once both wait in this folder."""
    wait_until(lambda: len(list(folder.iterdir())) == 2, 300, f"two processes in {folder}")
    return [int(path.name.split(".")[1]) for path in sorted(folder.iterdir())]


def test_a_run_out_of_time_and_then_with_a_process_killed_ends_as_one_never_stopped(
    cluster: Cluster, root: Path, tmp_path: Path, whole: Job
) -> None:
    early, late = tmp_path / "hold" / "4", tmp_path / "hold" / "10"
    early.mkdir(parents=True)
    late.mkdir()
    data = f"--config.data.root={root}"
    run = Job(cluster, tmp_path, data, "--allow_cpu", HOLD=str(early.parent), **CPU)
    held(early)
    run.limit("5:00")  # the signal comes five minutes before the end
    wait_until(lambda: run.lines("Stopping after this step") == 2, 120, "both have the signal")
    run.limit("60:00")
    shutil.rmtree(early)
    os.kill(held(late)[1], signal.SIGKILL)
    shutil.rmtree(late)
    state, restarts, log = run.end()
    assert (state, restarts) == ("COMPLETED", 2), log
    ends = [line.split()[-1] for line in log.splitlines() if "ended with exit code" in line]
    assert ends[:2] + sorted(ends[2:4]) + ends[4:] == ["75", "75", "137", "75", "0", "0"], log
    assert "Stopped after step 6 of 12" in log
    assert "Resuming from step 6" in log
    assert "Another process of this run was lost" in log
    state, restarts, log = whole.end()
    assert (state, restarts) == ("COMPLETED", 0), log
    assert_same_run(run.workdir, whole.workdir)


def test_a_node_without_a_gpu_is_a_mistake_and_not_requeued(
    cluster: Cluster, root: Path, tmp_path: Path
) -> None:
    run = Job(cluster, tmp_path, f"--config.data.root={root}", CUDA_VISIBLE_DEVICES="")
    state, restarts, log = run.end()
    assert (state, restarts) == ("FAILED", 0), log
    assert cluster.job(run.number)["ExitCode"] == "1:0"
    assert "jax finds no device with JAX_PLATFORMS=cuda" in log
    assert "--allow_cpu" in log
    assert log.count("kacl_jax ended with exit code 1\n") == 2
    assert "Traceback" not in log
