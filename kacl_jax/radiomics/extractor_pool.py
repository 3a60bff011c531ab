"""Several processes that measure regions by pyradiomics side by side.

They are fresh interpreters: nothing is forked, so that jax's threads cannot leave a lock behind, and the user's script
is not run again, so that it needs no `if __name__ == "__main__"`. Imports no jax.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import BinaryIO

import numpy as np

from kacl_jax.radiomics.extractor_process import READY, decode_reply, encode_region
from kacl_jax.runtime.errors import UserError

_ATTEMPTS = 2  # for a region whose process ends


@functools.lru_cache(maxsize=1)
def shared_pool(size: int, bin_width: float, bin_count: int | None) -> ExtractorPool:
    """The pool of the last call if that had the same arguments: starting its processes takes seconds."""
    return ExtractorPool(size, bin_width, bin_count)


class ExtractorPool:
    """Up to `size` processes, each started when a region finds no idle one. They end when this object does."""

    def __init__(self, size: int, bin_width: float, bin_count: int | None) -> None:
        self._size = size
        self._options = [repr(float(bin_width)), str(bin_count or 0)]
        self._idle: SimpleQueue[_ExtractorProcess] = SimpleQueue()
        weakref.finalize(self, _end_processes, self._idle)

    def measure(self, regions: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray | str]:
        """For each region its features float64 [f], or the reason why it has none.

        regions: pixels uint8 or float32 [h w] and mask bool [h w].

        A region whose process ends, for example for lack of memory, gets a new process once, then is given up.

        Raises:
          UserError: a process cannot start.
        """
        with ThreadPoolExecutor(self._size) as threads:
            return list(threads.map(self._measure_one, regions))

    def _measure_one(self, region: tuple[np.ndarray, np.ndarray]) -> np.ndarray | str:
        process = self._idle_or_new()
        for _ in range(_ATTEMPTS):
            try:
                result = process.measure(*region)
            except (EOFError, OSError):
                code = process.end()
                # A new one: an idle one may have ended long before this region, for which it is not to blame.
                process = _ExtractorProcess(self._options)
                continue
            self._idle.put(process)
            return result
        self._idle.put(process)
        return f"the process that measured it ended {_ATTEMPTS} times (exit code {code})"

    def _idle_or_new(self) -> _ExtractorProcess:
        try:
            return self._idle.get_nowait()
        except Empty:
            return _ExtractorProcess(self._options)


class _ExtractorProcess:
    def __init__(self, options: Sequence[str]) -> None:
        # Its import path is this process' own, whatever the working directory is.
        paths = [path or os.getcwd() for path in sys.path]  # noqa: PTH109
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kacl_jax.radiomics.extractor_process", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        if self._replies.read(len(READY)) != READY:
            raise UserError(
                f"A worker process did not start (exit code {self.end()}); its own message stands above, and workers=1 "
                "works without processes"
            )

    @property
    def _replies(self) -> BinaryIO:
        assert self._process.stdout is not None
        return self._process.stdout  # type: ignore[return-value]

    def measure(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray | str:
        """Raises EOFError or OSError if the process has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(encode_region(pixels, mask))
        self._process.stdin.flush()
        return decode_reply(self._replies)

    def end(self) -> int:
        """Kill the process, which holds nothing that would be lost. Returns its exit code."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was written to it and not read
                pipe.close()
        return self._process.wait()


def _end_processes(idle: SimpleQueue[_ExtractorProcess]) -> None:
    while not idle.empty():
        idle.get().end()
