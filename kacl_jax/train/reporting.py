"""What a run tells while it trains: its rates, and lines for the terminal, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
from typing import Any

from kacl_jax.feedback.visibility import Feedback
from kacl_jax.runtime import processes
from kacl_jax.step.loss_terms import TERMS
from kacl_jax.train.clock import Clock
from kacl_jax.train.experiment import Experiment
from kacl_jax.train.log import MetricLog, StepProgress, format_metrics

_COMPILING = (
    "Compiling the train step. On a CPU this can take a minute or two the first time; "
    "later starts load it from the cache."
)


class Reporting:
    """Every process measures its rates; process 0 alone writes.

    first_step: the step that the run starts or goes on from. The rates describe this process from there on.
    is_resumed: whether a checkpoint was restored.
    stack: closes the files.
    """

    def __init__(
        self,
        experiment: Experiment,
        feedback: Feedback | None,
        clock: Clock,
        *,
        first_step: int,
        is_resumed: bool,
        stack: contextlib.ExitStack,
    ) -> None:
        self._experiment, self._feedback, self._clock = experiment, feedback, clock
        self._counted_before = dict(feedback.counters) if feedback else {}
        self._log: MetricLog | None = None
        self._progress: StepProgress | None = None
        if processes.is_leader():
            log = MetricLog(experiment.workdir, first_step if is_resumed else -1)
            progress = StepProgress(experiment.total_steps, first_step)
            self._log = stack.enter_context(contextlib.closing(log))
            self._progress = stack.enter_context(contextlib.closing(progress))
            progress.say(_COMPILING)

    def report_step(self, step: int, metrics: dict[str, float]) -> None:
        """Show a finished step on the terminal, and write it if it is one that is logged."""
        if self._log is None or self._progress is None:
            return
        rates = self.throughput()
        waits = rates.pop("waits")
        terminal_values: dict[str, Any] = {
            name: metrics[name] for name in ("loss", *TERMS) if name in metrics
        }
        if self._feedback is not None:
            terminal_values |= {
                "hit": metrics["hit_rate"],
                "age": metrics["age"],
                "ROI/s": rates["rois_per_s"],
                "wait s": waits["radiomics_s"],
            }
        terminal_values["img/s"] = rates["images_per_s"]
        beside_bar = {k: v for k, v in terminal_values.items() if k in ("loss", "hit", "img/s")}
        self._progress.advance(format_metrics(beside_bar), format_metrics(terminal_values))
        if step % self._experiment.config.log_every == 0:
            wait_columns = {f"wait_{name}": seconds for name, seconds in waits.items()}
            self._log.write(step + 1, "train", {**metrics, **rates, **wait_columns})

    def report_validation(self, steps_done: int, auroc: float, best_auroc: float | None) -> None:
        """Write the mean AUROC of the validation patients, and show it beside the best so far."""
        if self._log is None or self._progress is None:
            return
        self._log.write(steps_done, "val", {"auroc": auroc})
        epoch = steps_done // self._experiment.batches.steps_per_epoch
        self._progress.say(
            f"epoch {epoch}/{self._experiment.config.train.epochs}  validation AUROC {auroc:.3f} "
            f"(best {best_auroc or float('nan'):.3f})"
        )

    def warn(self, sentence: str) -> None:
        """Show a sentence that a reader of the results must know."""
        if self._progress is not None:
            self._progress.say(f"Warning: {sentence}")

    def throughput(self) -> dict[str, Any]:
        """Rates and waits of this process. The first two steps compile: images are counted from the third on."""
        clock = self._clock
        now: dict[str, float] = self._feedback.counters if self._feedback else {}
        rois, wait_s = (
            now.get(name, 0) - self._counted_before.get(name, 0) for name in ("computed", "waits_s")
        )
        images = max(clock.steps, 0) * self._experiment.config.train.batch_size
        return {
            "images_per_s": images / clock.seconds if clock.seconds else 0.0,
            "rois_per_s": rois / clock.total if clock.total else 0.0,
            "waits": {**clock.parts, "radiomics_s": wait_s},
        }
