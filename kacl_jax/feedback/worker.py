"""A worker process: it measures the regions that come through a pipe, one after the other, and never imports jax.

    python -m kacl_jax.feedback.worker BIN_WIDTH FILE_DESCRIPTOR PARENT_PID

What goes through the pipe is raw bytes. A task is SHAPE, the pixels, then the packed mask. A reply begins with one byte
that says its kind, and, after READY and NO_START, which stand alone, SECONDS.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

from kacl_jax.radiomics.host import Extractor, RadiomicsError

WATCHDOG_S = 1.0  # how often a worker checks that its parent is still running
_PR_SET_PDEATHSIG = 1  # prctl(2)
SHAPE = struct.Struct("<II")
SECONDS = struct.Struct("<d")
# The first byte of a worker's reply says its kind.
READY, NO_START, FEATURES, REFUSED, RAISED = b"R", b"E", b"F", b"N", b"X"


def serve(build: Callable[[], Callable[[np.ndarray, np.ndarray], np.ndarray]]) -> None:
    """A worker's life. build() makes the function (pixels, mask) -> features float64 [102].

    The last two arguments of the command line are the pipe's file descriptor and the parent's id.
    Ends when the parent closes the pipe or dies.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fd, parent = (int(word) for word in sys.argv[-2:])
    _die_with_parent()
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    connection = Connection(fd)
    try:
        extract = build()
    except Exception as error:
        traceback.print_exc()
        connection.send_bytes(NO_START + f"{type(error).__name__}: {error}".encode())
        return
    with contextlib.suppress(EOFError, OSError):  # the parent has closed the pipe
        connection.send_bytes(READY)
        while True:
            connection.send_bytes(_reply(extract, connection.recv_bytes()))


def _reply(extract: Callable[[np.ndarray, np.ndarray], np.ndarray], message: bytes) -> bytes:
    height, width = SHAPE.unpack_from(message)
    data = np.frombuffer(message, np.uint8, offset=SHAPE.size)
    pixels, packed = data[: height * width], data[height * width :]
    mask = np.unpackbits(packed, count=height * width).astype(bool).reshape(height, width)
    started = time.perf_counter()
    try:
        features = extract(pixels.reshape(height, width), mask)
        kind, payload = FEATURES, features.astype("<f4").tobytes()
    except RadiomicsError as error:
        kind, payload = REFUSED, error.reason.encode()
    except Exception as error:  # not the region's fault: the parent replaces this worker
        kind, payload = RAISED, f"raised {type(error).__name__}: {error}".encode()
    return kind + SECONDS.pack(time.perf_counter() - started) + payload


def _die_with_parent() -> None:
    """Asks Linux to kill this process when the parent's thread that made it ends: also a process that was stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _exit_with_parent(parent: int) -> None:
    """Exit when the parent dies. A closed pipe is noticed only between tasks; this also ends a worker inside a task."""
    while os.getppid() == parent:
        time.sleep(WATCHDOG_S)
    os._exit(1)


if __name__ == "__main__":
    serve(lambda: Extractor(float(sys.argv[1])).extract)
