"""What the commands print: no letter that a terminal lacks and no reader that has gone ends the program."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import warnings
from typing import Any

_NOBODY_READS = (
    errno.EPIPE,
    errno.EIO,
)  # a pipe whose reader has ended, a terminal that was closed


def prepare_streams() -> None:
    """Prints '?' for a letter that the terminal's encoding lacks, and goes on when nobody reads any more.

    A stream that is closed at the start is opened on /dev/null. Otherwise the next file would get its number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.flush()
            patient = io.TextIOWrapper(
                io.BufferedWriter(_PatientFile(stream.fileno(), "wb", closefd=False)),
                encoding=stream.encoding,
                errors="replace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, patient)


class _PatientFile(io.FileIO):
    """Drops what nobody reads."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
            return len(data)


def silence_pydicom() -> None:
    """Silences pydicom for the whole program: what it warns of names no file, and may name a patient."""
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def silence_late_answers() -> None:
    """After a failed read or write of a checkpoint, tensorstore still answers to an event loop that orbax has closed.

    Each answer would print a traceback, up to a minute later. Other exceptions that cannot be raised print theirs.
    """
    report = sys.unraisablehook

    def report_others(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = report_others
