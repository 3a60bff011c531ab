"""The main job: train, then test; or test again. The workdir is locked and its config settled first."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kacl_jax import config as config_keys
from kacl_jax.config.stored import check_config, write_config
from kacl_jax.evaluation.results import Results, read_results
from kacl_jax.runtime import compilation, processes
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.workdir import lock_workdir
from kacl_jax.train import checkpoint, final_evaluation, fusion_features, resume
from kacl_jax.train.counters import RunCounters
from kacl_jax.train.experiment import Experiment, build_experiment, identify_data
from kacl_jax.train.loop import train

# What config.json holds: the config by dotted keys, and what identifies the data.
Identity = tuple[dict[str, Any], dict[str, str]]


def train_and_evaluate(config: ConfigDict, workdir: Path) -> Results:
    """The main job: train, or go on training, then test with the best checkpoint.

    On a finished workdir nothing is done and its results are returned.

    Args:
      config: see `config.default`.
      workdir: where everything a run leaves behind goes; the same config on it resumes.

    Raises:
      UserError: before step 0 for anything in the config or the data; WorkdirInUseError.
      InterruptedRunError: asked to stop; saved and resumable.
      NonFiniteError: loss or gradients were not finite; the last good checkpoint is intact.
    """
    workdir = workdir.absolute()
    with lock_workdir(workdir, hold=processes.is_leader()):
        experiment, identity = _prepare_experiment(config, workdir)
        finished = _finished_results(experiment)
        if finished is not None:
            logging.info("%s is finished; nothing to do. Its results:", workdir)
            if not (workdir / "report.html").exists():
                logging.info("report.html is missing. Write it with --mode=eval.")
            tested = finished.fused.kind if finished.fused else "none"
            if tested != config.fusion.kind:
                logging.info(
                    "It was tested with fusion.kind=%s. Test it again with --mode=eval.", tested
                )
            return finished
        if processes.is_leader():
            write_config(workdir, *identity)
            final_evaluation.write_run_json(experiment, experiment.batches.broken_files())
        logging.info(experiment.describe())
        checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
        with fusion_features.measuring_beside(experiment):
            counters = train(experiment, checkpoints)
        return final_evaluation.score_best_checkpoint(
            experiment, checkpoints, counters, steps=experiment.total_steps
        )


def evaluate_only(config: ConfigDict, workdir: Path) -> Results:
    """Test the best checkpoint of a workdir again and write the tables anew.

    Raises:
      UserError: as `train_and_evaluate`, or there is no checkpoint.
    """
    workdir = workdir.absolute()
    with lock_workdir(workdir, hold=processes.is_leader()):
        experiment, identity = _prepare_experiment(config, workdir)
        checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
        latest = checkpoint.restore_on_all(checkpoints.restore_latest)
        if latest is None:
            raise UserError(
                f"{workdir} has no checkpoint; train first with the same command and --mode=train"
            )
        if processes.is_leader():
            write_config(workdir, *identity)
        return final_evaluation.score_best_checkpoint(
            experiment, checkpoints, RunCounters(**latest.meta[resume.COUNTERS]), steps=latest.step
        )


def _prepare_experiment(config: ConfigDict, workdir: Path) -> tuple[Experiment, Identity]:
    """Build the experiment; refuse a config that differs from the one in the workdir. Writes no file of the run."""
    compilation.use_cache(workdir / "compilation_cache")
    experiment = build_experiment(config, workdir)
    keys = config_keys.flatten(config)
    data = identify_data(experiment.records, experiment.split, config.data.image_size)
    processes.refuse_differences({**keys, **data}, free=config_keys.FREE_KEYS)
    if processes.is_leader():
        check_config(workdir, keys, data)
    processes.barrier()
    return experiment, (keys, data)


def _finished_results(experiment: Experiment) -> Results | None:
    """The results of a run that was trained to its last step; results of an earlier --mode=eval do not count."""
    path = experiment.workdir / "results.json"

    def read() -> processes.Message:
        return processes.Message(read_results(path).to_json() if path.exists() else None, {})

    content = processes.broadcast(read).meta
    results = None if content is None else Results.from_json(content)
    return results if results and results.trained_steps == experiment.total_steps else None
