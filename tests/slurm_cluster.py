"""A Slurm of several nodes on this machine: the real daemons in a folder of their own, on ports of their own.

Several clusters can run at once. The names of the nodes are loopback addresses in short (127.1 is 127.0.0.1), so that
they resolve without /etc/hosts. Each node says that it has eight GPUs, which are empty files.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged")
# cred_expire is also how long a requeued job waits.
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
FirstJobId={first_job}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=60
GresTypes=gpu
NodeName={names} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_ports} CPUs=2 CoresPerSocket=2 \
RealMemory=10000 Gres=gpu:8
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
"""


class Cluster:
    """The commands of a running cluster. `environment` is what makes another program a client of it."""

    def __init__(self, conf: Path) -> None:
        self.environment = {"SLURM_CONF": str(conf)}

    def call(self, *command: str, cwd: Path | None = None) -> str:
        """Run sbatch, scontrol, squeue, … in a folder and return what it prints.

        Give a job --mem, or it takes all memory of its nodes.
        """
        environment = os.environ | self.environment
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, ExitCode ('1:0'), Restarts, Reason, …"""
        words = self.call("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, seconds: float = 180) -> dict[str, str]:
        """Wait until the job has ended for good; what `job` says then."""
        going = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING")
        wait_until(
            lambda: self.job(number)["JobState"] not in going, seconds, f"job {number} ended"
        )
        return self.job(number)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}: not after {seconds} s"
        time.sleep(0.2)


@contextlib.contextmanager
def slurm_cluster(folder: Path, nodes: int = 2) -> Iterator[Cluster]:
    """Start a cluster whose files lie in `folder`; at the end cancel its jobs and stop it.

    Without Slurm the test is skipped. The folder's path must have no blanks.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs Debian's slurm-wlm and munge; there is no {', '.join(missing)}")
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"127.{i + 1}" for i in range(nodes)]
    conf = _write_files(folder, names)
    cluster = Cluster(conf)
    with contextlib.ExitStack() as stack:
        munge = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "log", "pid", "seed")]
        socket_ = f"--socket={folder}/munge.socket"
        stack.enter_context(_daemon("munged", "--foreground", "--force", socket_, *munge))
        wait_until((folder / "munge.socket").exists, 30, "munged listens")
        stack.callback(_kill_rest, conf)
        stack.enter_context(_daemon("slurmctld", "-D", "-f", str(conf)))
        for name in names:
            stack.enter_context(_daemon("slurmd", "-D", "-N", name, "-f", str(conf)))
        # sinfo asks again until slurmctld listens.
        state = ("sinfo", "--noheader", "--Node", "--format=%T")
        wait_until(
            lambda: cluster.call(*state).split() == ["idle"] * nodes, 60, "all nodes are idle"
        )
        stack.callback(_cancel_all, cluster)
        yield cluster


def _write_files(folder: Path, names: list[str]) -> Path:
    """slurm.conf, whose path is returned, and what it needs."""
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    (folder / "state").mkdir()
    for i in range(8):
        (folder / f"gpu{i}").touch()
    (folder / "cgroup.conf").touch()
    (folder / "gres.conf").write_text(
        f"NodeName={','.join(names)} Name=gpu File={folder}/gpu[0-7]\n"
    )
    port, *node_ports = _free_ports(1 + len(names))
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(
            folder=folder,
            user=getpass.getuser(),
            host=socket.gethostname(),
            port=port,
            node_ports=",".join(map(str, node_ports)),
            names=",".join(names),
            # jax makes the port of a run's coordinator out of the job's number.
            first_job=random.randrange(1000, 1_000_000),
        )
    )
    return conf


def _free_ports(count: int) -> list[int]:
    """Below those that the kernel gives to outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as s:
            if port not in found and s.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found


@contextlib.contextmanager
def _daemon(*command: str) -> Iterator[None]:
    """A daemon that also ends if this process is killed."""
    quiet = subprocess.DEVNULL  # they write logs
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", *command], stdin=quiet, stdout=quiet, stderr=quiet
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _cancel_all(cluster: Cluster) -> None:
    def jobs() -> list[str]:
        return cluster.call("squeue", "--noheader", "--format=%A").split()

    for number in jobs():
        cluster.call("scancel", "--full", "--signal=KILL", number)
        cluster.call("scancel", number)
    wait_until(lambda: not jobs(), 60, "all jobs have ended")


def _kill_rest(conf: Path) -> None:
    """End what a job left behind, and daemons of steps."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone, or of another user
            if f"SLURM_CONF={conf}\0".encode() in environ.read_bytes():
                os.kill(int(environ.parent.name), signal.SIGKILL)
