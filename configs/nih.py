"""NIH ChestX-ray14, three protocols and a strong recipe (DECISIONS.md, "Protocols").

    python -m kacl_jax.main --config=configs/nih.py --config.data.root=/path/to/nih

The root is a folder in NIH's layout: images/ (or images_001 … images_012), Data_Entry_2017.csv,
BBox_List_2017.csv, train_val_list.txt, test_list.txt. Check it first with --mode=verify.

    configs/nih.py          A, weak: official lists, no box in training; all 984 boxes are scored.
    configs/nih.py:semi     B, the paper's semi-supervised setting: four folds of the patients with boxes train, with
                            their boxes; the fifth fold is scored.
    configs/nih.py:pooled   C: patient folds over all images of the root; for a part of NIH or your own X-rays.
    configs/nih.py:strong   A, with the recipe of networks that rank high on the official list: docs/recipe.md.

DECISIONS.md says which settings are the paper's and which are our choice. Nobody has trained on all of NIH with it yet,
so that result and time are unknown. docs/results.md has the results on 1.6 % of it: :pooled takes 15 minutes on one CPU
core for 8 epochs at 128 px.
"""

from ml_collections import ConfigDict

from kacl_jax import config as defaults
from kacl_jax.runtime.errors import UserError


def get_config(variant: str = "weak") -> ConfigDict:
    c = defaults.default()
    if variant == "weak":
        return c
    if variant == "strong":
        _set_strong_recipe(c)
        return c
    c.data.box_share = 1.0
    if variant == "semi":
        c.protocol = "B"
    elif variant == "pooled":
        # For small sets: augmentation, a finer grid, smaller batches, a learning rate that decreases.
        c.protocol = "C"
        _set_small_changes(c)
        c.model.output_stride = 16
        c.train.epochs = 10
        c.train.batch_size = 32
        c.train.learning_rate = 3e-4
        c.train.schedule = "one_cycle"
    else:
        raise UserError(
            f"configs/nih.py has no variant {variant!r}; it has weak, semi, pooled, strong"
        )
    return c


def _set_strong_recipe(c: ConfigDict) -> None:
    """docs/recipe.md says where each choice comes from, and what it brought on 1.6 % of NIH."""
    # As in published recipes.
    c.data.findings = 14
    c.model.encoder = "densenet121"
    _set_small_changes(c)
    c.augment.flip = 0.5
    c.train.schedule = "one_cycle"
    c.train.rate_warmup = 0.07
    c.train.ema = 0.999
    c.eval.flip = True
    # Ours.
    c.train.head_start = "ridge"
    c.train.frozen_statistics = True


def _set_small_changes(c: ConfigDict) -> None:
    """Augmentation that leaves an X-ray plausible."""
    c.augment.rotate = 7.0
    c.augment.shift = 0.05
    c.augment.scale = 0.1
    c.augment.contrast = 0.2
