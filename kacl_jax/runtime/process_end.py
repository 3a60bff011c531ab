"""How connected processes end: none outlives another.

A process that fails tells the others why, and all end with its exit code. If a process is killed, jax's heartbeats
stop, and the others end in a state that can be resumed.
This file imports jax only inside functions.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

from kacl_jax.runtime.errors import INTERRUPTED, USER_ERROR, exit_code

NOT_CONNECTED = (
    "The processes of this run did not find each other in time (jax's reason is above). Start all of them, each with "
    "its own process id, and open the coordinator's port in the firewall."
)
_PROCESS_LOST = (
    "Another process of this run was lost (or jax gave up for the reason above). The checkpoints are intact. Run the "
    "same command on all hosts again to resume."
)
_FAREWELL_S = 10.0  # how long process 0 stays so that all can read why one ended
_POLL_S = 0.5
_ENDED = "kacl_jax/ended/"


class _AbortHandler:
    """Makes of jax's abort(), with which it reacts to a lost process, an exit code and a sentence."""

    def __init__(self) -> None:
        self.exit = USER_ERROR, NOT_CONNECTED  # the code and the sentence, if jax aborts now
        self._in_c = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._end)

    def install(self) -> None:
        """Handle SIGABRT in C: jax aborts in threads of its own, and Python's handlers run in the main thread only."""
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.signal.restype = ctypes.c_void_p
        libc.signal(signal.SIGABRT, ctypes.cast(self._in_c, ctypes.c_void_p))

    def _end(self, _: int) -> None:
        code, message = self.exit
        os.write(2, f"\n{message}\n".encode())
        os._exit(code)


# Global because a process has one handler of a signal, and C keeps a bare pointer to it until the process ends.
abort_handler = _AbortHandler()


def _may_come_from_another_process(error: BaseException) -> bool:
    """Whether an error is usually a consequence of another process's end.

    jax raises a failed message between CPUs as a ValueError where it comes before the computation has begun.
    """
    import jax

    of_gloo = isinstance(error, ValueError) and "Gloo" in str(error)
    return of_gloo or isinstance(error, jax.errors.JaxRuntimeError)


class ProcessMonitor:
    """A thread that ends this process when another process ends, and announces the end of this one."""

    def __init__(self, state: Any, heartbeat_s: float) -> None:
        """state: jax's, of the connected processes. heartbeat_s: how soon jax misses a process."""
        self._store = state.client
        self._heartbeat_s = heartbeat_s
        # jax.process_index() would need a device.
        self._index, self._count = state.process_id, state.num_processes
        self._ending = threading.Lock()  # the thread that ends the process takes it and keeps it
        self._closed = threading.Event()
        abort_handler.exit = INTERRUPTED, _PROCESS_LOST
        self._thread = threading.Thread(target=self._watch, name="other processes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def end(self, error: BaseException) -> NoReturn:
        """Tell the user and the other processes about the error, then exit."""
        code = exit_code(error)
        words = str(error)
        if code is None:
            if _may_come_from_another_process(error):
                # Within this time the monitor thread reads the other's announcement, or jax notices that it is missing.
                time.sleep(self._heartbeat_s + _FAREWELL_S)
            traceback.print_exception(error)
            code, words = USER_ERROR, f"{type(error).__name__}: {error}"
        self._end(code, words, f"\n{words}")

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_S):
            for name, words in self._ended_processes():
                end = json.loads(words)
                self._end(end["code"], end["words"], f"\nProcess {name} ended: {end['words']}")

    def _end(self, code: int, words: str, line: str) -> NoReturn:
        self._ending.acquire()
        abort_handler.exit = code, ""
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
        import jax

        try:
            self._store.key_value_set(
                f"{_ENDED}{self._index}", json.dumps({"code": code, "words": words})
            )
        except jax.errors.JaxRuntimeError:
            os._exit(code)  # process 0 is gone, and with it the key-value store
        if self._index == 0:  # this process holds the store: stay until all have read it
            until = time.monotonic() + _FAREWELL_S
            while len(self._ended_processes()) < self._count and time.monotonic() < until:
                time.sleep(_POLL_S / 5)
            time.sleep(2 * _POLL_S)
        os._exit(code)

    def _ended_processes(self) -> list[tuple[str, str]]:
        """(index, announcement) of the processes that are ending."""
        import jax

        try:
            entries = self._store.key_value_dir_get(_ENDED)
        except jax.errors.JaxRuntimeError:
            return []  # process 0 is gone; jax notices that itself
        return [(key.rpartition("/")[2], words) for key, words in entries]
