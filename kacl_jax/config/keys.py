"""Every config key with its default, and the check of a config, which runs before everything else.

The files in `configs/` start from `default()` and set the keys that differ. Where the paper does not say a value,
DECISIONS.md explains the default.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from kacl_jax.radiomics import FAMILIES
from kacl_jax.runtime.errors import UserError


def default() -> ConfigDict:
    """All keys with their defaults: the paper's values, as far as the paper gives them."""
    c = ConfigDict()
    c.seed = 0
    c.protocol = "A"  # A weak · B semi-supervised · C pooled folds
    c.folds = 5
    c.fold = 0
    c.log_every = 10  # steps

    c.data = ConfigDict()
    c.data.root = ""  # a folder in NIH's layout, or 'phantom' for the embedded demo set
    c.data.image_size = 224
    c.data.findings = 8
    c.data.allow_missing = False
    c.data.on_error = "raise"  # for a broken image file: raise | skip
    c.data.box_share = 0.0  # share of the boxed training patients whose boxes training may use
    c.data.val_fraction = 0.1  # share of the training patients who validate instead
    c.data.split_seed = 0
    c.data.threads = 2
    # A batch is the concatenation of one batch from each shard of the images; a multiple of the number of processes.
    # One process with s shards gets the same batches as s processes with one shard each.
    c.data.shards = 1

    c.augment = ConfigDict()
    c.augment.rotate = 0.0  # ± degrees
    c.augment.shift = 0.0  # ± fraction of the side
    c.augment.scale = 0.0  # 1 ±
    c.augment.contrast = 0.0  # 1 ±

    c.model = ConfigDict()
    c.model.encoder = "resnet18"
    c.model.pretrained = "torchvision"  # '' random | torchvision | package | a path
    c.model.output_stride = 32  # 32 | 16 (no last stride: the CAM's grid is twice as fine)
    c.model.projection_dim = 128
    c.model.dtype = "float32"  # of the image encoder's computation; parameters stay float32

    c.train = ConfigDict()
    c.train.epochs = 20
    c.train.batch_size = 64  # images per step, over all devices together
    c.train.learning_rate = 1e-4
    c.train.schedule = "constant"  # constant | one_cycle
    c.train.weight_decay = 1e-5  # coupled L2, as in torch's Adam
    c.train.warmup_epochs = 1  # first epochs, without the contrastive loss
    c.train.checkpoint_every = 0  # steps between checkpoints; 0: only at the end of each epoch

    c.loss = ConfigDict()
    c.loss.focal_weight = 0.8  # λ; 1: no contrastive loss, no radiomics
    c.loss.positive = "radiomics"  # in NT-Xent: radiomics | augmented (a second view)
    c.loss.focal_alpha = 0.25
    c.loss.focal_gamma = 2.0
    c.loss.temperature = 0.5
    c.loss.mask_same_patient = True
    c.loss.box_weight = 0.0  # w, weight of the box guidance; 0 in the paper's configuration

    c.cam = ConfigDict()
    c.cam.center = "none"  # none | mean: subtract the finding's mean map
    c.cam.relu = True
    c.cam.threshold = 0.5
    c.cam.stage = 4  # 4 (the last) | 3: the encoder stage whose output Grad-CAM uses

    c.roi = ConfigDict()
    c.roi.source = "cam"  # cam | random | whole
    c.roi.shape = "mask"  # of a CAM region: mask | box (its bounding box)
    c.roi.truth_boxes = True  # an annotated training image's ROI is its truth box

    c.feedback = ConfigDict()
    c.feedback.lag = 8  # steps until a result is used; 0: synchronous; −1: one epoch
    c.feedback.workers = 0  # radiomics processes; 0: the number of cores minus one
    c.feedback.late = "wait"  # wait | drop
    c.feedback.timeout_s = 60.0

    c.radiomics = ConfigDict()
    # pyradiomics: on the host, used `feedback.lag` steps later | jax: inside the train step
    c.radiomics.backend = "pyradiomics"
    c.radiomics.bin_width = 25.0
    # Input of the radiomics encoder; all families are measured anyway.
    c.radiomics.families = ",".join(FAMILIES)

    c.parallel = ConfigDict()
    c.parallel.mode = "shard_map"  # shard_map | pmap

    c.eval = ConfigDict()
    c.eval.batch_size = 64
    c.eval.bootstrap = 2000  # number of bootstrap resamples of the patients for each ci95
    c.eval.report_images = 400  # test images whose regions report.html measures; 0: none
    c.eval.pixel_probe = False  # also score a logistic probe on 16×16 pixels, a simple baseline

    c.profile = ConfigDict()
    c.profile.steps = (
        0,
        0,
    )  # jax.profiler trace: its first step, and the step before which it ends
    return c.lock()


# Keys that may differ between the first run in a workdir and its resumption, because they do not change results.
# Exceptions: radiomics of a region that times out or comes too late change results, and run.json counts these regions.
# `data.root` may change only if the checksums of its files are equal.
FREE_KEYS = (
    "data.root",
    "data.threads",
    "feedback.workers",
    "feedback.timeout_s",
    "eval.report_images",
    "profile.steps",
)

_ALLOWED_VALUES: dict[str, tuple[Any, ...]] = {
    "protocol": ("A", "B", "C"),
    "data.findings": (8, 14),
    "data.on_error": ("raise", "skip"),
    "model.encoder": ("resnet18", "resnet50", "efficientnet_lite0"),
    "model.output_stride": (16, 32),
    "model.dtype": ("float32", "bfloat16"),
    "train.schedule": ("constant", "one_cycle"),
    "loss.positive": ("radiomics", "augmented"),
    "cam.center": ("none", "mean"),
    "cam.stage": (3, 4),
    "roi.source": ("cam", "random", "whole"),
    "roi.shape": ("mask", "box"),
    "feedback.late": ("wait", "drop"),
    "radiomics.backend": ("pyradiomics", "jax"),
    "parallel.mode": ("shard_map", "pmap"),
}

_ALLOWED_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seed": ("≥ 0", lambda v: v >= 0),
    "folds": ("≥ 2", lambda v: v >= 2),
    "log_every": ("≥ 1", lambda v: v >= 1),
    "data.image_size": ("a multiple of 32, ≥ 64", lambda v: v >= 64 and v % 32 == 0),
    "data.box_share": ("in [0, 1]", lambda v: 0 <= v <= 1),
    "data.val_fraction": ("in (0, 0.5]", lambda v: 0 < v <= 0.5),
    "data.threads": ("≥ 1", lambda v: v >= 1),
    "data.shards": ("≥ 1", lambda v: v >= 1),
    "augment.rotate": ("in [0, 45] degrees", lambda v: 0 <= v <= 45),
    "augment.shift": ("in [0, 0.5]", lambda v: 0 <= v <= 0.5),
    "augment.scale": ("in [0, 0.5]", lambda v: 0 <= v <= 0.5),
    "augment.contrast": ("in [0, 0.9]", lambda v: 0 <= v <= 0.9),
    "model.projection_dim": ("≥ 2", lambda v: v >= 2),
    "train.epochs": ("≥ 1", lambda v: v >= 1),
    "train.batch_size": ("≥ 1", lambda v: v >= 1),
    "train.learning_rate": ("> 0", lambda v: v > 0),
    "train.weight_decay": ("≥ 0", lambda v: v >= 0),
    "train.warmup_epochs": ("≥ 0", lambda v: v >= 0),
    "train.checkpoint_every": ("≥ 0", lambda v: v >= 0),
    "loss.focal_weight": ("in [0, 1]", lambda v: 0 <= v <= 1),
    "loss.focal_alpha": ("in (0, 1)", lambda v: 0 < v < 1),
    "loss.focal_gamma": ("≥ 0", lambda v: v >= 0),
    "loss.temperature": ("> 0", lambda v: v > 0),
    "loss.box_weight": ("≥ 0", lambda v: v >= 0),
    "cam.threshold": ("in [0, 1)", lambda v: 0 <= v < 1),
    "feedback.lag": ("≥ −1", lambda v: v >= -1),
    "feedback.workers": ("≥ 0", lambda v: v >= 0),
    "feedback.timeout_s": ("> 0", lambda v: v > 0),
    "radiomics.bin_width": ("> 0", lambda v: v > 0),
    "radiomics.families": (
        f"one or more of {', '.join(FAMILIES)}, with commas between",
        lambda v: set(v.split(",")) <= set(FAMILIES),
    ),
    "eval.batch_size": ("≥ 1", lambda v: v >= 1),
    "eval.bootstrap": ("≥ 1", lambda v: v >= 1),
    "eval.report_images": ("≥ 0", lambda v: v >= 0),
}


def check(config: ConfigDict, *, n_devices: int, n_processes: int = 1) -> None:
    """Checks that the config can be run; one error lists all wrong values.

    Args:
      config: the config that `default()` returns, with changes.
      n_devices: number of devices that share a batch.
      n_processes: number of processes; every process has the same number of devices.

    Raises:
      UserError: one line per problem, each with the key, the value and what is allowed.
    """
    problems = [
        f"config.{key} is {_value_of(config, key)!r}; it must be one of {', '.join(map(repr, allowed))}"
        for key, allowed in _ALLOWED_VALUES.items()
        if _value_of(config, key) not in allowed
    ]
    problems += [
        f"config.{key} is {_value_of(config, key)!r}; it must be {description}"
        for key, (description, is_allowed) in _ALLOWED_RANGES.items()
        if not is_allowed(_value_of(config, key))
    ]
    problems += [
        f"config.{key} is {value}; it must be finite"
        for key, value in flatten(config).items()
        if isinstance(value, float) and math.isinf(value)
    ]
    problems += _contradictions(config, n_devices, n_processes)
    if problems:
        raise UserError("The config cannot be run:\n  " + "\n  ".join(problems))


def _contradictions(c: ConfigDict, n_devices: int, n_processes: int) -> list[str]:
    """The messages of all rules between keys that the config breaks."""
    contrastive = c.loss.focal_weight < 1
    uses_radiomics = contrastive and c.loss.positive == "radiomics"
    rules = [
        (
            not c.data.root,
            "config.data.root is empty; give a folder in NIH's layout (--config.data.root=/path/to/nih) or the "
            "embedded demo set (--config.data.root=phantom)",
        ),
        (
            not 0 <= c.fold < c.folds,
            f"config.fold is {c.fold}; with config.folds={c.folds} it must be in 0 … {c.folds - 1}",
        ),
        (
            c.protocol == "A" and c.fold > 0,
            f"protocol A has one test set, so config.fold={c.fold} would change nothing; use 0, or protocol B or C",
        ),
        (
            c.protocol == "A" and c.data.box_share > 0,
            "protocol A uses no box in training; set config.data.box_share=0, or protocol B or C",
        ),
        (
            c.loss.box_weight > 0 and c.data.box_share == 0,
            "config.loss.box_weight needs boxes of training patients; set config.data.box_share > 0 under protocol B "
            "or C, or config.loss.box_weight=0",
        ),
        (
            c.loss.box_weight > 0 and c.cam.center == "mean",
            "config.loss.box_weight > 0 with config.cam.center='mean' subtracts what the boxes taught the map; use "
            "one of them",
        ),
        (
            contrastive and c.loss.positive == "augmented" and not any(c.augment.values()),
            "config.loss.positive='augmented' pairs two augmented views, which would be equal; set one of "
            "config.augment.rotate, shift, scale, contrast",
        ),
        (
            c.loss.box_weight > 0 and c.cam.stage != 4,
            "config.loss.box_weight > 0 pulls the last stage's map; use config.cam.stage=4 with it",
        ),
        (
            c.cam.stage != 4 and uses_radiomics and c.radiomics.backend == "jax",
            "config.radiomics.backend='jax' marks regions on the last stage's map; use config.cam.stage=4, or "
            "config.radiomics.backend='pyradiomics'",
        ),
        (
            c.cam.stage != 4 and uses_radiomics and c.train.batch_size < c.data.findings,
            f"config.train.batch_size is {c.train.batch_size}: with config.cam.stage=3 the mean maps of the "
            f"{c.data.findings} findings need an image each; use more",
        ),
        (
            c.radiomics.backend == "jax" and c.roi.source == "random",
            "config.roi.source='random' is drawn on the host; use config.radiomics.backend='pyradiomics'",
        ),
        (
            contrastive and c.train.warmup_epochs >= c.train.epochs,
            f"config.train.warmup_epochs is {c.train.warmup_epochs} of {c.train.epochs} epochs: the contrastive "
            "loss would never begin; use fewer, or config.loss.focal_weight=1",
        ),
        (
            c.loss.focal_weight == 0 and c.loss.box_weight == 0 and c.train.warmup_epochs > 0,
            f"config.loss.focal_weight is 0, and the first {c.train.warmup_epochs} epoch(s) have the focal loss only: "
            "nothing would be learned in them; use config.train.warmup_epochs=0",
        ),
        (
            contrastive and c.train.batch_size < 8,
            f"config.train.batch_size is {c.train.batch_size}: the contrastive loss needs 8 images with features in a "
            "batch; use more, or config.loss.focal_weight=1",
        ),
        (
            c.train.batch_size % n_devices != 0,
            f"config.train.batch_size is {c.train.batch_size}; it must be a multiple of the {n_devices} devices",
        ),
        (
            c.data.shards % n_processes != 0,
            f"config.data.shards is {c.data.shards}; it must be a multiple of the {n_processes} processes: use "
            f"--config.data.shards={n_processes * max(1, round(c.data.shards / n_processes))}",
        ),
        (
            c.train.batch_size % max(1, c.data.shards) != 0,
            f"config.train.batch_size is {c.train.batch_size}; it must be a multiple of the {c.data.shards} "
            "config.data.shards",
        ),
        (
            c.eval.batch_size % n_devices != 0,
            f"config.eval.batch_size is {c.eval.batch_size}; it must be a multiple of the {n_devices} devices",
        ),
        (
            tuple(c.profile.steps) != (0, 0)
            and not (len(c.profile.steps) == 2 and c.profile.steps[0] < c.profile.steps[1]),
            f"config.profile.steps is {tuple(c.profile.steps)}; it must be (first, end), the trace ending before "
            "step end, or (0, 0) for none",
        ),
    ]
    return [message for is_broken, message in rules if is_broken]


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Dotted key → value, with tuples as lists; config.json holds this, and a resumption compares it."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def _value_of(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
