"""A progress bar over images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def image_progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over images on a terminal, after a second; gives the function to call with (done, in all)."""
    with tqdm(desc=what, unit="image", delay=1, disable=None, dynamic_ncols=True) as bar:

        def count(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield count
