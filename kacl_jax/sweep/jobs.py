"""Runs many commands, a few at a time; each has its log and its devices, and this module reports how it ended.

Each signal to this process is forwarded to the commands as one SIGTERM. The commands run in sessions of their own, so
a Ctrl-C in the terminal does not reach them twice: kacl_jax.main would stop at the second signal without saving.
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
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType

from kacl_jax.runtime.errors import INTERRUPTED, NON_FINITE, WORKDIR_IN_USE, UserError

LOG = "log.txt"
_LOG_TAIL_LINES = 5
_POLL_S = 0.1
_VISIBLE_DEVICES, _PREALLOCATE = "CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_PREALLOCATE"


@dataclass(frozen=True)
class Job:
    """A command and the folder for its log."""

    name: str
    command: Sequence[str]
    folder: Path

    def log_tail(self, start: int = 0) -> list[str]:
        """The last lines of the log with anything in them, from byte `start` on."""
        try:
            text = (self.folder / LOG).read_bytes()[start:].decode(errors="replace")
        except OSError as error:
            text = f"its log cannot be read ({error})"
        return [line for line in text.splitlines() if line.strip()][-_LOG_TAIL_LINES:]


@dataclass
class Outcome:
    """How the jobs ended."""

    failed: dict[str, str] = field(default_factory=dict)  # name → reason
    in_use: list[str] = field(default_factory=list)  # names; another process had the workdir
    interrupted: bool = False


def start_command(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], *, new_session: bool
) -> tuple[subprocess.Popen[bytes], int]:
    """Start the command; its output is appended to the log in `folder`, after a line that shows the command.

    new_session: whether signals to this process's group or terminal must not reach the command.

    Returns:
      The process, and the byte of the log where its output begins.

    Raises:
      OSError: the folder or the log cannot be written, or the command does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=new_session,
        )
        return process, log.tell()


def run_jobs(
    jobs: Sequence[Job],
    *,
    parallel: int,
    refresh: Callable[[], object],
    environment: Mapping[str, str],
) -> Outcome:
    """Run all jobs in order, `parallel` at once. A failed job is reported, and the others go on.

    Args:
      refresh: called when jobs have succeeded, in a thread, so that others start and end meanwhile. Those that succeed
        during a call share the next one. A UserError from it counts as a failure of the jobs that it was called for.
      environment: variables for the jobs; this process's own variables override them.

    Raises:
      UserError: a folder that cannot be written.
    """
    return _JobRunner(jobs, parallel, refresh, environment).run()


def print_line(line: str) -> None:
    """Print a line to stderr; stdout is for the table."""
    print(line, file=sys.stderr, flush=True)


@dataclass
class _Running:
    job: Job
    number: int
    slot: int
    process: subprocess.Popen[bytes]
    start_time: float
    log_start: int  # byte of the log where the output of this start begins


class _JobRunner:
    def __init__(
        self,
        jobs: Sequence[Job],
        parallel: int,
        refresh: Callable[[], object],
        environment: Mapping[str, str],
    ) -> None:
        self._queue = list(enumerate(jobs, 1))
        self._total = len(jobs)
        self._refresh = refresh
        self._refreshing: tuple[Future[object], list[_Running]] | None = None  # with its jobs
        self._unrefreshed: list[_Running] = []  # succeeded since the last refresh began
        self._slot_variables = _device_variables(parallel)
        self._environment = {**environment, **os.environ}
        self._running: list[_Running] = []
        self._outcome = Outcome()
        self._n_signals = self._n_signals_forwarded = 0
        self._durations_s: list[float] = []
        self._start_time = time.monotonic()

    def run(self) -> Outcome:
        with self._handle_signals(), ThreadPoolExecutor(1) as thread:
            try:
                while self._is_busy():
                    self._poll()
                    self._poll_refresh(thread)
                    time.sleep(_POLL_S)
            finally:
                for running in self._running:
                    running.process.terminate()
        self._outcome.interrupted |= bool(self._n_signals)
        return self._outcome

    def _is_busy(self) -> bool:
        may_start = self._queue and not self._n_signals
        return bool(self._running or self._refreshing or self._unrefreshed or may_start)

    def _poll(self) -> None:
        for running in list(self._running):
            if running.process.poll() is not None:
                self._running.remove(running)
                self._end_job(running)
        free = set(range(len(self._slot_variables))) - {running.slot for running in self._running}
        for slot in sorted(free):
            if self._queue and not self._n_signals:
                self._running.append(self._start_job(*self._queue.pop(0), slot))
        while self._n_signals_forwarded < self._n_signals:
            self._n_signals_forwarded += 1
            for running in self._running:
                running.process.terminate()

    def _poll_refresh(self, thread: Executor) -> None:
        if self._refreshing and self._refreshing[0].done():
            call, succeeded = self._refreshing
            self._refreshing = None
            try:
                call.result()
            except UserError as error:
                for running in succeeded:
                    self._outcome.failed[running.job.name] = str(error)
                    print_line(f"{self._prefix(running)}: {error}")
        if self._unrefreshed and not self._refreshing:
            self._refreshing = thread.submit(self._refresh), self._unrefreshed
            self._unrefreshed = []

    def _start_job(self, number: int, job: Job, slot: int) -> _Running:
        print_line(f"[{number}/{self._total}] {job.name}")
        environment = {**self._environment, **self._slot_variables[slot]}
        try:
            process, log_start = start_command(
                job.command, job.folder, environment, new_session=True
            )
            return _Running(job, number, slot, process, time.monotonic(), log_start)
        except OSError as error:
            raise UserError(f"{job.name} cannot be started in {job.folder} ({error})") from error

    def _end_job(self, running: _Running) -> None:
        duration_s = time.monotonic() - running.start_time
        prefix = self._prefix(running)
        code = running.process.returncode
        if code == INTERRUPTED or (code == -signal.SIGTERM and self._n_signals):
            self._outcome.interrupted = True
            print_line(f"{prefix} stopped after {_format_duration(duration_s)}; resumable")
            return
        if code == WORKDIR_IN_USE:
            self._outcome.in_use.append(running.job.name)
            print_line(f"{prefix} is in use by another process")
            return
        if code:
            self._record_failure(
                running, prefix, f"{_describe_exit_code(code)} after {_format_duration(duration_s)}"
            )
            return
        self._durations_s.append(duration_s)
        print_line(f"{prefix} done in {_format_duration(duration_s)}; {self._time_summary()}")
        self._unrefreshed.append(running)

    def _prefix(self, running: _Running) -> str:
        return f"[{running.number}/{self._total}] {running.job.name}"

    def _record_failure(self, running: _Running, prefix: str, failure: str) -> None:
        lines = running.job.log_tail(running.log_start)
        self._outcome.failed[running.job.name] = (
            f"{failure}: {lines[-1] if lines else 'no message'}"
        )
        print_line(f"{prefix} failed: {failure}; the end of {running.job.folder / LOG}:")
        for line in lines:
            print_line(f"    {line}")

    def _time_summary(self) -> str:
        elapsed = time.monotonic() - self._start_time
        waiting = len(self._queue) + len(self._running) / 2  # on average a running job is half done
        left = sum(self._durations_s) / len(self._durations_s) * waiting / len(self._slot_variables)
        return f"{_format_duration(elapsed)} elapsed, about {_format_duration(left)} left"

    @contextmanager
    def _handle_signals(self) -> Iterator[None]:
        signal_numbers = (signal.SIGINT, signal.SIGTERM)
        previous_handlers = {
            number: signal.signal(number, self._on_signal) for number in signal_numbers
        }
        try:
            yield
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._n_signals += 1
        # Not print, which the signal may have interrupted.
        os.write(2, b"\nStopping: the running points save and end; once more to stop at once.\n")


def _device_variables(parallel: int) -> list[dict[str, str]]:
    """For each slot the variables that give it its share of the GPUs; empty where there are none to share.

    Where there are more slots than GPUs, several slots share one: each point then allocates GPU memory as it needs it,
    not three quarters of the GPU at the start.
    """
    visible = os.environ.get(_VISIBLE_DEVICES)
    if visible is None:
        # CUDA numbers the devices that it finds from 0, although a container's /dev may begin with nvidia2.
        devices = [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    else:
        names = (name for name in visible.split(",") if name)
        # CUDA ignores everything from the first negative number on.
        devices = list(itertools.takewhile(lambda name: not name.startswith("-"), names))
    if parallel == 1 or not devices:
        return [{} for _ in range(parallel)]
    if len(devices) < parallel:
        # The user's own setting wins.
        memory = {_PREALLOCATE: os.environ.get(_PREALLOCATE, "false")}
        return [{_VISIBLE_DEVICES: devices[i % len(devices)], **memory} for i in range(parallel)]
    return [{_VISIBLE_DEVICES: ",".join(devices[i::parallel])} for i in range(parallel)]


def _describe_exit_code(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "the loss was not finite" if code == NON_FINITE else f"exit code {code}"


def _format_duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
