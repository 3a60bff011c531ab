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

from kacl_jax import radiomics
from kacl_jax.data.batches import Batch
from kacl_jax.evaluation import evaluate
from kacl_jax.feedback.visibility import Feedback
from kacl_jax.runtime import hosts, signals
from kacl_jax.runtime.devices import with_shared_flag
from kacl_jax.runtime.errors import InterruptedRunError, NonFiniteError
from kacl_jax.step import in_step_radiomics, regions
from kacl_jax.train import checkpoint, resume
from kacl_jax.train.clock import Clock, timed
from kacl_jax.train.counters import RunCounters
from kacl_jax.train.experiment import Experiment
from kacl_jax.train.log import MetricLog, Progress, summary


@dataclasses.dataclass
class InFlight:
    """A dispatched step whose results the host has not read yet."""

    step: int
    batch: Batch
    metrics: Any
    rows: Any


def train(experiment: Experiment, saved: checkpoint.Checkpoints) -> RunCounters:
    """Train to the last step from the newest checkpoint, or from the start."""
    interrupt = signals.Interrupt()
    with contextlib.ExitStack() as stack:
        loop = _Loop(experiment, saved, interrupt, stack)
        stack.enter_context(interrupt.watched())
        # Every array that crosses to or from a device here is meant to.
        stack.enter_context(jax.transfer_guard("disallow"))
        per_epoch = experiment.batches.steps_per_epoch
        every = experiment.config.train.checkpoint_every
        for step in range(loop.first_step, experiment.total_steps):
            loop.turn(step)
            taken = step + 1
            if taken % per_epoch == 0:
                loop.validate(taken)
            if loop.stops or taken % per_epoch == 0 or (every and taken % every == 0):
                loop.save(taken)
            if taken == experiment.total_steps:
                loop.share_stop_requests()
            if loop.stops:
                raise InterruptedRunError(
                    f"Stopped after step {taken} of {experiment.total_steps}; the same command goes on from there."
                )
        return loop.total_counters


class _Loop:
    """One training run in motion: the state on the devices and everything that moves with it."""

    def __init__(
        self,
        experiment: Experiment,
        saved: checkpoint.Checkpoints,
        interrupt: signals.Interrupt,
        stack: contextlib.ExitStack,
    ) -> None:
        self.experiment, self.saved, self._interrupt = experiment, saved, interrupt
        parallel, programs = experiment.parallel, experiment.programs
        step = (
            programs.train_step
            if hosts.process_count() == 1
            else with_shared_flag(programs.train_step, "asked")
        )
        self._train_step = parallel.compile(
            step, ("replicated", "replicated", "sharded"), donate_state=True
        )
        self._region_step = parallel.compile(programs.region_step, ("sharded",))
        self.feedback: Feedback | None = None
        if experiment.needs_pool:
            self.feedback = experiment.open_feedback(stack)
        # What this process counted (the first one: all of it, up to the last checkpoint), and what all did by then.
        self.counters = self.total_counters = RunCounters()
        self.first_step = 0
        self._stop_requested_somewhere = False
        self._in_flight: InFlight | None = None
        self._state = self._restore_or_initialise()
        self._log: MetricLog | None = None
        self._progress: Progress | None = None
        if hosts.is_leader():
            self._log = stack.enter_context(
                contextlib.closing(MetricLog(experiment.workdir, self.first_step))
            )
            self._progress = stack.enter_context(
                contextlib.closing(Progress(experiment.total_steps, self.first_step))
            )
        # Closed after the profile's last step, or with the loop if that comes first.
        self._stop_profile = stack.enter_context(contextlib.ExitStack())
        self._clock = Clock()
        # A resume restores the counters; rates are of this process.
        self._counted_before = dict(self.feedback.counters) if self.feedback else {}

    @property
    def stops(self) -> bool:
        """Whether the run was asked to stop; the same on all processes, so each hears of it one step later."""
        return (
            self._stop_requested_somewhere
            if hosts.process_count() > 1
            else self._interrupt.requested
        )

    def share_stop_requests(self) -> None:
        """Whether any process was asked to stop by now: after the last step no other tells."""
        asked = [told.meta for told in hosts.gather(self._interrupt.requested)]
        self._stop_requested_somewhere |= any(asked)

    # ---- one turn of the feedback loop ------------------------------------------------------------------------

    def turn(self, step: int) -> None:
        """Dispatch step `step`, then see to what the step before it left."""
        self._profile(step)
        self._clock.start()
        with self._clock.part("data_s"):
            batch = next(self.experiment.batches)
        if self.experiment.lag == 0 and self.feedback is not None:
            (rows,) = self._region_step(self._state, self._placed(batch, *_no_features(batch)))
            self._mark_regions(step, batch, rows)
        if self.experiment.lag == 1:
            self._settle()
        features = self._visible_features(step, batch)
        placed = self._placed(batch, *features)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            self._state, metrics, rows = self._train_step(self._state, placed)
        self._settle()
        self._in_flight = InFlight(step, batch, metrics, rows)
        self._clock.stop()

    def _visible_features(
        self, step: int, batch: Batch
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """radiomics float32 [b f], ready bool [b], age int32 [b] as they stand at this step."""
        if self.feedback is None:
            return _no_features(batch)
        found = self.feedback.lookup(step, batch["image_id"])
        self.counters.rows += len(found.ready)
        self.counters.ready += int(found.ready.sum())
        self.counters.age_sum += int(found.age[found.ready].sum())
        return found.radiomics, found.ready, found.age

    @timed("to_device_s")
    def _placed(
        self, batch: Batch, radiomics: np.ndarray, ready: np.ndarray, age: np.ndarray
    ) -> Any:
        rows = {**batch, "radiomics": radiomics, "ready": ready, "age": age}
        if hosts.process_count() > 1:
            rows["asked"] = np.full(len(ready), self._interrupt.requested)
        return self.experiment.parallel.shard(rows)

    def _settle(self) -> None:
        """Read the step in flight: stop if it went wrong, log it, send its regions to the workers."""
        if self._in_flight is None:
            return
        done, self._in_flight = self._in_flight, None
        with self._clock.part("device_s"):
            jax.block_until_ready(done.metrics)
        metrics = self.experiment.parallel.fetch(done.metrics, "replicated")
        self._stop_requested_somewhere |= bool(metrics.pop("asked", 0) > 0)
        if metrics["bad_step"] >= 0:
            self._stop_non_finite(int(metrics["bad_step"]), done.batch)
        if self.experiment.programs.fresh is not None:
            self._count_in_step_regions(done.rows)
        if self.feedback is not None and self.experiment.lag > 0:
            self._mark_regions(done.step, done.batch, done.rows)
        self._report(done.step, {k: float(v) for k, v in metrics.items() if k != "bad_step"})

    @timed("regions_s")
    def _mark_regions(self, step: int, batch: Batch, rows: Any) -> None:
        """Grad-CAM → region of interest → radiomics worker."""
        assert self.feedback is not None
        with self._clock.part("device_s"):
            jax.block_until_ready(rows)
        host = self.experiment.parallel.fetch(rows, "sharded")
        masks = []
        # Shard by shard: a region may depend on the others it is marked with.
        for part in np.split(np.arange(len(host["cam"])), self.experiment.batches.n_shards):
            marked, origin = self.experiment.region_rule.mark(
                host["cam"][part],
                host["box_finding"][part],
                batch["boxes"][part],
                batch["image_id"][part],
                step,
            )
            masks.append(marked)
            self.counters.regions = dict(Counter(self.counters.regions) + Counter(origin))
        self.feedback.submit(step, batch["image_id"], batch["image"][..., 0], np.concatenate(masks))

    def _count_in_step_regions(self, rows: Any) -> None:
        """Regions that the step marked and measured itself."""
        told = {name: rows[name] for name in ("origin", "failure")}
        host = self.experiment.parallel.fetch(told, "sharded")
        origins = Counter(regions.ORIGINS[k] for k in host["origin"])
        failures = Counter(in_step_radiomics.FAILURES[k] for k in host["failure"] if k)
        self.counters.rows += len(host["origin"])
        self.counters.ready += len(host["origin"]) - failures.total()
        self.counters.regions = dict(Counter(self.counters.regions) + origins)
        self.counters.failures = dict(Counter(self.counters.failures) + failures)

    def _stop_non_finite(self, step: int, batch: Batch) -> None:
        told = hosts.gather(self.experiment.records.names[batch["image_id"]].tolist())
        names = [name for process in told for name in process.meta]
        raise NonFiniteError(
            f"Loss or gradients of step {step} are not finite; the update was not taken and the last good "
            f"checkpoint is intact. Its images: {', '.join(names)}. Try a lower config.train.learning_rate."
        )

    # ---- between the steps ------------------------------------------------------------------------------------

    @timed("validation_s")
    def validate(self, taken: int) -> None:
        """Mean AUROC of the validation patients; remembers the best step."""
        self._settle()
        experiment = self.experiment
        outputs = experiment.inference.logits(self._state, experiment.split.val)
        bad = ~np.isfinite(outputs.logits).all(1)
        if bad.any():
            names = experiment.records.names[outputs.image_id[bad]]
            raise NonFiniteError(
                f"After step {taken} the logits of {len(names)} validation images are not finite; the last "
                f"good checkpoint is intact. The first: {names[0]}. Try a lower config.train.learning_rate."
            )
        table = evaluate.classification(
            outputs, experiment.records, experiment.split.val, resamples=0
        )
        auroc = float(table.mean.value)
        if np.isfinite(auroc) and (
            self.counters.best_auroc is None or auroc > self.counters.best_auroc
        ):
            self.counters.best_auroc, self.counters.best_step = auroc, taken
        if self._log is None or self._progress is None:
            return
        self._log.write(taken, "val", {"auroc": auroc})
        epoch = taken // experiment.batches.steps_per_epoch
        self._progress.say(
            f"epoch {epoch}/{experiment.config.train.epochs}  validation AUROC {auroc:.3f} "
            f"(best {self.counters.best_auroc or float('nan'):.3f})"
        )

    @timed("checkpoint_s")
    def save(self, taken: int) -> None:
        """A checkpoint of everything that decides how the run goes on: of all processes, written by the first."""
        self._settle()
        if self.feedback is not None:
            self.counters.failures = dict(self.feedback.failures)
            counted = self.feedback.counters
            self.counters.late, self.counters.dropped = (
                int(counted["late"]),
                int(counted["dropped"]),
            )
            self.counters.reproducible = self.feedback.reproducible
        self.counters.throughput = self._throughput()
        self.total_counters = resume.save_run(
            self.experiment,
            self.saved,
            self.feedback,
            state=self._state,
            counters=self.counters,
            taken=taken,
        )

    def _restore_or_initialise(self) -> Any:
        found = resume.restore_run(self.experiment, self.saved, self.feedback)
        if found is None:
            return self.experiment.parallel.replicate(self.experiment.initial_state())
        self.first_step, self.counters, self.total_counters = (
            found.step,
            found.counters,
            found.total_counters,
        )
        logging.info("Going on from step %d in %s", found.step, self.experiment.workdir)
        return found.state

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        if self._log is None or self._progress is None:
            return
        rates = self._throughput()
        waits = rates.pop("waits")
        told: dict[str, Any] = {
            name: metrics[name] for name in ("loss", "focal", "nt_xent", "box") if name in metrics
        }
        if self.feedback is not None:
            told |= {
                "hit": metrics["hit_rate"],
                "age": metrics["age"],
                "ROI/s": rates["rois_per_s"],
                "wait s": waits["radiomics_s"],
            }
        self._progress.advance(summary({**told, "img/s": rates["images_per_s"]}))
        if step % self.experiment.config.log_every == 0:
            self._log.write(
                step + 1,
                "train",
                {**metrics, **rates, **{f"wait_{k}": v for k, v in waits.items()}},
            )

    def _throughput(self) -> dict[str, Any]:
        """Rates of this process (images: since its third step, the first two compile), and its waits."""
        clock = self._clock
        now: dict[str, float] = self.feedback.counters if self.feedback else {}
        rois, waited = (
            now.get(name, 0) - self._counted_before.get(name, 0) for name in ("computed", "waits_s")
        )
        images = max(clock.steps, 0) * self.experiment.config.train.batch_size
        return {
            "images_per_s": images / clock.seconds if clock.seconds else 0.0,
            "rois_per_s": rois / clock.total if clock.total else 0.0,
            "waits": {**clock.parts, "radiomics_s": waited},
        }

    def _profile(self, step: int) -> None:
        first, last = self.experiment.config.profile.steps
        if first < last and step == first:
            jax.profiler.start_trace(str(self.experiment.workdir / "profile"))
            self._stop_profile.callback(jax.profiler.stop_trace)
        if step == last:
            self._settle()
            self._stop_profile.close()


def _no_features(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    b = len(batch["image_id"])
    return (
        np.zeros((b, len(radiomics.FEATURE_NAMES)), np.float32),
        np.zeros(b, bool),
        np.zeros(b, np.int32),
    )
