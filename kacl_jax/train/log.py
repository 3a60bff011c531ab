"""What a run writes while it trains: terminal lines, metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.progress import bar_columns
from kacl_jax.train.tensorboard import EventFile


class MetricLog:
    """metrics.jsonl and TensorBoard events of one workdir.

    Args:
      workdir: where both are.
      step: the step that the run resumes from; −1 if it starts. Lines past it are of steps that will be run again. They
        are cut.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._path = path = workdir / "metrics.jsonl"
        files.write_text(path, "".join(line + "\n" for line in _lines_up_to(step, path)))
        with _errors_name(path):
            self._lines = path.open("a", encoding="utf-8")
        self._event_folder = workdir / "tensorboard"
        with _errors_name(self._event_folder):
            self._events = EventFile(self._event_folder, step + 1)

    def write(self, step: int, kind: str, values: dict[str, float | None]) -> None:
        """One line; a value that is not finite is null. Raises UserError when it cannot be written."""
        clean = {k: v if v is not None and math.isfinite(v) else None for k, v in values.items()}
        with _errors_name(self._path):
            self._lines.write(json.dumps({"step": step, "kind": kind, **clean}) + "\n")
            self._lines.flush()
        with _errors_name(self._event_folder):
            for name, value in clean.items():
                if value is not None:
                    self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Raises UserError when the last lines cannot be written."""
        with (
            _errors_name(self._event_folder),
            contextlib.closing(self._events),
            _errors_name(self._path),
        ):
            self._lines.close()


@contextlib.contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error}); free some disk space and run the same command again"
        ) from error


_EVERY_S = 15.0  # between two lines where there is no terminal
_COMPILING = 2  # the first steps compile, so that their time says nothing of the others


class StepProgress:
    """A bar on a terminal; elsewhere a plain line now and then. Both have the time left, from the third step on."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done, self._first = total, done, done
        self._start = self._last = time.monotonic()
        self._bar = (
            tqdm(
                total=total,
                initial=done,
                ncols=bar_columns(),
                bar_format="step {n_fmt}/{total_fmt} |{bar}| {postfix}",
            )
            if sys.stderr.isatty()
            else None
        )

    def advance(self, short: str, text: str) -> None:
        """One more step is done. text: how it goes. short: the part of it that fits beside a bar."""
        self._done += 1
        now = time.monotonic()
        left = self._time_left(now)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{short}{left}", refresh=False)
            self._bar.update()
            return
        if now - self._last >= _EVERY_S or self._done in (self._first + 1, self._total):
            self._last = now
            self.say(f"step {self._done}/{self._total}  {text}{left}")

    def _time_left(self, now: float) -> str:
        """'  left 4:10' at the pace of the steps that compiled nothing; '' before there is one."""
        steps = self._done - self._first - _COMPILING
        if steps == 0:
            self._start = now
        if steps <= 0:
            return ""
        return (
            f"  left {_format_duration((now - self._start) / steps * (self._total - self._done))}"
        )

    def say(self, line: str) -> None:
        """A line of its own, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _lines_up_to(step: int, path: Path) -> list[str]:
    """The complete lines of these steps; a kill may have cut the last line short.

    Raises:
      UserError: a line is not what a run writes.
    """
    lines = files.read_json_lines(path)
    return [json.dumps(line) for line in lines if line["step"] <= step]


def _format_duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def format_metrics(values: dict[str, Any]) -> str:
    """{'loss': 1.2345, …} → 'loss 1.23 …' for the terminal; NaN, what the step did not have, as –."""
    return "  ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value}"
    return "–" if math.isnan(value) else f"{value:.3g}"
