"""How far a command has come with its images."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

COLUMNS = 100  # of a bar, or less where the terminal is narrower
_EVERY_S = 15.0  # between two lines where there is no terminal


@contextmanager
def image_progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over images on a terminal, after a second; elsewhere a line now and then, if it takes long.

    Gives the function to call with (done, in all).
    """
    if not sys.stderr.isatty():
        yield _Lines(what).count
        return
    with tqdm(desc=what, unit="image", delay=1, ncols=bar_columns()) as bar:

        def count(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield count


def bar_columns() -> int:
    """Columns of a bar on this terminal."""
    return min(COLUMNS, shutil.get_terminal_size().columns)


class _Lines:
    def __init__(self, what: str) -> None:
        self._what, self._last = what, time.monotonic()

    def count(self, done: int, total: int) -> None:
        if time.monotonic() - self._last >= _EVERY_S:
            self._last = time.monotonic()
            print(f"{self._what}: {done:,} of {total:,} images", file=sys.stderr, flush=True)
