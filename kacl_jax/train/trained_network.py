"""The best network of a finished run, read from its workdir alone: no data root is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from kacl_jax import config as config_keys
from kacl_jax.config.stored import read_config
from kacl_jax.evaluation.results import read_results
from kacl_jax.evaluation.trained_facts import TrainedFacts, read_trained_facts
from kacl_jax.report.features import Moments
from kacl_jax.runtime.errors import UserError
from kacl_jax.step.regions import RegionRule
from kacl_jax.step.state import TrainState
from kacl_jax.train import checkpoint, network


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """What it takes to apply the network as the run applied it.

    drawn: whether it was trained on the demo set, whose X-rays a program has drawn.
    identity: a digest of its parameters. thresholds: on the raw scores, float64 [c]; NaN for a finding without one.
    moments: of the radiomic features of training regions, None if none was measured. bin_width: of these features.
    eval_step: `Programs.eval_step`. state: on the host. batch_size: of the run's evaluation.
    """

    run: Path
    drawn: bool
    identity: str
    findings: tuple[str, ...]
    thresholds: np.ndarray
    facts: TrainedFacts
    rule: RegionRule
    moments: Moments | None
    bin_width: float
    eval_step: Callable[[Any, Any], Any]
    state: TrainState
    batch_size: int
    parallel_mode: Literal["shard_map", "pmap"]


def read_network(run: Path) -> TrainedNetwork:
    """The network of the best checkpoint.

    Args:
      run: the workdir of a finished run. Nothing is written there.

    Raises:
      UserError: the folder is no finished run, or one of its files is missing, damaged or of another version.
    """
    if not (run / "config.json").is_file():
        raise UserError(f"{run} is not the folder of a run: it has no config.json")
    if not (run / "results.json").is_file():
        raise UserError(
            f"{run} has no results.json, so the run is not finished; finish it with its own command (it is in run.json)"
        )
    config = config_keys.default()
    with config.unlocked():
        config.update_from_flattened_dict(read_config(run))
    results = read_results(run / "results.json")
    rule = network.region_rule(config)
    programs = network.programs(
        config, 1, rule, len(results.findings)
    )  # the number of steps matters to training only
    restored = checkpoint.read_checkpoint(run / "checkpoints", results.best_step)
    template = jax.eval_shape(
        lambda: programs.init(network.init_variables(programs, config), rule.size)
    ).replace(opt_state=())
    state = checkpoint.from_arrays(template, restored.arrays, "state")
    points = results.classification.operating_point
    return TrainedNetwork(
        run=run,
        drawn=config.data.root == "phantom",
        identity=checkpoint.digest(checkpoint.to_arrays((state.params, state.batch_stats), "")),
        findings=results.findings,
        thresholds=np.array([points[name].value for name in results.findings]),
        facts=read_trained_facts(
            run,
            step=results.best_step,
            findings=results.findings,
            centred=config.cam.center == "mean",
        ),
        rule=rule,
        moments=Moments(state.feature_mean, state.feature_var) if state.feature_count else None,
        bin_width=config.radiomics.bin_width,
        eval_step=programs.eval_step,
        state=state,
        batch_size=config.eval.batch_size,
        parallel_mode=config.parallel.mode,
    )
