"""The table of all config keys. The check, --help and docs/keys.md come from it.

The files in `configs/` start from `default()` and set the keys that differ. Where the paper does not say a value,
DECISIONS.md explains the default. After a change here: python -m kacl_jax.config.reference > docs/keys.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict, FieldReference

from kacl_jax.config.allowed import (
    Allowed,
    anything,
    findings_rule,
    interval,
    multiple_of,
    one_of,
    some_of,
)
from kacl_jax.radiomics import FAMILIES

TYPE_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a pair of whole numbers",
}


@dataclass(frozen=True)
class Key:
    """One row of the table."""

    default: Any  # of a new run; its type is the key's type
    allowed: Allowed | Callable[[], Allowed]  # a function where the rule needs a slow import
    meaning: str
    # What the code did before the key existed: the value of a run whose config.json does not have the key.
    # None: every config.json that can be read has the key. A new key needs a value here.
    before: Any = None
    # Whether the value may differ between the first run in a workdir and its resumption, because it changes no result.
    # Exceptions: radiomics of a region that times out or comes too late change results, and run.json counts these
    # regions; with data.on_error=skip, data.max_megapixels decides which images are left out, and run.json names them.
    # `data.root` may change only if the checksums of its files are equal. `fusion` adds results beside the others.
    free: bool = False
    text_too: bool = False  # a value may also be text

    def rule(self) -> Allowed:
        """`allowed` itself, after the slow import if it needs one."""
        return self.allowed if isinstance(self.allowed, Allowed) else self.allowed()


def _encoders() -> Allowed:
    from kacl_jax.models.encoders import ENCODERS  # imports jax

    return one_of(*ENCODERS)


def _inputs() -> Allowed:
    from kacl_jax.models.input_scales import AUTO, INPUT_SCALES  # imports jax

    return one_of(AUTO, *INPUT_SCALES)


def _is_trace(steps: tuple[Any, ...]) -> bool:
    is_pair = len(steps) == 2 and all(type(step) is int for step in steps)
    return is_pair and (steps == (0, 0) or steps[0] < steps[1])


KEYS: dict[str, Key] = {
    "seed": Key(
        0,
        interval("[0, 4294967295]"),
        "Seed of the first weights, the order of the images, the augmentation and the random regions.",
    ),
    "protocol": Key(
        "A",
        one_of("A", "B", "C"),
        "A: the official lists, no box in training (weak). B: the official lists, and boxes of four of five patient "
        "folds in training (semi-supervised). C: patient folds over all images (pooled).",
    ),
    "folds": Key(
        5,
        interval("[2, 1000]"),
        "Number of patient folds; under A only the image-free prior uses them.",
    ),
    "fold": Key(0, anything("0 … folds − 1"), "The fold that is tested; 0 under A."),
    "log_every": Key(
        10, interval("[1, 1000000]"), "Steps from one line of metrics.jsonl to the next."
    ),
    "data.root": Key(
        "",
        anything("a folder in NIH's layout, or phantom"),
        "Where the X-rays are; phantom: the embedded demo set, which is drawn beside the workdir.",
        free=True,
    ),
    "data.image_size": Key(
        224,
        multiple_of(32, 64, 4096),
        "Side of the square images that the network sees, in pixels.",
    ),
    "data.findings": Key(
        8,
        findings_rule,
        "The findings to look for. 8: those of NIH with truth boxes. 14: all of NIH. all: every column of images.csv. "
        "Or names with commas between.",
        text_too=True,
    ),
    "data.uncertain": Key(
        "refuse",
        one_of("refuse", "ignore", "positive", "negative"),
        "What the label −1 in images.csv becomes. ignore: unknown, so that it counts nowhere. refuse: a problem.",
        before="refuse",
    ),
    "data.allow_missing": Key(
        False,
        anything(),
        "Train without the images that the tables name and the root does not have.",
    ),
    "data.on_error": Key(
        "raise",
        one_of("raise", "skip"),
        "For an image file that cannot be read: stop, or leave it out.",
    ),
    "data.max_megapixels": Key(
        64,
        interval("[1, 4000]"),
        "The largest image that can be read, in million pixels. The file may have 8 bytes for each of these pixels. A "
        "radiograph of 5000×4000 has 20 million.",
        before=134,
        free=True,
    ),
    "data.box_share": Key(
        0.0,
        interval("[0, 1]"),
        "Share of the training patients with boxes whose boxes training may use; 0 under A.",
    ),
    "data.val_fraction": Key(
        0.1,
        interval("(0, 0.5]"),
        "Share of the training patients who validate instead of train; under C at most 1 / (folds − 1), see "
        "data.split_version.",
    ),
    "data.split_seed": Key(
        0, anything(), "Seed of the choice between patients for folds and parts."
    ),
    "data.split_version": Key(
        2,
        one_of(1, 2),
        "2: under C no patient validates in two folds. 1: the validation parts of two folds share patients. Under A "
        "and B they are equal.",
        before=1,
    ),
    "data.threads": Key(2, interval("[1, 512]"), "Threads that decode images.", free=True),
    "data.shards": Key(
        1,
        interval("[1, 4096]"),
        "A batch is the concatenation of one batch from each shard of the images; a multiple of the number of "
        "processes. One process with s shards gets the same batches as s processes with one shard each.",
        before=1,
    ),
    "augment.rotate": Key(
        0.0, interval("[0, 45]", "degrees"), "An image is rotated by up to ± this angle."
    ),
    "augment.shift": Key(
        0.0, interval("[0, 0.5]"), "An image is shifted by up to ± this fraction of its side."
    ),
    "augment.scale": Key(0.0, interval("[0, 0.5]"), "An image is scaled by a factor of 1 ± this."),
    "augment.contrast": Key(
        0.0, interval("[0, 0.9]"), "Its contrast is changed by a factor of 1 ± this."
    ),
    "augment.flip": Key(
        0.0,
        interval("[0, 1]"),
        "The probability that left and right of an image are swapped.",
        before=0.0,
    ),
    "model.encoder": Key("resnet18", _encoders, "The image encoder."),
    "model.pretrained": Key(
        "torchvision",
        anything("'' or torchvision or package or a path"),
        "The image encoder's first weights: random for '', torchvision's, those of an installed package, or a file. "
        "docs/weights.md says which files fit. PATH:PREFIX takes one of several encoders in a file.",
    ),
    "model.input": Key(
        "auto",
        _inputs,
        "The scale on which the image encoder sees the grey levels. auto: the encoder's own. imagenet: ImageNet's mean "
        "and standard deviation of each channel. lite: (x − 127) / 128. unit: x / 255. chexpert: CheXpert's mean and "
        "standard deviation. With one channel instead of three: grey, with the mean of ImageNet's, and xrv, from −1024 "
        "to 1024 as TorchXRayVision. Weights from a file need the scale that they were trained with: docs/weights.md.",
        before="imagenet",
    ),
    "model.output_stride": Key(
        32,
        one_of(16, 32),
        "Pixels per map cell; 16 leaves out the last stride: a CAM grid twice as fine.",
    ),
    "model.projection_dim": Key(
        128, interval("[2, 65536]"), "Length of the projections that the contrastive loss compares."
    ),
    "model.dtype": Key(
        "float32",
        one_of("float32", "bfloat16"),
        "Type of the image encoder's computation; parameters, statistics and losses stay float32.",
    ),
    "train.epochs": Key(20, interval("[1, 100000]"), "Epochs of the whole run."),
    "train.batch_size": Key(
        64, interval("[1, 65536]"), "Images per step, over all devices together."
    ),
    "train.learning_rate": Key(
        1e-4, interval("(0, 1e38]"), "Adam's learning rate; with one_cycle its peak."
    ),
    "train.schedule": Key(
        "constant",
        one_of("constant", "one_cycle"),
        "How the learning rate changes over the run's steps. one_cycle: it rises from 1/25 of its peak, then it falls "
        "to almost 0, each time along half a cosine.",
    ),
    "train.rate_warmup": Key(
        0.3,
        interval("(0, 1)"),
        "Share of the run's steps in which the learning rate of one_cycle rises.",
        before=0.3,
    ),
    "train.head_start": Key(
        "random",
        one_of("random", "ridge"),
        "The classifier's first weights. ridge: those of ridge regressions on the image features that the training "
        "images have before the first step.",
        before="random",
    ),
    "train.head_rate": Key(
        1.0,
        interval("(0, 1e6]"),
        "The classifier's learning rate is train.learning_rate times this.",
        before=1.0,
    ),
    "train.frozen_statistics": Key(
        False,
        anything(),
        "BatchNorm in the image encoder keeps the statistics that it started with, and uses them in training, too.",
        before=False,
    ),
    "train.ema": Key(
        0.0,
        interval("[0, 1)"),
        "Decay of an exponential moving average of all weights and BatchNorm statistics over the steps. Validation, "
        "test and prediction use the average. 0: none.",
        before=0.0,
    ),
    "train.weight_decay": Key(1e-5, interval("[0, 1e6]"), "Coupled L2, as in torch's Adam."),
    "train.warmup_epochs": Key(
        1, interval("[0, 100000]"), "First epochs, without the contrastive loss."
    ),
    "train.checkpoint_every": Key(
        0, interval("[0, 1000000]"), "Steps between checkpoints; 0: only at the end of each epoch."
    ),
    "loss.focal_weight": Key(
        0.8,
        interval("[0, 1]"),
        "λ in λ · focal + (1 − λ) · loss.nt_xent_weight · NT-Xent; 1: no contrastive loss and no radiomics.",
    ),
    "loss.positive": Key(
        "radiomics",
        one_of("radiomics", "augmented"),
        "An image's partner in NT-Xent: its region's radiomics, or its second augmented view, as in SimCLR.",
        before="radiomics",
    ),
    "loss.focal_alpha": Key(
        0.25, interval("(0, 1)"), "α of the focal loss: the weight of a positive label."
    ),
    "loss.focal_gamma": Key(
        2.0, interval("[0, 100]"), "γ of the focal loss: how little an easy label counts."
    ),
    "loss.temperature": Key(0.5, interval("(0, 1000]"), "Temperature of NT-Xent."),
    "loss.mask_same_patient": Key(
        True, anything(), "Another image of the same patient is no negative in NT-Xent."
    ),
    "loss.box_weight": Key(
        0.0,
        interval("[0, 1e6]"),
        "w of the box guidance, by which training boxes pull the map (B and C); 0 in the paper's configuration.",
    ),
    "loss.turned_box": Key(
        "exact",
        one_of("exact", "hull"),
        "What guides the map where augmentation has turned a training box. exact: the turned box. hull: the upright "
        "box around it, which is larger.",
        before="hull",
    ),
    "loss.nt_xent_weight": Key(
        1.0,
        interval("[0, 1e6]"),
        "A factor of NT-Xent, beside 1 − λ. 0: a control whose step does all that NT-Xent needs, without learning from "
        "it.",
        before=1.0,
    ),
    "cam.center": Key(
        "none", one_of("none", "mean"), "mean: each finding's mean map is subtracted from its maps."
    ),
    "cam.relu": Key(
        True, anything(), "Negative values of a map become 0 before it is scaled to [0, 1]."
    ),
    "cam.threshold": Key(
        0.5, interval("[0, 1)"), "A CAM region is where the map, scaled to [0, 1], is above this."
    ),
    "cam.stage": Key(
        4,
        one_of(3, 4),
        "The encoder stage whose output Grad-CAM uses; 4 is the last, 3 has a grid twice as fine if the output stride "
        "is 32.",
        before=4,
    ),
    "roi.source": Key(
        "cam",
        one_of("cam", "random", "whole"),
        "The region of an image: from its CAM, or a control.",
    ),
    "roi.shape": Key(
        "mask",
        one_of("mask", "box"),
        "A CAM region is the mask itself, or the box around it.",
        before="mask",
    ),
    "roi.truth_boxes": Key(
        True,
        anything(),
        "The region of a training image with boxes is their union, also under whole, but not under random.",
    ),
    "feedback.lag": Key(
        8,
        interval("[-1, 1000000]"),
        "Steps until a radiomics result is used; 0: synchronous, as in the paper; −1: one epoch.",
    ),
    "feedback.workers": Key(
        0,
        interval("[0, 1024]"),
        "Radiomics processes; 0: the number of cores minus one.",
        free=True,
    ),
    "feedback.late": Key(
        "wait",
        one_of("wait", "drop"),
        "If a result has not arrived after the lag: wait for it, or continue without it.",
    ),
    "feedback.timeout_s": Key(
        60.0,
        interval("[0.1, 86400]", "seconds"),
        "Seconds after which the radiomics of a region count as failed.",
        free=True,
    ),
    "radiomics.backend": Key(
        "pyradiomics",
        one_of("pyradiomics", "jax"),
        "pyradiomics: in processes beside the step, used feedback.lag steps later. jax: inside the step.",
    ),
    "radiomics.bin_width": Key(
        25.0, interval("(0, 1000]"), "Width of a bin of grey levels, in grey levels of 0 … 255."
    ),
    "radiomics.families": Key(
        ",".join(FAMILIES),
        some_of(FAMILIES),
        "The families of features that the radiomics encoder sees; all are measured anyway.",
        before="shape2D,firstorder,glcm,glrlm,glszm,gldm,ngtdm",
    ),
    "fusion.kind": Key(
        "none",
        one_of("none", "radiomics", "image", "both"),
        "Ridge regressions that the test adds to the network's scores: on the radiomics of a grid's cells, on the "
        "run's starting image features (the control), or both. The network's own numbers stay.",
        before="none",
        free=True,
    ),
    "fusion.grid": Key(
        4,
        interval("[1, 16]"),
        "Cells along one side of the grid whose radiomics are fused.",
        before=4,
        free=True,
    ),
    "parallel.mode": Key(
        "shard_map", one_of("shard_map", "pmap"), "How jax runs the same step on all devices."
    ),
    "eval.batch_size": Key(
        64, interval("[1, 65536]"), "Images per step of validation and test, over all devices."
    ),
    "eval.flip": Key(
        False,
        anything(),
        "Logits and heat maps are the mean over an image and its mirror image, in validation, test and prediction.",
        before=False,
    ),
    "eval.bootstrap": Key(
        2000, interval("[1, 100000]"), "Resamples of the patients for each 95 % interval."
    ),
    "eval.report_images": Key(
        400,
        interval("[0, 1000000]"),
        "Test images whose regions report.html measures; 0: none.",
        before=0,
        free=True,
    ),
    "eval.pixel_probe": Key(
        False, anything(), "Also score a logistic probe on 16×16 pixels, a simple baseline."
    ),
    "profile.steps": Key(
        (0, 0),
        Allowed("(first, end), the trace ending before step end, or (0, 0) for none", _is_trace),
        "A jax.profiler trace of these steps, in WORKDIR/profile: 10,12 for the steps 10 and 11.",
        free=True,
    ),
}


def default() -> ConfigDict:
    """All keys with their defaults: the paper's values, as far as the paper gives them."""
    config = ConfigDict()
    for name, key in KEYS.items():
        group, _, leaf = name.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        # A key whose values are of two types is an object; the flag then reads 8 as a number and all as text.
        value = FieldReference(key.default, field_type=object) if key.text_too else key.default
        (config[group] if group else config)[leaf] = value
    return config.lock()


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every key."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Dotted key → value, with tuples as lists; config.json holds this, and a resumption compares it."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in leaves(config)
    }


FREE_KEYS = tuple(name for name, key in KEYS.items() if key.free)
