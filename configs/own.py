"""Your own X-rays in the simple layout: images.csv, annotations.csv and images/ (docs/data.md).

    python -m kacl_jax.main --config=configs/own.py --config.data.root=/path/to/own

`python -m kacl_jax.convert` writes the layout from tables, COCO or CheXpert. Check it first with --mode=verify. The
settings are those of configs/nih.py:pooled, which are made for small sets: patient folds, augmentation, ten epochs.
The run looks for every finding of images.csv. It takes about 15 minutes on one CPU core for 1,800 images at 128 px
(docs/results.md); how good its result is depends on your data.
"""

from ml_collections import ConfigDict

from configs import nih


def get_config() -> ConfigDict:
    c = nih.get_config("pooled")
    c.data.findings = "all"
    return c
