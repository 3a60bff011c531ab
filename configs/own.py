"""Your own X-rays in the simple layout: images.csv, annotations.csv and images/ (docs/data.md).

    python -m kacl_jax.main --config=configs/own.py --config.data.root=/path/to/own

    configs/own.py          your set has boxes: four fifths of the patients train, with their boxes as regions.
    configs/own.py:labels   it has none: localization is not scored.

`python -m kacl_jax.convert` writes the layout from tables, COCO or CheXpert. Check it first with --mode=verify. The
settings are those of configs/nih.py:pooled with smaller batches and more epochs. BatchNorm keeps its statistics, and
the classifier starts from a ridge regression, because both help a small set (docs/recipe.md). The run looks for every
finding of images.csv. How long it takes and how good its result is depends on your data: 40 images at 128 px took five
minutes on two busy CPU cores.
"""

from ml_collections import ConfigDict

from kacl_jax import config as defaults
from kacl_jax.runtime.errors import UserError


def get_config(variant: str = "boxes") -> ConfigDict:
    if variant not in ("boxes", "labels"):
        raise UserError(f"configs/own.py has no variant {variant!r}; it has boxes, labels")
    c = defaults.default()
    c.protocol = "C"
    c.data.findings = "all"
    c.data.box_share = 1.0 if variant == "boxes" else 0.0
    c.augment.rotate = 7.0
    c.augment.shift = 0.05
    c.augment.scale = 0.1
    c.augment.contrast = 0.2
    c.model.output_stride = 16
    c.train.epochs = 20
    c.train.batch_size = 16
    c.train.learning_rate = 3e-4
    c.train.schedule = "one_cycle"
    c.train.head_start = "ridge"
    c.train.frozen_statistics = True
    c.feedback.lag = 4  # steps; a small set has few
    return c
