"""Restores a finished run from its workdir, for `maps` and `radiomic_probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kacl_jax import config as config_keys
from kacl_jax.config.stored import read_config
from kacl_jax.evaluation.results import read_results
from kacl_jax.train import checkpoint
from kacl_jax.train.experiment import Experiment, build_experiment


def restore_experiment(workdir: Path) -> Experiment:
    """The experiment, built with the config that the run was trained with."""
    config = config_keys.default()
    stored = read_config(workdir)
    config.update_from_flattened_dict(
        {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    )
    return build_experiment(config, workdir)


def best_state(experiment: Experiment) -> Any:
    """The TrainState of the checkpoint that the run's test scored, placed on the devices."""
    workdir = experiment.workdir
    best = read_results(workdir / "results.json").best_step
    restored = checkpoint.Checkpoints(workdir / "checkpoints").restore(best)
    trained = checkpoint.from_arrays(experiment.state_template(), restored.arrays, "state")
    return experiment.parallel.replicate(trained)
