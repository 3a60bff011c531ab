"""Sweeps under Slurm: the array's code on submitit's local executor, and a whole sweep on a real Slurm of two nodes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import compile_fast
import pytest
from slurm_cluster import Cluster, slurm_cluster, wait_until

from kacl_jax.runtime.errors import DONE, UserError
from kacl_jax.sweep import slurm
from kacl_jax.sweep.jobs import Job

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("--gpus=1", "--slurm needs the time limit of a point"),
        ("--time=1 -p gpu", "--slurm has '-p'; write options as --NAME=VALUE"),
        ("--time=1 --time=2", "--slurm has --time twice"),
        ("--time=1 --array=0-9", "--slurm cannot have --array, because the sweep sets it"),
        ("--time=1 '", "cannot be read: No closing quotation"),
    ],
)
def test_options_that_cannot_be_used(text: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        slurm.parse_options(text)


def test_options_are_those_of_sbatch() -> None:
    options = slurm.parse_options("--time=4:00:00 --cpus-per-task=8 --exclusive --comment='a b'")
    expected = {"time": "4:00:00", "cpus_per_task": "8", "exclusive": True, "comment": "a b"}
    assert options == expected


# The first start is interrupted, the second is as the point's name says.
POINT = """
import os, pathlib, signal, sys
name, place = sys.argv[1], pathlib.Path(sys.argv[2])
print("start of", name, os.environ["CACHE"], flush=True)
if name != "once" and not (place / "saved").exists():
    (place / "saved").touch()
    if name == "early":
        os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(77 if name == "elsewhere" else 75)
if name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
(place / "done").touch()
"""


def test_an_interrupted_task_runs_again_and_each_point_has_its_log(tmp_path: Path) -> None:
    names = ["once", "again", "elsewhere", "early", "killed"]
    points = [
        Job(name, [sys.executable, "-S", "-c", POINT, name, str(tmp_path / name)], tmp_path / name)
        for name in names
    ]
    table = [sys.executable, "-S", "-c", "print('the table')"]
    *submitted, after = slurm.submit(
        points,
        tmp_path,
        {},
        parallel=5,
        environment={"CACHE": "shared"},
        table_command=table,
        cluster="local",
    )
    for job in (*submitted, after):
        job.wait()
    starts = [(tmp_path / name / "log.txt").read_text().count(f"start of {name}") for name in names]
    assert starts == [1, 2, 2, 2, 2]
    assert [(tmp_path / name / "done").exists() for name in names] == [True] * 4 + [False]
    assert "start of once shared" in (tmp_path / "once" / "log.txt").read_text()
    assert after.result() == "the table"
    ids = json.loads((tmp_path / "slurm" / "jobs.json").read_text())
    assert ids == {name: job.job_id for name, job in zip(names, submitted, strict=True)}


def test_points_whose_jobs_cannot_be_noted_do_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that gets full. The next command would submit them once more."""
    ended: list[int] = []

    def no_room(path: Path, content: object) -> None:
        raise UserError("no room")

    monkeypatch.setattr(slurm.files, "write_json", no_room)
    monkeypatch.setattr(slurm, "_cancel", lambda jobs: ended.extend(stop(job) for job in jobs))
    point = Job("long", [sys.executable, "-S", "-c", "input()"], tmp_path / "long")
    with pytest.raises(UserError, match="no room"):
        slurm.submit(
            [point],
            tmp_path,
            {},
            parallel=1,
            environment={},
            table_command=["true"],
            cluster="local",
        )
    assert len(ended) == 1


def stop(job: object) -> int:
    process = job._process  # type: ignore[attr-defined]
    process.kill()
    return process.wait()


# ---- a real Slurm -----------------------------------------------------------------------------------------------

SWEEP = """
import runpy
from kacl_jax.sweep import hyper
from kacl_jax.sweep.hyper import Arm, Sweep
tiny = runpy.run_path("tests/tiny_run.py")["get_config"]

def get_config():
    c = tiny()
    c.train.epochs, c.train.warmup_epochs = 2, 0
    c.feedback.lag = 0
    return c

def get_hyper():
    arms = [
        Arm("focal", {"loss.focal_weight": 1.0}),
        Arm("kacl", against=("focal",)),
        Arm("fast", {"loss.focal_weight": 1.0, "train.learning_rate": 6e-3}, ("focal",)),
    ]
    return Sweep(arms, hyper.points(arms, folds=[0, 1], seeds=[0]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


class Scene:
    """A sweep of six tiny points, and the cluster that it can run on."""

    def __init__(self, folder: Path, root: Path, cluster: Cluster) -> None:
        self.folder, self.root, self.cluster = folder, root, cluster
        (folder / "config.py").write_text(SWEEP)
        self.environment = os.environ | cluster.environment | {
            "PYTHONPATH": str(REPO),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": compile_fast.xla_flags(1),
        }  # fmt: skip

    def sweep(self, workdir: str, *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "tests/tiny_sweep.py", f"--config={self.folder / 'config.py'}"),
                *(f"--config.data.root={self.root}", f"--workdir={self.folder / workdir}", *flags),
            ],
            cwd=REPO,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def on_slurm(self, *flags: str) -> tuple[str, int]:
        """What the command prints to stderr, and its exit code."""
        options = "--slurm=--mem=1500 --cpus-per-task=1 --time=10"
        started = self.sweep("slurm", "--on=slurm", options, "--parallel=4", *flags)
        told = started.communicate(timeout=300)[1]
        return told, started.returncode

    def log(self, point: str, workdir: str = "slurm") -> str:
        path = self.folder / workdir / point / "log.txt"
        return path.read_text() if path.exists() else ""

    def wait_for_log(self, point: str, words: str) -> None:
        wait_until(lambda: words in self.log(point), 240, f"{point}: {words}")

    def process_of(self, point: str) -> int:
        """The process that trains the point."""
        ending = f"--workdir={self.folder / 'slurm' / point}"
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue  # it has ended
            if ending in words:
                return int(path.parent.name)
        raise AssertionError(f"{point} does not run")


def test_a_sweep_over_two_nodes_has_the_table_of_one_that_ran_alone(
    tmp_path: Path, root: Path, cluster: Cluster
) -> None:
    """Although one point is killed, one cancelled and one interrupted; the same command finishes it."""
    scene = Scene(tmp_path, root, cluster)
    told, code = scene.on_slurm()
    assert code == DONE, told
    jobs = dict(re.findall(r"^(\S+) is submitted as job (\S+)$", told, re.M))
    assert len(jobs) == 6
    killed, cancelled, interrupted = list(jobs)[:3]
    told, code = scene.on_slurm()
    assert code == DONE
    assert "submitted" not in told  # what waits or runs is not submitted again
    scene.wait_for_log(killed, "Compiling")
    os.kill(scene.process_of(killed), 9)
    scene.wait_for_log(interrupted, "Compiling")
    cluster.call("scancel", "--signal=TERM", jobs[interrupted])
    scene.wait_for_log(cancelled, "Compiling")
    cluster.call("scancel", jobs[cancelled])
    assert cluster.wait(jobs[killed])["JobState"] == "FAILED"
    assert cluster.wait(jobs[cancelled])["JobState"] == "CANCELLED"

    told, code = scene.on_slurm("--wait")
    assert code == DONE, told
    assert set(re.findall(r"^(\S+) is submitted", told, re.M)) == {killed, cancelled}
    assert scene.log(killed).count("$ ") == scene.log(interrupted).count("$ ") == 2
    last = {name: cluster.job(job) for name, job in jobs.items()}
    assert last[interrupted]["Restarts"] == "1"
    assert {job["NodeList"] for job in last.values()} >= {"127.1", "127.2"}

    wait_until(lambda: not cluster.call("squeue", "--noheader"), 240, "the tables are written")
    ended = cluster.call("squeue", "--states=all", "--noheader", "--array", "--format=%i %T")
    # One job for the tables after each of the two arrays; only jobs of arrays have a "_".
    assert re.findall(r"^\d+ (\w+)$", ended, re.M) == ["COMPLETED"] * 2

    alone = scene.sweep("alone", "--parallel=2")
    told = alone.communicate(timeout=300)[1]
    assert alone.returncode == DONE, told
    for name in ("sweep.csv", "sweep.md"):
        table = (tmp_path / "slurm" / name).read_bytes()
        assert table == (tmp_path / "alone" / name).read_bytes()
