"""What the commands print: a terminal that lacks a letter shows another one instead of ending the program."""

from __future__ import annotations

import io
import logging
import sys
import warnings


def replace_unprintable() -> None:
    """Prints '?' for a letter that the terminal's encoding lacks, as '≥' in Latin-1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def silence_pydicom() -> None:
    """Silences pydicom for the whole program: what it warns of names no file, and may name a patient."""
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
