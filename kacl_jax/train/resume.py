"""Save a run into a checkpoint and resume from it: gathered from all processes, written by process 0, handed back.

A checkpoint does not depend on the number of processes. Any number that divides the shards can resume from it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from kacl_jax.feedback.checkpoint_state import (
    FeedbackState,
    join_states,
    keep_rows_of_images,
    state_of_process,
)
from kacl_jax.feedback.visibility import Feedback
from kacl_jax.runtime import processes
from kacl_jax.train import checkpoint
from kacl_jax.train.counters import RunCounters
from kacl_jax.train.experiment import Experiment

_FEEDBACK = "feedback/"
# The name of the counters in checkpoints. It never changed, so that old ones resume.
COUNTERS = "tally"


class RestoredRun(NamedTuple):
    """A run as it was after `step` steps: the state on the devices, the counters that this process continues, and their
    sum over all processes. `restore_run` puts batches and feedback back in place.
    """

    step: int
    state: Any
    counters: RunCounters
    total_counters: RunCounters


def save_run(
    experiment: Experiment,
    checkpoints: checkpoint.Checkpoints,
    feedback: Feedback | None,
    *,
    state: Any,
    counters: RunCounters,
    steps_done: int,
) -> RunCounters:
    """Write the checkpoint after `steps_done` steps; it is complete when this returns. All processes call this.

    state: the placed state. counters: what this process counted.

    Returns:
      What all processes counted.
    """
    visible = _feedback_state(experiment, feedback, steps_done - 1)
    messages = processes.gather([dataclasses.asdict(counters), experiment.batches.get_state()])
    total = RunCounters.sum_of([RunCounters(**message.meta[0]) for message in messages])
    if processes.is_leader():
        arrays = checkpoint.to_arrays(experiment.parallel.fetch(state, "replicated"), "state")
        arrays |= {_FEEDBACK + name: value for name, value in visible.items()}
        meta = {
            COUNTERS: dataclasses.asdict(total),
            "data": [shard for message in messages for shard in message.meta[1]],
        }
        checkpoints.save(steps_done, arrays, meta, best=total.best_step)
    # Without the barrier a process that exits now would end process 0 before the checkpoint is complete.
    processes.barrier()
    return total


def restore_run(
    experiment: Experiment, checkpoints: checkpoint.Checkpoints, feedback: Feedback | None
) -> RestoredRun | None:
    """Put batches and feedback back to where the newest checkpoint left them; None if there is none. All call it."""
    latest = checkpoint.restore_on_all(checkpoints.restore_latest)
    if latest is None:
        return None
    state = checkpoint.from_arrays(experiment.state_template(), latest.arrays, "state")
    if feedback is not None:
        visible = {
            name.removeprefix(_FEEDBACK): value
            for name, value in latest.arrays.items()
            if name.startswith(_FEEDBACK)
        }
        if processes.process_count() > 1:
            visible = state_of_process(visible, experiment.own_images, counts=processes.is_leader())
        feedback.restore(visible)
    experiment.batches.set_state(experiment.select_own_shards(latest.meta["data"]))
    total = RunCounters(**latest.meta[COUNTERS])
    # Process 0 continues from the sum of all counts, the others from zero.
    own = (
        dataclasses.replace(total)
        if processes.is_leader()
        else RunCounters(total.best_step, total.best_auroc)
    )
    return RestoredRun(latest.step, experiment.parallel.replicate(state), own, total)


def _feedback_state(experiment: Experiment, feedback: Feedback | None, step: int) -> FeedbackState:
    """The feedback state of all processes as visible at this step; empty without a pool."""
    if feedback is None:
        return {}
    state = feedback.state(step)
    if processes.process_count() == 1:
        return state
    own = keep_rows_of_images(state, experiment.own_images)
    parts = [message.arrays for message in processes.gather(arrays=own)]
    return join_states(parts, len(state["ready"]))
