"""Stopping a run by a signal: all of its processes stop after the same step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kacl_jax.runtime import processes, signals
from kacl_jax.runtime.devices import with_flag_count

_COLUMN = "stop_requested"  # of the batch: whether the row's process was asked to stop


class StopRequests:
    """Whether any process was asked to stop. Each step carries the question; the answer comes with the step before."""

    def __init__(self, interrupt: signals.Interrupt) -> None:
        self._interrupt = interrupt
        self._alone = processes.process_count() == 1
        self._requested_somewhere = False

    @property
    def should_stop(self) -> bool:
        """Whether to save and stop now. All processes have the same answer."""
        return self._interrupt.requested if self._alone else self._requested_somewhere

    def carried_by(self, train_step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """The per-device step that carries the question from each process to all."""
        return train_step if self._alone else with_flag_count(train_step, _COLUMN)

    def column(self, n_rows: int) -> dict[str, np.ndarray]:
        """What the step's batch needs for it."""
        return {} if self._alone else {_COLUMN: np.full(n_rows, self._interrupt.requested)}

    def read_answer(self, metrics: dict[str, Any]) -> None:
        """Take the answer out of a finished step's metrics."""
        self._requested_somewhere |= bool(metrics.pop(_COLUMN, 0) > 0)

    def ask_all(self) -> None:
        """Ask without a step, which the last step needs: none after it carries its answer. All processes call it."""
        messages = processes.gather(self._interrupt.requested)
        self._requested_somewhere |= any(message.meta for message in messages)
