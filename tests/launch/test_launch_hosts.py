"""What the launch scripts do on the machine itself: a TPU worker, a Slurm job, a host with GPUs.

`python`, `srun`, `scontrol` and `gcloud` are small programs that record their calls and end as the test says.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launch_scene import LAUNCH, RECORD, Scene, program, wait_for


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


# ---- on a worker ----------------------------------------------------------------------------------------------------

# Says where it is and that it has begun; stays while `going` is there; then ends with the code in `ends`.
PYTHON = r"""#!/usr/bin/env bash
printf '%s|' "$@" >>"$SCENE/begun"; echo >>"$SCENE/begun"
echo "a line of the log"
while [ -e "$SCENE/going" ]; do /bin/sleep 0.02; done
exit "$(cat "$SCENE/ends")"
"""


@pytest.fixture
def worker(scene: Scene) -> Scene:
    """A home whose kacl_jax is installed; curl finds no metadata."""
    home = Path(scene.environment["HOME"])
    program(home / "kacl_jax/.venv/bin", "python", PYTHON)
    shutil.copy(LAUNCH / "worker.sh", home)
    program(scene.bin, "curl", "#!/bin/sh\nexit 7\n")
    program(scene.bin, "gcloud", RECORD)
    program(scene.bin, "sleep", '#!/bin/sh\n[ "$1" = 300 ] && exec /bin/sleep 60\nexit 0\n')
    scene.write("ends", "0")
    return scene


def at_work(worker: Scene, *arguments: str) -> subprocess.Popen[str]:
    script = Path(worker.environment["HOME"]) / "worker.sh"
    return subprocess.Popen(
        ["bash", str(script), *arguments],
        env=worker.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def told(started: subprocess.Popen[str]) -> str:
    return started.communicate(timeout=60)[0]


def begun(worker: Scene) -> list[str]:
    path = worker.here / "begun"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("code", [0, 1, 75])
def test_a_worker_tells_log_and_exit_code(worker: Scene, code: int) -> None:
    worker.write("ends", str(code))
    text = told(at_work(worker, "run", "0", "/a folder/run", "--config=a b"))
    assert text == f"a line of the log\nkacl_jax ended with exit code {code}\n"
    assert begun(worker) == ["-m|kacl_jax.main|--workdir=/a folder/run|--config=a b|"]
    assert not worker.calls()


def test_a_lost_connection_does_not_end_the_run_and_a_new_one_finds_it(worker: Scene) -> None:
    worker.write("going", "")
    first = at_work(worker, "run", "0", "/run")
    wait_for(lambda: len(begun(worker)) == 1)
    os.killpg(first.pid, signal.SIGKILL)
    told(first)
    second = at_work(worker, "run", "0", "/run")
    program(worker.bin, "git", RECORD)
    assert told(at_work(worker, "install")) == ""
    assert not worker.calls("git")  # nothing changes beneath it
    time.sleep(0.2)
    assert second.poll() is None
    (worker.here / "going").unlink()
    assert told(second) == "a line of the log\nkacl_jax ended with exit code 0\n"
    assert len(begun(worker)) == 1


def test_a_killed_run_counts_as_interrupted_and_can_be_started_again(worker: Scene) -> None:
    program(
        Path(worker.environment["HOME"]) / "kacl_jax/.venv/bin",
        "python",
        "#!/bin/sh\nkill -9 $PPID\n",
    )
    for _ in range(2):
        text = told(at_work(worker, "run", "0", "/run"))
        assert text.endswith("\nkacl_jax ended with exit code 75\n")


def test_a_bucket_is_fetched_before_and_brought_up_to_date_after(worker: Scene) -> None:
    told(at_work(worker, "run", "0", "gs://b/run", "--config=c"))
    home = f"{worker.environment['HOME']}/kacl_run/workdir"
    assert begun(worker) == [f"-m|kacl_jax.main|--workdir={home}|--config=c|"]
    copies = [shlex.split(call)[-2:] for call in worker.calls("storage")]
    assert copies == [["-", "gs://b/run/launched.txt"], ["gs://b/run", home], [home, "gs://b/run"]]
    assert "delete" not in "".join(worker.calls())


def test_a_run_is_not_done_before_its_results_are_in_the_bucket(worker: Scene) -> None:
    """Fetching, and two tries to bring back, of which the scene fails as many as `full` has lines."""
    away = '[ "${*: -1}" = gs://b/run ] && [ -s "$SCENE/full" ] && sed -i 1d "$SCENE/full" && exit 1\nexit 0\n'
    program(worker.bin, "gcloud", RECORD + away)
    for full, code in ((1, 0), (2, 75), (0, 0)):
        worker.write("full", "1\n" * full)
        text = told(at_work(worker, "run", "0", "gs://b/run", "--config=c"))
        assert text.endswith(f"exit code {code}\n"), text
    # The machine that has the newest state does not fetch an older one over it.
    assert sum(call.split()[-2] == "gs://b/run" for call in worker.calls("rsync")) == 1


def test_only_the_process_that_leads_touches_the_bucket(worker: Scene) -> None:
    """By jax's number, where the machine knows it, and not by the order in which the group lists its machines."""
    told(at_work(worker, "run", "1", "gs://b/run", "--config=c"))
    program(worker.bin, "curl", "#!/bin/sh\necho 1\n")
    told(at_work(worker, "run", "0", "gs://b/run", "--config=c"))
    assert not worker.calls()
    program(worker.bin, "curl", "#!/bin/sh\necho 0\n")
    told(at_work(worker, "run", "1", "gs://b/run", "--config=c"))
    assert len(worker.calls("storage")) == 3


def test_data_in_a_bucket_is_copied_to_the_disk_first(worker: Scene) -> None:
    told(at_work(worker, "run", "1", "/run", "--config=c", "--config.data.root=gs://b/my data"))
    home = f"{worker.environment['HOME']}/kacl_run/data"
    (copy,) = worker.calls()
    assert shlex.split(copy)[-2:] == ["gs://b/my data", home]
    assert begun(worker) == [
        f"-m|kacl_jax.main|--workdir=/run|--config=c|--config.data.root={home}|"
    ]


def test_a_bucket_that_cannot_be_written_is_told_before_the_run(worker: Scene) -> None:
    program(worker.bin, "gcloud", "#!/bin/sh\necho no permission >&2\nexit 1\n")
    text = told(at_work(worker, "run", "0", "gs://b/run", "--config=c"))
    assert text == "no permission\nkacl_jax ended with exit code 1\n"
    assert not begun(worker)


def test_installing_takes_the_commit_and_only_once_the_packages(worker: Scene) -> None:
    home = Path(worker.environment["HOME"])
    (home / "kacl_jax/launch").mkdir()
    shutil.copy(LAUNCH / "install.sh", home / "kacl_jax/launch")
    (home / "kacl_jax/requirements.lock").write_text("numpy\n")
    program(worker.bin, "git", RECORD)
    program(home / "kacl_jax/.venv/bin", "pip", RECORD)
    for _ in range(2):
        assert told(at_work(worker, "install")) == ""
    assert len(worker.calls("git fetch")) == 2
    assert worker.calls("pip") == [
        "pip install -q -r requirements.lock ",
        "pip install -q jax\\[tpu\\] ",
    ]


# ---- Slurm and one host ---------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(scene: Scene) -> Scene:
    """A house whose packages are installed, so that install.sh has nothing to do.

    `ends`: the exit codes of the run's processes, a line each, or nothing for one that has no time to say it. As the
    real srun, the one here returns the highest code. test_launch_slurm.py has the real one.
    """
    program(
        scene.house / ".venv/bin",
        "python",
        RECORD
        + 'echo "ids=$JAX_LOCAL_DEVICE_IDS platforms=$JAX_PLATFORMS" >>"$SCENE/devices"\ntouch "$SCENE/up"\n'
        + 'while [ -e "$SCENE/going" ]; do /bin/sleep 0.02; done\n'
        + 'code=$(sed -n "$((${SLURM_PROCID:-0} + 1))p" "$SCENE/ends")\n[ -n "$code" ] || kill -9 $PPID\n'
        + 'exit "$code"\n',
    )
    (scene.house / ".venv/installed").write_text("numpy\njax[cuda13]\n")
    program(
        scene.bin,
        "srun",
        RECORD
        + "while [[ $1 == --* ]]; do shift; done\nhighest=0\n"
        + 'for SLURM_PROCID in $(seq 0 $(($(wc -l <"$SCENE/ends") - 1))); do\n'
        + '  export SLURM_PROCID; code=0; "$@" || code=$?\n  ((code <= highest)) || highest=$code\n'
        + 'done\nexit "$highest"\n',
    )
    program(scene.bin, "scontrol", RECORD + 'cat "$SCENE/job"\n')
    scene.write("job", "JobId=7 JobState=RUNNING\n")
    scene.environment |= {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }
    scene.environment["SLURM_SUBMIT_DIR"] = str(scene.house)
    return scene


@pytest.mark.parametrize(
    "ends, code, state, restarts, requeued",
    [
        ("0", 0, "RUNNING", 0, False),
        ("1", 1, "RUNNING", 0, False),
        ("76", 76, "RUNNING", 0, False),
        ("77", 77, "RUNNING", 0, False),
        ("75", 75, "RUNNING", 19, True),
        ("75", 75, "RUNNING", 20, False),
        ("75", 75, "CANCELLED", 0, False),
        ("0\n75", 75, "RUNNING", 0, True),
        ("137\n75", 75, "RUNNING", 0, True),
        ("75\n", 75, "RUNNING", 0, True),
        ("1\n75", 1, "RUNNING", 0, False),
        ("75\n76", 76, "RUNNING", 0, False),
        ("75\n77", 77, "RUNNING", 0, False),
        ("137\n137", 137, "RUNNING", 0, False),
        ("\n", 137, "RUNNING", 0, False),
    ],
)
def test_slurm_requeues_where_a_process_was_interrupted_and_none_found_a_mistake(
    cluster: Scene, ends: str, code: int, state: str, restarts: int, requeued: bool
) -> None:
    cluster.write("ends", f"{ends}\n")
    cluster.write("job", f"JobId=7 JobState={state}\n")
    cluster.environment["SLURM_RESTART_COUNT"] = str(restarts)
    found, text = cluster.run("slurm.sbatch", "--config=c", "--workdir=/a b/run")
    assert found == code, text
    assert bool(cluster.calls("scontrol requeue 7")) == requeued
    (call,) = cluster.calls("srun")
    assert (
        "kacl_jax.main --config=c --workdir=/a\\ b/run --distributed=on --config.data.shards=2"
        in call
    )
    devices = (cluster.here / "devices").read_text().splitlines()
    assert devices == ["ids=0,1,2,3 platforms=cuda"] * len(f"{ends}\n".splitlines())


def test_slurm_waits_for_the_run_to_save_when_told_to_stop(cluster: Scene) -> None:
    cluster.write("ends", "75\n")
    cluster.write("going", "")
    job = cluster.start("slurm.sbatch", "--config=c", "--workdir=/run")
    wait_for(lambda: (cluster.here / "up").exists())
    os.killpg(job.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert job.poll() is None
    (cluster.here / "going").unlink()
    told, _ = job.communicate(timeout=60)
    assert job.returncode == 75
    assert told.startswith("\nkacl_jax ended with exit code 75\n")
    assert cluster.calls("scontrol requeue 7")


@pytest.mark.parametrize("code", [0, 1, 75, 76])
def test_one_host_passes_the_exit_code_on(cluster: Scene, code: int) -> None:
    cluster.write("ends", f"{code}\n")
    assert cluster.run("multi_gpu.sh", "--config=c")[0] == code


@pytest.mark.parametrize("script", ["slurm.sbatch", "multi_gpu.sh"])
def test_the_cpu_is_taken_only_where_it_is_allowed(cluster: Scene, script: str) -> None:
    """The flag is the script's own: `srun` and the program never see it."""
    cluster.write("ends", "0\n")
    for flags in ((), ("--allow_cpu",)):
        code, text = cluster.run(script, *flags, "--config=c", "--workdir=/run")
        assert code == 0, text
    asked = (cluster.here / "devices").read_text().splitlines()
    assert [line.partition("platforms=")[2] for line in asked] == ["cuda", ""]
    assert not cluster.calls("allow_cpu")


def test_a_python_that_is_too_old_is_named(scene: Scene) -> None:
    program(
        scene.bin,
        "python3",
        '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.1 && exit\nexit 1\n',
    )
    code, text = scene.run("multi_gpu.sh", "--config=c")
    assert code == 1
    assert "Python 3.10.1" in text
    assert "3.11" in text
