"""The launch scripts against a cloud of one file: what they ask it for, when they stop, and what they leave running.

`gcloud`, `git`, `srun`, `scontrol` and `sleep` are small programs on PATH that record their calls; a scene says how
each start of the run ends. No script sees the network.
"""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_scene import GCLOUD, LAUNCH, ROOT, Scene, program, wait_for

SCRIPTS = ("tpu_vm.sh", "gce_tpu.sh", "slurm.sbatch", "multi_gpu.sh")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


# ---- every script ---------------------------------------------------------------------------------------------------


def test_shellcheck_is_clean() -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    scripts = sorted(str(path.relative_to(ROOT)) for path in LAUNCH.iterdir())
    done = subprocess.run([shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


EXPECTED = {
    "tpu_vm.sh": [
        "queued-resources create",
        "scp",
        "install",
        "worker.sh\\ run",
        "--distributed=on",
        "delete",
    ],
    "gce_tpu.sh": [
        "instance-templates create",
        "workload-policy",
        "managed create",
        "scp",
        "install",
        "worker.sh\\ run",
        "--distributed=on",
        "managed delete",
        "instance-templates delete",
        "resource-policies delete",
    ],
    "slurm.sbatch": ["sbatch", "install.sh", "srun", "kacl_jax.main", "scontrol requeue"],
    "multi_gpu.sh": ["install.sh", "kacl_jax.main --distributed=off"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_prints_every_command_in_order_and_runs_none(scene: Scene, script: str) -> None:
    """With nothing on PATH but a shell and text tools: whatever is not printed would fail."""
    for tool in ("bash", "env", "cat", "dirname", "seq", "awk", "rm", "grep"):
        found = shutil.which(tool)
        assert found
        (scene.bin / tool).symlink_to(found)
    for tool in ("git", "sleep"):
        (scene.bin / tool).unlink()
    scene.environment["PATH"] = str(scene.bin)
    before = sorted(scene.house.rglob("*"))
    code, told = scene.run(script, "--dry-run")
    assert code == 0, told
    at = 0
    for part in EXPECTED[script]:
        assert part in told[at:], (part, told)
        at = told.index(part, at)
    assert "not found" not in told
    assert sorted(scene.house.rglob("*")) == before


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_missing_flags(scene: Scene, script: str) -> None:
    code, told = scene.run(script, "--help")
    assert code == 0
    assert f"launch/{script}" in told
    assert "Exit code" in told
    code, told = scene.run(script)
    assert code == 1
    assert "--config=…" in told
    if script != "multi_gpu.sh":
        assert "--workdir=…" in told
    if "tpu" in script:
        assert "--zone=…" in told
        code, told = scene.run(script, "--zoen=x")
        assert code == 1
        assert "--zoen=x" in told


# ---- the two TPU scripts: one loop ----------------------------------------------------------------------------------

FLAGS = {
    "tpu_vm.sh": ("--type=v5litepod-8",),
    "gce_tpu.sh": ("--machine=ct6e-standard-4t",),
}
CREATE = {"tpu_vm.sh": "queued-resources create", "gce_tpu.sh": "managed create"}
DELETE = {"tpu_vm.sh": "queued-resources delete", "gce_tpu.sh": "managed delete"}
RUN = ("--zone=us-x1-a", "--config=configs/nih.py", "--workdir=gs://b/run")

Launch = Callable[..., tuple[int, str]]


@pytest.fixture(params=sorted(FLAGS))
def script(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cloud(scene: Scene) -> Scene:
    program(scene.bin, "gcloud", GCLOUD)
    scene.write("hosts", "0\n")
    scene.write("born", "ACTIVE\n")
    return scene


@pytest.fixture
def launch(cloud: Scene, script: str) -> Launch:
    """launch([how each start ends …] per worker, more flags) → (exit code, what was told)."""

    def run(*endings: list[str], flags: tuple[str, ...] = ()) -> tuple[int, str]:
        cloud.write("hosts", "".join(f"{i}\n" for i in range(len(endings))))
        for i, lines in enumerate(endings):
            cloud.write(f"runs.{i}", "\n".join(lines) + "\n")
        return cloud.run(script, *FLAGS[script], *RUN, *flags)

    return run


def starts(cloud: Scene) -> list[str]:
    return cloud.calls("worker.sh\\ run")


def test_a_run_that_ends_well(cloud: Scene, launch: Launch, script: str) -> None:
    code, told = launch(["0"])
    assert code == 0, told
    kinds = (CREATE[script], "scp", "worker.sh\\ install", "worker.sh\\ run", DELETE[script])
    seen = [kind for call in cloud.calls() for kind in kinds if kind in call]
    assert seen == [kinds[0], "scp", "scp", *kinds[2:]]
    assert not cloud.machine_is_there
    assert "--distributed=off" in starts(cloud)[0]
    assert "shards" not in starts(cloud)[0]
    (log,) = (cloud.house / "runs/launch/kacl").glob("run.*.log")
    assert log.read_text() == "start on worker 0\nkacl_jax ended with exit code 0\n"
    assert "start on worker 0" in told


def test_a_machine_that_is_there_is_used(cloud: Scene, launch: Launch, script: str) -> None:
    cloud.write("machine", "ACTIVE\n")
    assert launch(["0"])[0] == 0
    assert not cloud.calls(CREATE[script])
    assert not cloud.machine_is_there


def test_preempted_it_is_created_anew_and_the_same_command_goes_on(
    cloud: Scene, launch: Launch, script: str
) -> None:
    code, told = launch(["preempted", "preempted", "0"])
    assert code == 0, told
    assert len(cloud.calls(CREATE[script])) == 3
    assert len(starts(cloud)) == 3
    assert len(set(starts(cloud))) == 1
    assert not cloud.machine_is_there


def test_what_an_earlier_preemption_left_is_cleared_first(
    cloud: Scene, launch: Launch, script: str
) -> None:
    cloud.write("machine", "SUSPENDED\n")
    assert launch(["0"])[0] == 0
    calls = [c for c in cloud.calls() if CREATE[script] in c or DELETE[script] in c]
    assert [DELETE[script] in c for c in calls] == [True, False, True]


@pytest.mark.parametrize("how", ["75", "lost"])
def test_an_interruption_or_a_lost_connection_keeps_the_machine(
    cloud: Scene, launch: Launch, script: str, how: str
) -> None:
    assert launch([how, "0"])[0] == 0
    assert len(cloud.calls(CREATE[script])) == 1
    assert len(cloud.calls(DELETE[script])) == 1
    assert len(starts(cloud)) == 2


@pytest.mark.parametrize("code", [1, 76, 137])
def test_a_failure_is_not_repeated_and_its_code_is_passed_on(
    cloud: Scene, launch: Launch, code: int
) -> None:
    found, told = launch([str(code), "0"])
    assert found == code, told
    assert len(starts(cloud)) == 1
    assert not cloud.machine_is_there
    assert any((cloud.house / "runs/launch/kacl").glob("run.*.log"))


def test_it_does_not_go_on_for_ever(cloud: Scene, launch: Launch) -> None:
    code, told = launch(["75"], flags=("--attempts=3",))
    assert code == 75
    assert "3 times" in told
    assert len(starts(cloud)) == 3
    assert not cloud.machine_is_there


@pytest.mark.parametrize(
    "endings, code, n",
    [
        ([["0"], ["0"]], 0, 2),
        ([["75"], ["1"]], 1, 2),
        ([["1"], ["75"]], 1, 2),
        ([["lost"], ["76"]], 76, 2),
        ([["75", "0"], ["0"]], 0, 4),
        ([["0"], ["lost", "0"]], 0, 4),
    ],
)
def test_on_a_slice_the_worst_worker_decides(
    cloud: Scene, launch: Launch, script: str, endings: list[list[str]], code: int, n: int
) -> None:
    slice_ = ("--topology=2x4",) if script == "gce_tpu.sh" else ()
    found, told = launch(*endings, flags=slice_)
    assert found == code, told
    assert len(starts(cloud)) == n, told
    assert all(
        "--distributed=on --config.data.shards=2" in s.replace("\\ ", " ") for s in starts(cloud)
    )
    assert not cloud.machine_is_there


def test_arguments_reach_the_run_whole(cloud: Scene, launch: Launch) -> None:
    launch(["0"], flags=("--config.data.root=/my data/nih's", "--config.data.shards=4"))
    (command,) = [w for w in shlex.split(starts(cloud)[0]) if w.startswith("--command=")]
    words = shlex.split(command.removeprefix("--command="))
    assert words[:3] == ["bash", "worker.sh", "run"]
    assert words[4:] == [
        "gs://b/run",
        "--config=configs/nih.py",
        "--config.data.root=/my data/nih's",
        "--config.data.shards=4",
        "--distributed=off",
    ]


def test_a_machine_that_is_slow_to_answer(cloud: Scene, launch: Launch, script: str) -> None:
    cloud.write("deaf", "1\n" * 3)
    cloud.write("glitches", "1\n" * 4)
    code, told = launch(["0"])
    assert code == 0, told
    assert len(cloud.calls(CREATE[script])) == 1


@pytest.mark.parametrize("fault", ["deaf", "uninstallable", "glitches"])
def test_what_cannot_be_reached_or_installed_is_deleted(
    cloud: Scene, launch: Launch, fault: str
) -> None:
    cloud.write("machine", "ACTIVE\n")
    cloud.write(fault, "1\n" * (5 if fault == "glitches" else 20))
    code, told = launch(["0"])
    assert code == 1, told
    assert not starts(cloud)
    assert not cloud.machine_is_there


def test_a_refused_request_is_told_and_cleared(cloud: Scene) -> None:
    cloud.write("born", "FAILED\n")
    code, told = cloud.run("tpu_vm.sh", *FLAGS["tpu_vm.sh"], *RUN)
    assert code == 1
    assert "it is FAILED" in told
    assert not cloud.machine_is_there


def test_a_machine_that_cannot_be_deleted_is_not_kept_quiet(
    cloud: Scene, launch: Launch, script: str
) -> None:
    cloud.write("undeletable", "")
    code, told = launch(["0"])
    assert code == 1, told
    assert "COULD NOT DELETE" in told
    assert f"{DELETE[script]} kacl --zone=us-x1-a" in told


@pytest.mark.parametrize("flag, answer", [("", ""), ("--keep", ""), ("", "n\n"), ("", "\n")])
def test_ctrl_c_deletes_unless_told_to_keep(
    cloud: Scene, script: str, flag: str, answer: str
) -> None:
    """Without a terminal there is nobody to ask."""
    cloud.write("runs.0", "hang\n")
    ours, theirs = pty.openpty()
    flags = (*FLAGS[script], *RUN, *([flag] if flag else []))
    started = cloud.start(script, *flags, stdin=theirs if answer else subprocess.DEVNULL)
    wait_for(lambda: (cloud.here / "hanging").exists())
    os.killpg(started.pid, signal.SIGINT)
    os.write(ours, answer.encode())
    told, _ = started.communicate(timeout=60)
    assert started.returncode == 130
    kept = flag == "--keep" or answer == "n\n"
    assert cloud.machine_is_there == kept, told
    assert ("LEFT RUNNING AND COSTING MONEY" in told) == kept
    assert (f"{DELETE[script]} kacl" in told) == kept
    connection = (cloud.here / "hanging").read_text().strip()
    wait_for(lambda: not Path("/proc", connection).exists())


def test_topology_and_machine_give_the_hosts(cloud: Scene) -> None:
    def told(*flags: str) -> tuple[int, str]:
        return cloud.run("gce_tpu.sh", *RUN, *flags, "--dry-run")

    code, text = told("--machine=ct6e-standard-4t", "--topology=4x4")
    assert code == 0
    assert "--size=4 " in text
    assert "--config.data.shards=4" in text
    code, text = told("--machine=ct6e-standard-8t")
    assert code == 0
    assert "--size=1 " in text
    assert "workload-policy" not in text
    for wrong in ("4by4", "2x2", "3x3"):
        code, text = told("--machine=ct6e-standard-4t", f"--topology={wrong}")
        assert code == 1
        assert f"--topology={wrong}" in text
    assert "v2-alpha-tpuv6e" in cloud.run("tpu_vm.sh", *RUN, "--type=v6e-8", "--dry-run")[1]
    code, text = cloud.run("tpu_vm.sh", *RUN, "--type=v9-8", "--dry-run")
    assert code == 1
    assert "--runtime=…" in text
