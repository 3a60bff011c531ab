"""TensorBoard's event file, written by the thread that trains.

tensorboardX writes from a thread of its own. When the disk is full, that thread ends, its queue fills, and the run
waits for ever. The messages and the checksum are tensorboardX's; the file is a TFRecord file without a buffer.
"""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

_VERSION = "brain.Event:2"


class EventFile:
    """One event file in `folder`. first_step: TensorBoard hides older events from there on.

    Each method raises OSError if the file cannot be written.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file = (folder / name).open("wb", buffering=0)
        self._write(file_version=_VERSION)
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """One point of the curve `name`."""
        self._write(step=step, summary=summary.scalar(name, value))

    def close(self) -> None:
        self._file.close()

    def _write(self, **content: Any) -> None:
        data = Event(wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        self._file.write(b"".join([length, next(checksums), data, next(checksums)]))
