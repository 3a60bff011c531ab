"""Many commands, a few at a time: each with its log, its devices, and an end that is told.

A signal to this process is passed on as SIGTERM, once for each time it comes; the commands have sessions of their own,
so a terminal's Ctrl-C does not reach them twice (kacl_jax.main takes the second as "at once", without saving).
"""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType

from kacl_jax.runtime.errors import INTERRUPTED, NON_FINITE, WORKDIR_IN_USE, UserError

LOG = "log.txt"
_LAST_LINES = 5
_POLL_S = 0.1
_VISIBLE, _PREALLOCATE = "CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_PREALLOCATE"


@dataclass(frozen=True)
class Job:
    """A command and the folder that its log goes to."""

    name: str
    command: Sequence[str]
    folder: Path


@dataclass
class Outcome:
    """How the jobs ended."""

    failed: dict[str, str] = field(default_factory=dict)  # name → reason
    interrupted: bool = False


def run_jobs(
    jobs: Sequence[Job],
    *,
    parallel: int,
    after_each: Callable[[], object],
    environment: Mapping[str, str],
) -> Outcome:
    """Run all jobs in order, `parallel` at once; a failed one is told and the rest goes on.

    Args:
      after_each: called when a job has ended well; a UserError there counts as a failure of that job.
      environment: what jobs are given beside this process's own, which comes first.

    Raises:
      UserError: a folder that cannot be written.
    """
    return _Jobs(jobs, parallel, after_each, environment).run()


def say(line: str) -> None:
    """A line for the person at the terminal, beside the table on stdout."""
    print(line, file=sys.stderr, flush=True)


@dataclass
class _Running:
    job: Job
    number: int
    slot: int
    process: subprocess.Popen[bytes]
    started: float
    log_start: int  # where this start's part of the log begins


class _Jobs:
    def __init__(
        self,
        jobs: Sequence[Job],
        parallel: int,
        after_each: Callable[[], object],
        environment: Mapping[str, str],
    ) -> None:
        self._queue = list(enumerate(jobs, 1))
        self._total = len(jobs)
        self._after_each = after_each
        self._devices = _devices(parallel)
        self._environment = {**environment, **os.environ}
        self._running: list[_Running] = []
        self._outcome = Outcome()
        self._signals = self._passed_on = 0
        self._took: list[float] = []
        self._start = time.monotonic()

    def run(self) -> Outcome:
        with self._watched():
            try:
                while self._running or (self._queue and not self._signals):
                    self._turn()
                    time.sleep(_POLL_S)
            finally:
                for running in self._running:
                    running.process.terminate()
        self._outcome.interrupted |= bool(self._signals)
        return self._outcome

    def _turn(self) -> None:
        for running in list(self._running):
            if running.process.poll() is not None:
                self._running.remove(running)
                self._ended(running)
        free = set(range(len(self._devices))) - {running.slot for running in self._running}
        for slot in sorted(free):
            if self._queue and not self._signals:
                self._running.append(self._started(*self._queue.pop(0), slot))
        while self._passed_on < self._signals:
            self._passed_on += 1
            for running in self._running:
                running.process.terminate()

    def _started(self, number: int, job: Job, slot: int) -> _Running:
        say(f"[{number}/{self._total}] {job.name}")
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            with (job.folder / LOG).open("ab") as log:
                log.write(f"$ {shlex.join(job.command)}\n".encode())
                log.flush()
                return _Running(
                    job,
                    number,
                    slot,
                    subprocess.Popen(
                        job.command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env={**self._environment, **self._devices[slot]},
                        start_new_session=True,
                    ),
                    time.monotonic(),
                    log.tell(),
                )
        except OSError as error:
            raise UserError(f"{job.name} cannot be started in {job.folder} ({error})") from error

    def _ended(self, running: _Running) -> None:
        took = time.monotonic() - running.started
        head = f"[{running.number}/{self._total}] {running.job.name}"
        code = running.process.returncode
        if code == INTERRUPTED or (code == -signal.SIGTERM and self._signals):
            self._outcome.interrupted = True
            say(f"{head} stopped after {_clock(took)}; resumable")
            return
        if code:
            self._fail(running, head, f"{_meaning(code)} after {_clock(took)}")
            return
        self._took.append(took)
        say(f"{head} done in {_clock(took)}; {self._times()}")
        try:
            self._after_each()
        except UserError as error:
            self._outcome.failed[running.job.name] = str(error)
            say(f"{head}: {error}")

    def _fail(self, running: _Running, head: str, what: str) -> None:
        path = running.job.folder / LOG
        try:
            text = path.read_bytes()[running.log_start :].decode(errors="replace")
        except OSError as error:
            text = f"its log cannot be read ({error})"
        lines = [line for line in text.splitlines() if line.strip()][-_LAST_LINES:]
        self._outcome.failed[running.job.name] = f"{what}: {lines[-1] if lines else 'no word'}"
        say(f"{head} failed: {what}; the end of {path}:")
        for line in lines:
            say(f"    {line}")

    def _times(self) -> str:
        elapsed = time.monotonic() - self._start
        waiting = len(self._queue) + len(self._running) / 2  # those that run are half done
        left = sum(self._took) / len(self._took) * waiting / len(self._devices)
        return f"{_clock(elapsed)} elapsed, about {_clock(left)} left"

    @contextmanager
    def _watched(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nStopping: the running points save and end; once more to stop at once.\n")


def _devices(parallel: int) -> list[dict[str, str]]:
    """Per slot, the variables that give it its share of the GPUs; empty where there are none to share.

    More slots than GPUs share them: each point then takes the memory that it needs, not three quarters of the GPU at
    its start.
    """
    named = os.environ.get(_VISIBLE)
    if named is None:
        # CUDA counts what is there from 0; a container's /dev may begin with nvidia2.
        devices = [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    else:
        names = (name for name in named.split(",") if name)
        # CUDA reads as far as the first negative number.
        devices = list(itertools.takewhile(lambda name: not name.startswith("-"), names))
    if parallel == 1 or not devices:
        return [{} for _ in range(parallel)]
    if len(devices) < parallel:
        taken = {_PREALLOCATE: os.environ.get(_PREALLOCATE, "false")}  # what was said stays said
        return [{_VISIBLE: devices[i % len(devices)], **taken} for i in range(parallel)]
    return [{_VISIBLE: ",".join(devices[i::parallel])} for i in range(parallel)]


def _meaning(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    words = {
        NON_FINITE: "the loss was not finite",
        WORKDIR_IN_USE: "its workdir is in use",
    }
    return words.get(code, f"exit code {code}")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
