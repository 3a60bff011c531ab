"""The best network of a finished run, read from its workdir alone: no data root is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from ml_collections import ConfigDict

from kacl_jax import config as config_keys
from kacl_jax.config.stored import read_config
from kacl_jax.evaluation.results import read_results
from kacl_jax.evaluation.trained_facts import TrainedFacts, read_trained_facts
from kacl_jax.fusion import fused_file
from kacl_jax.fusion.fused_file import SavedFusion
from kacl_jax.report.features import Moments
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.files import file_sha256
from kacl_jax.step.programs import Programs
from kacl_jax.step.regions import RegionRule
from kacl_jax.step.state import TrainState
from kacl_jax.train import checkpoint, fusion_features, network


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """What it takes to apply the network as the run applied it.

    drawn: whether it was trained on the demo set, whose X-rays a program has drawn.
    identity: a digest of its parameters, and of its fusion. thresholds: on its own raw scores, float64 [c]; NaN for a
    finding without one.
    moments: of the radiomic features of training regions, None if none was measured. bin_width: of these features.
    fusion: None for a run without. start: makes the state before training, whose image features a fusion uses. Raises
    UserError if its encoder cannot be read, or is another one than that of the fusion.
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
    fusion: SavedFusion | None
    start: Callable[[], TrainState]
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
    state = checkpoint.from_arrays(template, restored.arrays, "state").for_evaluation()
    points = results.classification.operating_point
    identity, fusion = (
        checkpoint.digest(checkpoint.to_arrays((state.params, state.batch_stats), "")),
        None,
    )
    if config.fusion.kind != "none":
        fusion = fused_file.read(run, step=results.best_step, findings=results.findings)
        identity += file_sha256(run / fused_file.NAME)
    return TrainedNetwork(
        run=run,
        drawn=config.data.root == "phantom",
        identity=identity,
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
        fusion=fusion,
        start=partial(_read_start, run, programs, config, fusion.start if fusion else ""),
        batch_size=config.eval.batch_size,
        parallel_mode=config.parallel.mode,
    )


def _read_start(run: Path, programs: Programs, config: ConfigDict, digest: str) -> TrainState:
    """The state before training. Raises UserError if its encoder is not the one of this digest."""
    start = network.state_for_start_features(programs, config)
    if fusion_features.encoder_digest(start) != digest:
        raise UserError(
            f"the image encoder that {run} started from is another one now (config.model.pretrained="
            f"{config.model.pretrained!r}); restore its weights, or test the run again with its own command and "
            "--mode=eval"
        )
    return start
