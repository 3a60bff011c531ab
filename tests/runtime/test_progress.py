"""Progress where there is no terminal: nothing for a short command, a line now and then for a long one."""

from __future__ import annotations

from kacl_jax.runtime import progress
from kacl_jax.train import log


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_every_quarter_of_a_minute(monkeypatch, capsys) -> None:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    with progress.image_progress_bar("Reading DATA") as count:
        for done in range(1, 101):
            clock.now += 0.5
            count(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"Reading DATA: {done} of 100 images" for done in (30, 60, 90)]


def test_the_time_left_counts_no_step_that_compiled(monkeypatch, capsys) -> None:
    """Two steps of a minute, then one a second: 97 steps are left after the third."""
    clock = Clock()
    monkeypatch.setattr(log.time, "monotonic", clock)
    steps = log.StepProgress(total=100, done=0)
    for step in range(1, 101):
        clock.now += 60 if step <= 2 else 16
        steps.advance("", "loss 1")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["step 1/100  loss 1", "step 2/100  loss 1"]
    assert lines[2] == "step 3/100  loss 1  left 25:52"  # 97 steps of 16 s
    assert lines[-1] == "step 100/100  loss 1  left 0:00"
