"""Training, top to bottom: where the feedback loop turns.

    batch ─► features of its images that are visible by now ─► train step ─► Grad-CAMs ─► regions ─► radiomics workers
                    ▲                                                                                      │
                    └────────── visible `lag` steps later, used when the image is drawn again ◄────────────┘

Step t + 1 is dispatched before step t's CAMs are read, so the host marks regions and the workers measure them while
the devices compute.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np

from kacl_jax.data.batches import Batch
from kacl_jax.evaluation import evaluate
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.runtime import files, processes, signals
from kacl_jax.runtime.errors import InterruptedRunError, NonFiniteError
from kacl_jax.step import in_step_radiomics, regions
from kacl_jax.train import checkpoint, resume
from kacl_jax.train.clock import Clock, timed
from kacl_jax.train.counters import RunCounters
from kacl_jax.train.experiment import Experiment
from kacl_jax.train.reporting import Reporting
from kacl_jax.train.stop_requests import StopRequests


class StepInFlight(NamedTuple):
    """A dispatched step whose results the host has not read yet."""

    step: int
    batch: Batch
    metrics: Any
    rows: Any


def train(experiment: Experiment, checkpoints: checkpoint.Checkpoints) -> RunCounters:
    """Train to the last step from the newest checkpoint, or from the start.

    Returns:
      What all processes counted.

    Raises:
      InterruptedRunError: asked to stop; everything up to here is saved.
      NonFiniteError: loss, gradients or validation logits are not finite; the last checkpoint is intact.
    """
    interrupt = signals.Interrupt()
    per_epoch, total_steps = experiment.batches.steps_per_epoch, experiment.total_steps
    every = experiment.config.train.checkpoint_every
    with contextlib.ExitStack() as stack:
        # ---- start, or go on from the newest checkpoint
        loop = TrainingLoop(experiment, checkpoints, StopRequests(interrupt), stack)
        counted = loop.counted_before
        stack.enter_context(interrupt.listening())
        # From here on jax refuses any transfer to or from a device that the code does not ask for.
        stack.enter_context(jax.transfer_guard("disallow"))

        # ---- a network that starts from a ridge is a candidate for the best one
        if loop.should_score_start:
            loop.validate(0)
            counted = loop.save(0)

        for step in range(loop.first_step, total_steps):
            # ---- train
            loop.run_step(step)
            steps_done = step + 1

            # ---- validate
            ends_epoch = steps_done % per_epoch == 0
            if ends_epoch:
                loop.validate(steps_done)

            # ---- save
            if not (ends_epoch or loop.should_stop or (every and steps_done % every == 0)):
                continue
            counted = loop.save(steps_done)

            # ---- stop, if a process was asked to
            if loop.should_stop_after(steps_done):
                raise InterruptedRunError(
                    f"Stopped after step {steps_done} of {total_steps}. Run the same command again to resume."
                )
    return counted


class TrainingLoop:
    """One training run in motion: the state on the devices and everything that moves with it.

    first_step: the step that it starts or goes on with. counted_before: what all processes counted before that.
    should_score_start: whether to validate and save before step 0.
    """

    def __init__(
        self,
        experiment: Experiment,
        checkpoints: checkpoint.Checkpoints,
        stop_requests: StopRequests,
        stack: contextlib.ExitStack,
    ) -> None:
        self.experiment, self.checkpoints = experiment, checkpoints
        self._stop_requests = stop_requests
        parallel, programs = experiment.parallel, experiment.programs
        self._train_step = parallel.compile(
            stop_requests.carried_by(programs.train_step),
            ("replicated", "replicated", "sharded"),
            donate_state=True,
        )
        self._region_step = parallel.compile(programs.region_step, ("sharded",))
        self.feedback = experiment.open_feedback(stack) if experiment.needs_pool else None
        self._in_flight: StepInFlight | None = None

        restored = resume.restore_run(experiment, checkpoints, self.feedback)
        starts_from_ridge = experiment.config.train.head_start == "ridge"
        self.should_score_start = restored is None and starts_from_ridge
        if restored is None:
            self.first_step, self.counted_before = 0, RunCounters()
            # What this process counts. Process 0 also carries what all counted before the restored checkpoint.
            self._counters = RunCounters()
            state, origin = experiment.initial_state()
            if origin is not None and processes.is_leader():
                logging.info(origin.describe())
                files.write_json(experiment.workdir / "pretrained.json", origin._asdict())
            self._state: Any = parallel.replicate(state)
        else:
            self.first_step, self.counted_before = restored.step, restored.total_counters
            self._counters, self._state = restored.counters, restored.state
            logging.info("Resuming from step %d in %s", restored.step, experiment.workdir)

        self._clock = Clock()
        self._reporting = Reporting(
            experiment,
            self.feedback,
            self._clock,
            first_step=self.first_step,
            is_resumed=restored is not None,
            stack=stack,
        )
        # Ends the trace after the profile's last step, or with the loop if that comes first.
        self._stop_profile = stack.enter_context(contextlib.ExitStack())

    @property
    def should_stop(self) -> bool:
        """Whether to save and stop now. All processes have the same answer."""
        return self._stop_requests.should_stop

    def should_stop_after(self, steps_done: int) -> bool:
        """The same after saving. After the last step, no later step carries a request that came during the save."""
        if steps_done == self.experiment.total_steps:
            self._stop_requests.ask_all()
        return self.should_stop

    # ---- one step of the feedback loop ------------------------------------------------------------------------

    def run_step(self, step: int) -> None:
        """Dispatch step `step`, then read the results of the step before it."""
        self._profile(step)
        self._clock.start()
        with self._clock.part("data_s"):
            batch = next(self.experiment.batches)
        if self.experiment.lag == 0 and self.feedback is not None:
            (rows,) = self._region_step(
                self._state, self._to_devices(batch, *_empty_features(batch))
            )
            self._mark_regions(step, batch, rows)
        if self.experiment.lag == 1:
            self._finish_step_in_flight()
        features = self._visible_features(step, batch)
        placed = self._to_devices(batch, *features)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            self._state, metrics, rows = self._train_step(self._state, placed)
        self._finish_step_in_flight()
        self._in_flight = StepInFlight(step, batch, metrics, rows)
        self._clock.stop()

    def _visible_features(
        self, step: int, batch: Batch
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """radiomics float32 [b f], ready bool [b] and age int32 [b] of what has become visible by this step."""
        if self.feedback is None:
            return _empty_features(batch)
        radiomics, ready, age = self.feedback.lookup(step, batch["image_id"])
        self._counters.count_features(ready, age)
        return radiomics, ready, age

    @timed("to_device_s")
    def _to_devices(
        self, batch: Batch, radiomics: np.ndarray, ready: np.ndarray, age: np.ndarray
    ) -> Any:
        rows = {**batch, "radiomics": radiomics, "ready": ready, "age": age}
        return self.experiment.parallel.shard(rows | self._stop_requests.column(len(ready)))

    def _finish_step_in_flight(self) -> None:
        """Wait for the step in flight and read it: stop if it is not finite, mark its regions, log it."""
        if self._in_flight is None:
            return
        done, self._in_flight = self._in_flight, None
        with self._clock.part("device_s"):
            jax.block_until_ready(done.metrics)
        metrics = self.experiment.parallel.fetch(done.metrics, "replicated")
        self._stop_requests.read_answer(metrics)
        if metrics["bad_step"] >= 0:
            self._stop_non_finite(int(metrics["bad_step"]), done.batch)
        if self.experiment.programs.in_step_radiomics is not None:
            self._count_in_step_regions(done.rows)
        if self.feedback is not None and self.experiment.lag > 0:
            self._mark_regions(done.step, done.batch, done.rows)
        values = {name: float(value) for name, value in metrics.items() if name != "bad_step"}
        self._reporting.report_step(done.step, values)

    @timed("regions_s")
    def _mark_regions(self, step: int, batch: Batch, rows: Any) -> None:
        """Grad-CAM → region of interest → radiomics worker."""
        assert self.feedback is not None
        with self._clock.part("device_s"):
            jax.block_until_ready(rows)
        host = self.experiment.parallel.fetch(rows, "sharded")
        masks = []
        # Shard by shard, because a random rectangle depends on the other maps of its shard.
        for part in np.split(np.arange(len(host["cam"])), self.experiment.batches.n_shards):
            shard_masks, origin = self.experiment.region_rule.mark(
                host["cam"][part],
                host["box_finding"][part],
                batch["boxes"][part],
                batch["image_id"][part],
                step,
            )
            masks.append(shard_masks)
            self._counters.count_regions(Counter(origin))
        self.feedback.submit(step, batch["image_id"], batch["image"][..., 0], np.concatenate(masks))

    def _count_in_step_regions(self, rows: Any) -> None:
        """Count the regions that the step marked and measured itself."""
        per_row = {name: rows[name] for name in ("origin", "failure")}
        host = self.experiment.parallel.fetch(per_row, "sharded")
        origins = Counter(regions.ORIGINS[k] for k in host["origin"])
        failures = Counter(in_step_radiomics.FAILURES[k] for k in host["failure"] if k)
        is_ready = host["failure"] == 0
        self._counters.count_features(is_ready, np.zeros_like(host["failure"]))
        self._counters.count_regions(origins, failures)

    def _stop_non_finite(self, step: int, batch: Batch) -> None:
        messages = processes.gather(self.experiment.records.names[batch["image_id"]].tolist())
        names = [name for message in messages for name in message.meta]
        raise NonFiniteError(
            f"Loss or gradients of step {step} are not finite. The update was not taken. "
            f"{self.checkpoints.describe_newest()} The step's images: {', '.join(names)}. Try a lower "
            "config.train.learning_rate."
        )

    # ---- between the steps ------------------------------------------------------------------------------------

    @timed("validation_s")
    def validate(self, steps_done: int) -> None:
        """Measure the mean AUROC of the validation patients and remember the best step."""
        self._finish_step_in_flight()
        experiment = self.experiment
        outputs = experiment.inference.logits(self._state, experiment.split.val)
        bad = ~np.isfinite(outputs.logits).all(1)
        if bad.any():
            names = experiment.records.names[outputs.image_id[bad]]
            raise NonFiniteError(
                f"After step {steps_done} the logits of {len(names)} validation images are not finite. "
                f"{self.checkpoints.describe_newest()} The first image: {names[0]}. Try a lower "
                "config.train.learning_rate."
            )
        table = evaluate.classification_auroc(
            outputs, experiment.records, experiment.split.val, resamples=0
        )
        auroc = float(table.mean.value)
        self._counters.take_best(steps_done, auroc)
        self._reporting.report_validation(steps_done, auroc, self._counters.best_auroc)

    @timed("checkpoint_s")
    def save(self, steps_done: int) -> RunCounters:
        """Write a checkpoint of everything, from all processes, that decides how the run goes on.

        Returns:
          What all processes counted so far.
        """
        self._finish_step_in_flight()
        if self.feedback is not None:
            self._counters.take_from(self.feedback)
        self._counters.throughput = self._reporting.throughput()
        counted = resume.save_run(
            self.experiment,
            self.checkpoints,
            self.feedback,
            state=self._state,
            counters=self._counters,
            steps_done=steps_done,
        )
        if warning := counted.warning():
            self._reporting.warn(warning)
        return counted

    def _profile(self, step: int) -> None:
        first, last = self.experiment.config.profile.steps
        if first < last and step == first:
            jax.profiler.start_trace(str(self.experiment.workdir / "profile"))
            self._stop_profile.callback(jax.profiler.stop_trace)
        if step == last:
            self._finish_step_in_flight()
            self._stop_profile.close()


def _empty_features(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    b = len(batch["image_id"])
    return (
        np.zeros((b, len(FEATURE_NAMES)), np.float32),
        np.zeros(b, bool),
        np.zeros(b, np.int32),
    )
