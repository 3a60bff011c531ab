"""What the commands print: a terminal that lacks a letter shows another one instead of ending the program."""

from __future__ import annotations

import io
import sys


def replace_unprintable() -> None:
    """Prints '?' for a letter that the terminal's encoding lacks, as '≥' in Latin-1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
