"""The check of a config: the rule of each key, which the table has, and the rules between keys."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from kacl_jax.config.keys import KEYS, TYPE_NAMES, leaves
from kacl_jax.runtime.errors import UserError


def check(config: ConfigDict, *, n_devices: int, n_processes: int = 1) -> None:
    """Checks that the config can be run; one error lists all wrong values. It imports jax.

    Args:
      config: the config that `default()` returns, with changes.
      n_devices: number of devices that share a batch.
      n_processes: number of processes; every process has the same number of devices.

    Raises:
      UserError: one line per problem, each with the key, the value and what is allowed.
    """
    values = dict(leaves(config))
    requirements = {
        name: _wrong_type(
            values[name],
            str if isinstance(values[name], str) and key.text_too else type(key.default),
        )
        for name, key in KEYS.items()
    }
    has_types = not any(requirements.values())
    if has_types:
        requirements = {name: _wrong_value(name, values[name]) for name in KEYS}
    problems = [
        f"config.{name} is {values[name]!r}; it must be {requirement}"
        for name, requirement in requirements.items()
        if requirement
    ]
    if has_types:
        problems += _data_problems(config)
        problems += _loss_problems(config)
        problems += _batch_problems(config, n_devices, n_processes)
    if problems:
        raise UserError("The config cannot be run:\n  " + "\n  ".join(problems))


def _wrong_type(value: Any, kind: type) -> str:
    """What the value must be, or '' if it is that. True is no number here."""
    is_right = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    return "" if is_right else TYPE_NAMES[kind]


def _wrong_value(name: str, value: Any) -> str:
    """What the key's value must be, or '' if it is that."""
    if isinstance(value, float) and math.isinf(value):
        return "finite"
    rule = KEYS[name].rule()
    return "" if rule.test(value) else rule.words


def _data_problems(c: ConfigDict) -> Iterator[str]:
    """Root, protocol and boxes."""
    if not c.data.root:
        yield (
            "config.data.root is empty; give a folder in NIH's layout (--config.data.root=/path/to/nih) or the "
            "embedded demo set (--config.data.root=phantom)"
        )
    if not 0 <= c.fold < c.folds:
        yield f"config.fold is {c.fold}; with config.folds={c.folds} it must be in 0 … {c.folds - 1}"
    if (
        c.protocol == "C"
        and c.data.split_version == 2
        and c.data.val_fraction > 1 / (c.folds - 1) + 1e-9
    ):
        yield (
            f"config.data.val_fraction is {c.data.val_fraction:g}; with config.folds={c.folds} and "
            f"config.data.split_version=2 it may be at most {1 / (c.folds - 1):.3g}, because the patients of one fold "
            "validate"
        )
    if c.protocol == "A" and c.fold > 0:
        yield f"protocol A has one test set, so config.fold={c.fold} would change nothing; use 0, or protocol B or C"
    if c.protocol == "A" and c.data.box_share > 0:
        yield "protocol A uses no box in training; set config.data.box_share=0, or protocol B or C"
    if c.loss.box_weight > 0 and c.data.box_share == 0:
        yield (
            "config.loss.box_weight needs boxes of training patients; set config.data.box_share > 0 under protocol B "
            "or C, or config.loss.box_weight=0"
        )


def _loss_problems(c: ConfigDict) -> Iterator[str]:
    """Losses, maps and regions."""
    contrastive = c.loss.focal_weight < 1
    if c.loss.box_weight > 0 and c.cam.center == "mean":
        yield (
            "config.cam.center='mean' subtracts from the map what config.loss.box_weight > 0 teaches it; use only one "
            "of them"
        )
    if contrastive and c.loss.positive == "augmented" and not any(c.augment.values()):
        yield (
            "config.loss.positive='augmented' needs two views that differ; set one of config.augment.rotate, shift, "
            "scale, contrast, flip"
        )
    if c.loss.box_weight > 0 and c.cam.stage != 4:
        yield "config.loss.box_weight > 0 changes the last stage's map; use config.cam.stage=4 with it"
    if c.radiomics.backend == "jax" and c.roi.source == "random":
        yield "config.roi.source='random' works only on the host; use config.radiomics.backend='pyradiomics'"
    if contrastive and c.train.warmup_epochs >= c.train.epochs:
        yield (
            f"config.train.warmup_epochs is {c.train.warmup_epochs} of {c.train.epochs} epochs: the contrastive "
            "loss would never begin; use fewer, or config.loss.focal_weight=1"
        )
    if c.loss.focal_weight == 0 and c.loss.box_weight == 0 and c.train.warmup_epochs > 0:
        yield (
            f"config.loss.focal_weight is 0, so the first {c.train.warmup_epochs} epoch(s), which have only the focal "
            "loss, would learn nothing; use config.train.warmup_epochs=0"
        )
    if contrastive and c.train.batch_size < 8:
        yield (
            f"config.train.batch_size is {c.train.batch_size}: the contrastive loss needs 8 images with features in a "
            "batch; use more, or config.loss.focal_weight=1"
        )


def _batch_problems(c: ConfigDict, n_devices: int, n_processes: int) -> Iterator[str]:
    """Batches over devices and processes."""
    if c.train.batch_size % n_devices:
        yield f"config.train.batch_size is {c.train.batch_size}; it must be a multiple of the {n_devices} devices"
    if c.data.shards % n_processes:
        yield (
            f"config.data.shards is {c.data.shards}; it must be a multiple of the {n_processes} processes: use "
            f"--config.data.shards={n_processes * max(1, round(c.data.shards / n_processes))}"
        )
    if c.train.batch_size % max(1, c.data.shards):
        yield (
            f"config.train.batch_size is {c.train.batch_size}; it must be a multiple of the {c.data.shards} "
            "config.data.shards"
        )
    if c.eval.batch_size % n_devices:
        yield f"config.eval.batch_size is {c.eval.batch_size}; it must be a multiple of the {n_devices} devices"
