"""Several processes that measure regions by pyradiomics side by side. Imports no jax."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue

import numpy as np

from kacl_jax.radiomics.extractor_process import decode_reply, encode_region
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.piped_process import EndedError, PipedProcess

_ATTEMPTS = 2  # for a region whose process ends


@functools.lru_cache(maxsize=1)
def shared_pool(size: int, bin_width: float, bin_count: int | None) -> ExtractorPool:
    """The pool of the last call if that had the same arguments: starting its processes takes seconds."""
    return ExtractorPool(size, bin_width, bin_count)


class ExtractorPool:
    """Up to `size` processes, each started when a region finds no idle one. They end when this object does."""

    def __init__(self, size: int, bin_width: float, bin_count: int | None) -> None:
        self._size = size
        self._options = (repr(float(bin_width)), str(bin_count or 0))
        self._idle: SimpleQueue[PipedProcess] = SimpleQueue()
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
                result = decode_reply(process.call(encode_region(*region)))
            except EndedError as error:
                code = error.exit_code
                # A new one: an idle one may have ended long before this region, for which it is not to blame.
                process = self._start()
                continue
            self._idle.put(process)
            return result
        self._idle.put(process)
        return f"the process that measured it ended {_ATTEMPTS} times (exit code {code})"

    def _idle_or_new(self) -> PipedProcess:
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._start()

    def _start(self) -> PipedProcess:
        try:
            return PipedProcess("kacl_jax.radiomics.extractor_process", *self._options)
        except EndedError as error:
            raise UserError(
                f"A worker process did not start (exit code {error.exit_code}; its message is above); use workers=1, "
                "which needs no processes"
            ) from error


def _end_processes(idle: SimpleQueue[PipedProcess]) -> None:
    while not idle.empty():
        idle.get().end()
