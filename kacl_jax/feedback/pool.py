"""RadiomicsPool: pyradiomics in worker processes that may be killed, hang or raise without harm.

One thread of this process looks after one worker process over one duplex pipe, so that a worker's
whole life reads top to bottom in `_serve`: start, ask, lose, replace. A worker is a fresh
interpreter (`python -m kacl_jax.feedback.worker`), not a multiprocessing child: it does not import the
caller's `__main__`, so jax cannot get into it, scripts need no `if __name__ == "__main__"` guard,
and OMP_NUM_THREADS is set before its numpy loads. What goes through the pipe is raw bytes.
"""

from __future__ import annotations

import atexit
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from kacl_jax.feedback.result import Result, result_from_features
from kacl_jax.feedback.worker import RAISED, READY, REFUSED, SECONDS, SHAPE
from kacl_jax.radiomics.host import crop
from kacl_jax.runtime.errors import InterruptedRunError, UserError

START_LIMIT_S = 180.0  # importing pyradiomics takes about 1 s; a cold network disk may need more
START_FAILURES_PER_WORKER = 3


@dataclass(frozen=True, eq=False)
class _Task:
    message: bytes
    future: Future[Result]


class _WorkerLostError(Exception):
    """The worker cannot be used any more. The message is the reason that users read."""


class _PoolEndedError(Exception):
    """The pool was closed or has given up; its threads end."""


class RadiomicsPool:
    """A number of worker processes, each with one Extractor(bin_width). A context manager.

    timeout_s: a task that takes longer counts as hung, and its worker is killed.
    max_tasks: a worker is replaced after so many tasks, because pyradiomics' memory grows.
    nice: how far the workers stand back behind other processes, 0 … 19, as nice(1).
    A worker that dies, hangs or raises is replaced. Only the task that it held is tried once more.
    """

    def __init__(
        self,
        workers: int,
        *,
        bin_width: float,
        timeout_s: float = 60.0,
        max_tasks: int = 1000,
        nice: int = 0,
    ) -> None:
        if workers < 1 or timeout_s <= 0 or max_tasks < 1:
            raise ValueError(
                "workers, timeout_s and max_tasks must be positive, got "
                f"{workers}, {timeout_s}, {max_tasks}"
            )
        self.bin_width = bin_width
        self.timeout_s = timeout_s
        self.max_tasks = max_tasks
        self._nice = nice
        self.restarts = 0  # workers replaced because they were lost
        self.worker_busy_s = 0.0  # seconds inside the extractor, summed over workers
        self._start_failures = 0  # in a row, over all workers
        self._has_started = False  # whether any worker was ever ready
        self._ended: Exception | None = (
            None  # why the pool accepts no more tasks; None while it does
        )
        self._tasks: deque[_Task] = deque()
        self._changed = threading.Condition()  # guards everything above and _workers
        self._workers: list[_Worker | None] = [None] * workers
        self._threads = [
            threading.Thread(target=self._serve, args=(i,), name=f"radiomics-{i}", daemon=True)
            for i in range(workers)
        ]
        atexit.register(self.close)
        for thread in self._threads:
            thread.start()

    def submit(self, pixels: np.ndarray, mask: np.ndarray) -> Future[Result]:
        """Queue one region: pixels uint8 [h w], mask bool [h w]. Returns at once.

        Raises RuntimeError when the pool is closed, UserError when its workers never started, and InterruptedRunError
        when they no longer do. The future of a task that was waiting then raises the same.
        """
        pixels, mask = crop(pixels, mask)
        message = b"".join(
            [SHAPE.pack(*pixels.shape), pixels.tobytes(), np.packbits(mask).tobytes()]
        )
        task = _Task(message, Future())
        with self._changed:
            self._raise_if_ended()
            self._tasks.append(task)
            self._changed.notify()
        return task.future

    def check(self) -> None:
        """Raise as `submit` if the pool is closed or has given up, so that no task will be answered."""
        with self._changed:
            self._raise_if_ended()

    def pids(self) -> list[int]:
        """The process ids of the workers that are running."""
        with self._changed:
            return [worker.process.pid for worker in self._workers if worker is not None]

    def close(self) -> None:
        """Ends all workers and threads; what was not answered yet raises. May be called twice."""
        self._end(RuntimeError("the radiomics pool is closed"))
        for thread in self._threads:
            thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> RadiomicsPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _command(self) -> list[str]:
        """The worker; it gets the pipe's file descriptor and this process's id as arguments too."""
        return [sys.executable, "-P", "-m", "kacl_jax.feedback.worker", repr(self.bin_width)]

    # --- the thread of one worker -----------------------------------------------------------

    def _serve(self, index: int) -> None:
        try:
            while True:
                if self._workers[index] is None:
                    self._start(index)
                self._answer(index, self._next_task())
        except _PoolEndedError:
            pass
        except BaseException:  # a bug here must not leave anybody waiting for an answer
            self._end(
                RuntimeError(f"a thread of the radiomics pool broke: {traceback.format_exc()}")
            )
        finally:
            self._stop(index)

    def _start(self, index: int) -> None:
        """Fill the slot with a worker that is ready, or end the pool if none will ever start."""
        while True:
            try:
                with self._changed:
                    self._raise_if_ended(_PoolEndedError)
                    worker = self._workers[index] = _Worker(self._command(), self.timeout_s)
                worker.wait_until_ready()
                if self._nice:  # only now: on a busy machine it would not be ready in time
                    os.setpriority(os.PRIO_PROCESS, worker.process.pid, self._nice)
            except (_WorkerLostError, OSError) as error:
                self._stop(index)
                self._count_start_failure(str(error))
                time.sleep(0.1)
            else:
                with self._changed:
                    self._start_failures = 0
                    self._has_started = True
                return

    def _count_start_failure(self, problem: str) -> None:
        with self._changed:
            self._start_failures += 1
            failures = self._start_failures
        if failures >= START_FAILURES_PER_WORKER * len(self._workers):
            problem = f"The radiomics workers do not start, {failures} failures in a row: {problem} (see above). "
            if self._has_started:
                self._end(InterruptedRunError(problem + "Run the same command again to resume."))
            else:
                self._end(
                    UserError(problem + "Is pyradiomics installed, and is there enough memory?")
                )

    def _next_task(self) -> _Task:
        with self._changed:
            while True:
                self._raise_if_ended(_PoolEndedError)
                while self._tasks:
                    task = self._tasks.popleft()
                    if task.future.set_running_or_notify_cancel():
                        return task
                self._changed.wait()

    def _answer(self, index: int, task: _Task) -> None:
        reason = ""
        for _ in range(2):
            try:
                if self._workers[index] is None:
                    self._start(index)
                result = self._ask(index, task.message)
            except _WorkerLostError as lost:
                reason = str(lost)
                self._stop(index)
                with self._changed:
                    self.restarts += 1
            except _PoolEndedError:
                task.future.set_exception(self._why_ended())
                raise
            else:
                task.future.set_result(result)
                return
        task.future.set_result(Result(None, reason, deterministic=False))

    def _ask(self, index: int, message: bytes) -> Result:
        worker = self._workers[index]
        assert worker is not None
        try:
            reply = worker.ask(message)
        except _WorkerLostError:
            with self._changed:
                self._raise_if_ended(_PoolEndedError)  # killed by close(), not lost
            raise
        kind, payload = reply[:1], reply[1 + SECONDS.size :]
        with self._changed:
            self.worker_busy_s += SECONDS.unpack_from(reply, 1)[0]
        if kind == RAISED:
            raise _WorkerLostError(payload.decode())
        if worker.asked >= self.max_tasks:
            self._stop(index)
        if kind == REFUSED:
            return Result(None, payload.decode())
        return result_from_features(np.frombuffer(payload, "<f4").astype(np.float32))

    def _stop(self, index: int) -> None:
        worker = self._workers[index]
        if worker is not None:
            worker.stop()
            with self._changed:
                self._workers[index] = None

    def _end(self, why: Exception) -> None:
        """Take no task any more, fail the waiting ones, kill the workers. The first reason stays.

        The threads find out from their broken pipes and stop their own workers.
        """
        with self._changed:
            self._ended = self._ended or why
            waiting = list(self._tasks)
            self._tasks.clear()
            for worker in self._workers:
                if worker is not None:
                    worker.process.kill()
            self._changed.notify_all()
        for task in waiting:
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(self._why_ended())

    def _raise_if_ended(self, error: type[Exception] | None = None) -> None:
        if self._ended is not None:
            raise self._why_ended() if error is None else error

    def _why_ended(self) -> Exception:
        """A new exception each time, because each that is raised collects a traceback."""
        assert self._ended is not None
        return type(self._ended)(*self._ended.args)


class _Worker:
    """One worker process, seen from the parent. Used by one thread."""

    def __init__(self, command: list[str], timeout_s: float) -> None:
        parent_end, worker_end = socket.socketpair()
        with parent_end, worker_end:
            # A stopped worker does not read: without this a large region would block for ever.
            limit = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
            parent_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            parent_end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self.process = subprocess.Popen(
                [*command, str(worker_end.fileno()), str(os.getpid())],
                pass_fds=[worker_end.fileno()],
                stdin=subprocess.DEVNULL,
                env=_worker_environment(),
                start_new_session=True,  # Ctrl-C is for the parent
            )
            self._connection = Connection(parent_end.detach())
        self._timeout_s = timeout_s
        self.asked = 0

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not self._connection.poll(1.0):
            # One that was stopped while it starts never will be ready; the limit is for slow disks.
            if _is_stopped(self.process.pid) or time.monotonic() > deadline:
                raise _WorkerLostError("timed out")
        said = self._receive(0)
        if said[:1] != READY:
            raise _WorkerLostError(said[1:].decode())

    def ask(self, message: bytes) -> bytes:
        self.asked += 1
        try:
            self._connection.send_bytes(message)
        except BlockingIOError:
            raise _WorkerLostError("timed out") from None
        except OSError:
            raise _WorkerLostError("worker died") from None
        return self._receive(self._timeout_s)

    def _receive(self, timeout_s: float) -> bytes:
        try:
            if not self._connection.poll(timeout_s):
                raise _WorkerLostError("timed out")
            return self._connection.recv_bytes()
        except BlockingIOError:
            raise _WorkerLostError("timed out") from None
        except (EOFError, OSError):
            raise _WorkerLostError("worker died") from None

    def stop(self) -> None:
        self._connection.close()
        self.process.kill()
        self.process.wait()  # leaves no zombie


def _is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process (proc(5)); False where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] in ("T", "t")


def _worker_environment() -> dict[str, str]:
    """One thread each, and the parent's import path whatever the working directory is."""
    paths = [path or os.getcwd() for path in sys.path]  # noqa: PTH109
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
