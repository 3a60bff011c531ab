"""Training, top to bottom: where the feedback loop turns.

    batch ─► features of its images that are visible by now ─► train step ─► Grad-CAMs ─► regions ─► radiomics workers
                    ▲                                                                                      │
                    └────────── visible `lag` steps later, used when the image is drawn again ◄────────────┘

Step t + 1 is dispatched before step t's CAMs are read, so the host marks regions and the workers measure them while
the devices compute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import Counter
from typing import Any

import jax
import numpy as np

from kacl_jax.data.batches import Batch
from kacl_jax.evaluation import evaluate
from kacl_jax.feedback.visibility import Feedback
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.runtime import processes, signals
from kacl_jax.runtime.devices import with_flag_count
from kacl_jax.runtime.errors import InterruptedRunError, NonFiniteError
from kacl_jax.step import in_step_radiomics, regions
from kacl_jax.train import checkpoint, resume
from kacl_jax.train.clock import Clock, timed
from kacl_jax.train.counters import RunCounters
from kacl_jax.train.experiment import Experiment
from kacl_jax.train.log import MetricLog, StepProgress, format_metrics

_STOP_REQUESTED = "stop_requested"  # a column of the batch: whether its process was asked to stop


@dataclasses.dataclass
class StepInFlight:
    """A dispatched step whose results the host has not read yet."""

    step: int
    batch: Batch
    metrics: Any
    rows: Any


def train(experiment: Experiment, checkpoints: checkpoint.Checkpoints) -> RunCounters:
    """Train to the last step from the newest checkpoint, or from the start."""
    interrupt = signals.Interrupt()
    with contextlib.ExitStack() as stack:
        loop = TrainingLoop(experiment, checkpoints, interrupt, stack)
        stack.enter_context(interrupt.listening())
        # From here on jax refuses any transfer to or from a device that the code does not ask for.
        stack.enter_context(jax.transfer_guard("disallow"))
        per_epoch = experiment.batches.steps_per_epoch
        every = experiment.config.train.checkpoint_every
        for step in range(loop.first_step, experiment.total_steps):
            loop.run_step(step)
            steps_done = step + 1
            if steps_done % per_epoch == 0:
                loop.validate(steps_done)
            if (
                loop.should_stop
                or steps_done % per_epoch == 0
                or (every and steps_done % every == 0)
            ):
                loop.save(steps_done)
            if steps_done == experiment.total_steps:
                loop.share_stop_requests()
            if loop.should_stop:
                raise InterruptedRunError(
                    f"Stopped after step {steps_done} of {experiment.total_steps}; the same command goes on from there."
                )
        return loop.total_counters


class TrainingLoop:
    """One training run in motion: the state on the devices and everything that moves with it."""

    def __init__(
        self,
        experiment: Experiment,
        checkpoints: checkpoint.Checkpoints,
        interrupt: signals.Interrupt,
        stack: contextlib.ExitStack,
    ) -> None:
        self.experiment, self.checkpoints, self._interrupt = experiment, checkpoints, interrupt
        parallel, programs = experiment.parallel, experiment.programs
        step = (
            programs.train_step
            if processes.process_count() == 1
            else with_flag_count(programs.train_step, _STOP_REQUESTED)
        )
        self._train_step = parallel.compile(
            step, ("replicated", "replicated", "sharded"), donate_state=True
        )
        self._region_step = parallel.compile(programs.region_step, ("sharded",))
        self.feedback: Feedback | None = None
        if experiment.needs_pool:
            self.feedback = experiment.open_feedback(stack)
        # `counters` belongs to this process; process 0 also carries what all counted before the restored checkpoint.
        # `total_counters` is the sum over all processes at the last checkpoint.
        self.counters = self.total_counters = RunCounters()
        self.first_step = 0
        self._stop_requested_somewhere = False
        self._in_flight: StepInFlight | None = None
        self._state = self._restore_or_initialise()
        self._log: MetricLog | None = None
        self._progress: StepProgress | None = None
        if processes.is_leader():
            self._log = stack.enter_context(
                contextlib.closing(MetricLog(experiment.workdir, self.first_step))
            )
            self._progress = stack.enter_context(
                contextlib.closing(StepProgress(experiment.total_steps, self.first_step))
            )
        # Ends the trace after the profile's last step, or with the loop if that comes first.
        self._stop_profile = stack.enter_context(contextlib.ExitStack())
        self._clock = Clock()
        # A resume restores the counters, but rates must describe this process alone.
        self._counted_before = dict(self.feedback.counters) if self.feedback else {}

    @property
    def should_stop(self) -> bool:
        """Whether to save and stop now. All processes have the same answer, which comes with the step before."""
        return (
            self._stop_requested_somewhere
            if processes.process_count() > 1
            else self._interrupt.requested
        )

    def share_stop_requests(self) -> None:
        """Ask all processes whether one of them was asked to stop. No step after the last one carries the answer."""
        messages = processes.gather(self._interrupt.requested)
        self._stop_requested_somewhere |= any(message.meta for message in messages)

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
        self.counters.rows += len(ready)
        self.counters.ready += int(ready.sum())
        self.counters.age_sum += int(age[ready].sum())
        return radiomics, ready, age

    @timed("to_device_s")
    def _to_devices(
        self, batch: Batch, radiomics: np.ndarray, ready: np.ndarray, age: np.ndarray
    ) -> Any:
        rows = {**batch, "radiomics": radiomics, "ready": ready, "age": age}
        if processes.process_count() > 1:
            rows[_STOP_REQUESTED] = np.full(len(ready), self._interrupt.requested)
        return self.experiment.parallel.shard(rows)

    def _finish_step_in_flight(self) -> None:
        """Wait for the step in flight and read it: stop if it is not finite, mark its regions, log it."""
        if self._in_flight is None:
            return
        done, self._in_flight = self._in_flight, None
        with self._clock.part("device_s"):
            jax.block_until_ready(done.metrics)
        metrics = self.experiment.parallel.fetch(done.metrics, "replicated")
        self._stop_requested_somewhere |= bool(metrics.pop(_STOP_REQUESTED, 0) > 0)
        if metrics["bad_step"] >= 0:
            self._stop_non_finite(int(metrics["bad_step"]), done.batch)
        if self.experiment.programs.in_step_radiomics is not None:
            self._count_in_step_regions(done.rows)
        if self.feedback is not None and self.experiment.lag > 0:
            self._mark_regions(done.step, done.batch, done.rows)
        self._log_step(done.step, {k: float(v) for k, v in metrics.items() if k != "bad_step"})

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
            self.counters.regions = dict(Counter(self.counters.regions) + Counter(origin))
        self.feedback.submit(step, batch["image_id"], batch["image"][..., 0], np.concatenate(masks))

    def _count_in_step_regions(self, rows: Any) -> None:
        """Count the regions that the step marked and measured itself."""
        per_row = {name: rows[name] for name in ("origin", "failure")}
        host = self.experiment.parallel.fetch(per_row, "sharded")
        origins = Counter(regions.ORIGINS[k] for k in host["origin"])
        failures = Counter(in_step_radiomics.FAILURES[k] for k in host["failure"] if k)
        self.counters.rows += len(host["origin"])
        self.counters.ready += len(host["origin"]) - failures.total()
        self.counters.regions = dict(Counter(self.counters.regions) + origins)
        self.counters.failures = dict(Counter(self.counters.failures) + failures)

    def _stop_non_finite(self, step: int, batch: Batch) -> None:
        messages = processes.gather(self.experiment.records.names[batch["image_id"]].tolist())
        names = [name for message in messages for name in message.meta]
        raise NonFiniteError(
            f"Loss or gradients of step {step} are not finite; the update was not taken and the last good "
            f"checkpoint is intact. Its images: {', '.join(names)}. Try a lower config.train.learning_rate."
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
                f"After step {steps_done} the logits of {len(names)} validation images are not finite; the last "
                f"good checkpoint is intact. The first: {names[0]}. Try a lower config.train.learning_rate."
            )
        table = evaluate.classification_auroc(
            outputs, experiment.records, experiment.split.val, resamples=0
        )
        auroc = float(table.mean.value)
        if np.isfinite(auroc) and (
            self.counters.best_auroc is None or auroc > self.counters.best_auroc
        ):
            self.counters.best_auroc, self.counters.best_step = auroc, steps_done
        if self._log is None or self._progress is None:
            return
        self._log.write(steps_done, "val", {"auroc": auroc})
        epoch = steps_done // experiment.batches.steps_per_epoch
        self._progress.say(
            f"epoch {epoch}/{experiment.config.train.epochs}  validation AUROC {auroc:.3f} "
            f"(best {self.counters.best_auroc or float('nan'):.3f})"
        )

    @timed("checkpoint_s")
    def save(self, steps_done: int) -> None:
        """Write a checkpoint of everything, from all processes, that decides how the run goes on."""
        self._finish_step_in_flight()
        if self.feedback is not None:
            self.counters.failures = dict(self.feedback.failures)
            totals = self.feedback.counters
            self.counters.late, self.counters.dropped = (
                int(totals["late"]),
                int(totals["dropped"]),
            )
            self.counters.reproducible = self.feedback.reproducible
        self.counters.throughput = self._throughput()
        self.total_counters = resume.save_run(
            self.experiment,
            self.checkpoints,
            self.feedback,
            state=self._state,
            counters=self.counters,
            steps_done=steps_done,
        )

    def _restore_or_initialise(self) -> Any:
        restored = resume.restore_run(self.experiment, self.checkpoints, self.feedback)
        if restored is None:
            return self.experiment.parallel.replicate(self.experiment.initial_state())
        self.first_step = restored.step
        self.counters, self.total_counters = restored.counters, restored.total_counters
        logging.info("Going on from step %d in %s", restored.step, self.experiment.workdir)
        return restored.state

    def _log_step(self, step: int, metrics: dict[str, float]) -> None:
        if self._log is None or self._progress is None:
            return
        rates = self._throughput()
        waits = rates.pop("waits")
        terminal_values: dict[str, Any] = {
            name: metrics[name] for name in ("loss", "focal", "nt_xent", "box") if name in metrics
        }
        if self.feedback is not None:
            terminal_values |= {
                "hit": metrics["hit_rate"],
                "age": metrics["age"],
                "ROI/s": rates["rois_per_s"],
                "wait s": waits["radiomics_s"],
            }
        self._progress.advance(format_metrics({**terminal_values, "img/s": rates["images_per_s"]}))
        if step % self.experiment.config.log_every == 0:
            self._log.write(
                step + 1,
                "train",
                {**metrics, **rates, **{f"wait_{k}": v for k, v in waits.items()}},
            )

    def _throughput(self) -> dict[str, Any]:
        """Rates and waits of this process. The first two steps compile: images are counted from the third on."""
        clock = self._clock
        now: dict[str, float] = self.feedback.counters if self.feedback else {}
        rois, wait_s = (
            now.get(name, 0) - self._counted_before.get(name, 0) for name in ("computed", "waits_s")
        )
        images = max(clock.steps, 0) * self.experiment.config.train.batch_size
        return {
            "images_per_s": images / clock.seconds if clock.seconds else 0.0,
            "rois_per_s": rois / clock.total if clock.total else 0.0,
            "waits": {**clock.parts, "radiomics_s": wait_s},
        }

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
