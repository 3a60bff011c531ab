"""What a checkpoint holds of a run: gathered from all processes, written by the first, and shared out again.

It is the same whatever the number of processes, and any number that divides the shards can go on from it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from kacl_jax.feedback.state import FeedbackState, join_states, state_of_process, table_rows
from kacl_jax.feedback.visibility import Feedback
from kacl_jax.runtime import hosts
from kacl_jax.train import checkpoint
from kacl_jax.train.counters import RunCounters
from kacl_jax.train.experiment import Experiment

_FEEDBACK = "feedback/"
COUNTERS = "tally"  # what the counters are called in every checkpoint


class RestoredRun(NamedTuple):
    """A run as it was after `step` steps: its placed state, what this process goes on counting from, and all counts."""

    step: int
    state: Any
    counters: RunCounters
    total_counters: RunCounters


def save_run(
    experiment: Experiment,
    saved: checkpoint.Checkpoints,
    feedback: Feedback | None,
    *,
    state: Any,
    counters: RunCounters,
    taken: int,
) -> RunCounters:
    """Write the checkpoint of step `taken`; all processes call it, and it is there when it returns.

    state: the placed state. counters: what this process counted.

    Returns:
      What all processes counted.
    """
    visible = _visible(experiment, feedback, taken - 1)
    told = hosts.gather([dataclasses.asdict(counters), experiment.batches.get_state()])
    whole = RunCounters.sum_of([RunCounters(**process.meta[0]) for process in told])
    if hosts.is_leader():
        arrays = checkpoint.to_arrays(experiment.parallel.fetch(state, "replicated"), "state")
        arrays |= {_FEEDBACK + name: value for name, value in visible.items()}
        meta = {
            COUNTERS: dataclasses.asdict(whole),
            "data": [shard for process in told for shard in process.meta[1]],
        }
        saved.save(taken, arrays, meta, best=whole.best_step)
    # A process that ends here ends the others: not before it is written.
    hosts.barrier()
    return whole


def restore_run(
    experiment: Experiment, saved: checkpoint.Checkpoints, feedback: Feedback | None
) -> RestoredRun | None:
    """Put batches and feedback back to where the newest checkpoint left them; None if there is none. All call it."""
    latest = checkpoint.restore_on_all(saved.restore_latest)
    if latest is None:
        return None
    state = checkpoint.from_arrays(experiment.state_template(), latest.arrays, "state")
    if feedback is not None:
        visible = {
            name.removeprefix(_FEEDBACK): value
            for name, value in latest.arrays.items()
            if name.startswith(_FEEDBACK)
        }
        if hosts.process_count() > 1:
            visible = state_of_process(visible, experiment.own_images, counts=hosts.is_leader())
        feedback.restore(visible)
    experiment.batches.set_state(experiment.own_shard_entries(latest.meta["data"]))
    whole = RunCounters(**latest.meta[COUNTERS])
    # The first process goes on from all counts, the others from 0.
    own = (
        dataclasses.replace(whole)
        if hosts.is_leader()
        else RunCounters(whole.best_step, whole.best_auroc)
    )
    return RestoredRun(latest.step, experiment.parallel.replicate(state), own, whole)


def _visible(experiment: Experiment, feedback: Feedback | None, step: int) -> FeedbackState:
    """The feedback state of all processes as visible at this step; empty without a pool."""
    if feedback is None:
        return {}
    state = feedback.state(step)
    if hosts.process_count() == 1:
        return state
    own = table_rows(state, experiment.own_images)
    parts = [told.arrays for told in hosts.gather(arrays=own)]
    return join_states(parts, len(state["ready"]))
