"""A process that answers requests over its pipes: a fresh interpreter that runs one module.

Nothing is forked, so that jax's threads cannot leave a lock behind, and the user's script is not run again, so that it
needs no `if __name__ == "__main__"`. The process ends when its input ends, so that it never outlives its parent.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import IO

_READY = b"R"
_LENGTH = struct.Struct("<Q")


class EndedError(Exception):
    """The process has ended, with this `exit_code`."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


class PipedProcess:
    """Runs `python -m module options…`, which calls `serve`.

    quiet: what it prints to standard error is dropped.

    Raises:
      EndedError: it does not start.
    """

    def __init__(self, module: str, *options: str, quiet: bool = False) -> None:
        # Its import path is this process' own, whatever the working directory is.
        paths = [path or os.getcwd() for path in sys.path]  # noqa: PTH109
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        if self._replies.read(len(_READY)) != _READY:
            raise EndedError(self.end())

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, request: bytes) -> bytes:
        """The answer to one request. Raises EndedError if the process ends, also if it had ended before."""
        try:
            self._requests.write(_LENGTH.pack(len(request)) + request)
            self._requests.flush()
            return _read_message(self._replies)
        except (EOFError, OSError) as error:
            raise EndedError(self.end()) from error

    def end(self) -> int:
        """Kill the process, which holds nothing that would be lost. Returns its exit code."""
        self._process.kill()
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):  # what was written to it and not read
                pipe.close()
        return self._process.wait()


def serve(answer: Callable[[bytes], bytes]) -> None:
    """Answer requests until the input ends. For the module that a PipedProcess runs, once it can answer."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes to standard error, not among the replies
    replies.write(_READY)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            replies.flush()
            reply = answer(_read_message(sys.stdin.buffer))
            replies.write(_LENGTH.pack(len(reply)) + reply)


def _read_message(stream: IO[bytes]) -> bytes:
    (length,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    return _read(stream, length)


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
