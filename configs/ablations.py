"""Does the feedback loop help, and which part of it? One arm per question; an arm sets a few config keys.

    python -m kacl_jax.sweep --config=configs/ablations.py --config.data.root=/path/to/nih --workdir=runs/ablations

Add --dry_run to list the points first. If you stop it, run it again to resume. It writes the table sweep.md in the
workdir again after each point. Our results on a part of ChestX-ray14 are in docs/experiment.md.

    configs/ablations.py           every arm below; the main ones first, over all folds with seed 0
    configs/ablations.py:main      the eight main arms, three seeds
    configs/ablations.py:384, :512 the eight main arms at that image size, one seed
    configs/ablations.py:phantom   the eight main arms on the embedded demo set, where the truth is known
    configs/ablations.py:batchnorm what a second view in BatchNorm does without a contrastive loss: three arms

Used directly (`kacl_jax.main --config=configs/ablations.py`) it is the config of the arm kacl: protocol C as in
configs/nih.py:pooled, no boxes, and the paper's rule that turns a map into a region. Box-guided arms use another rule,
which a pilot chose with truth boxes; their rows in the table say with how many.
"""

import runpy
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from kacl_jax.runtime.errors import UserError
from kacl_jax.sweep import hyper
from kacl_jax.sweep.hyper import Arm, Sweep

FOCAL = {"loss.focal_weight": 1.0}
RANDOM = {"roi.source": "random"}
TRUTH = {"data.box_share": 1.0, "roi.truth_boxes": True}
GUIDED = {"data.box_share": 1.0, "loss.box_weight": 0.1}
# The rule of the guided arms that turns a map into a region, and the number of truth boxes a pilot chose it on.
PILOT_RULE = {
    "nih": ({"cam.relu": False, "cam.threshold": 0.8}, 119),
    "phantom": ({"cam.relu": True, "cam.threshold": 0.7}, 66),
}


def get_config(variant: str = "all") -> ConfigDict:
    if variant == "phantom":
        c = _config_file("demo.py")
        c.augment = _config_file(
            "nih.py", "pooled"
        ).augment  # the arm simclr needs two different views
        c.eval.pixel_probe = False
    elif variant in ("all", "main", "batchnorm", "384", "512"):
        c = _config_file("nih.py", "pooled")
        c.model.encoder = "efficientnet_lite0"
        c.model.pretrained = "package"
        c.data.image_size = int(variant) if variant.isdigit() else 128
        c.train.epochs = 8
    else:
        raise UserError(
            f"configs/ablations.py has no variant {variant!r}; it has all, main, batchnorm, 384, 512, phantom"
        )
    c.data.box_share = 0.0
    c.loss.box_weight = 0.0
    c.cam.center = "none"
    c.cam.relu = True
    c.cam.threshold = 0.5
    return c


def get_hyper(variant: str = "all") -> Sweep:
    if variant == "batchnorm":
        arms = batch_norm_arms()
        return Sweep(arms, hyper.points(arms, folds=range(5), seeds=[0, 1, 2]))
    data = "phantom" if variant == "phantom" else "nih"
    weak, guided = weak_arms(), box_arms(data)
    main, folds = weak + guided, range(5)
    points = hyper.points(weak, folds=folds, seeds=[0]) + hyper.points(
        guided, folds=folds, seeds=[0]
    )
    if variant in ("384", "512"):
        return Sweep(main, points)
    points += hyper.points(main, folds=folds, seeds=[1, 2])
    if variant in ("main", "phantom"):
        return Sweep(main, points)
    ablations = [
        replace(arm, exploratory=True)
        for arm in weak_ablations() + box_ablations(data) + box_shares(data)
    ]
    return Sweep(main + ablations, points + hyper.points(ablations, folds=folds, seeds=[0, 1, 2]))


def weak_arms() -> list[Arm]:
    """No boxes in training, and none in the choice of the rule that turns a map into a region."""
    return [
        Arm("focal", FOCAL),
        Arm("kacl", against=("focal", "kacl_random_roi")),
        Arm("kacl_random_roi", RANDOM, against=("focal",)),
        Arm("simclr", {"loss.positive": "augmented"}, against=("focal", "kacl")),
    ]


def box_arms(data: str) -> list[Arm]:
    """Truth boxes of training patients guide the map, or only replace the region that radiomics measures."""
    guided, chosen_on = _guided_keys(data)
    return [
        Arm("guided_focal", {**guided, **FOCAL}, (), chosen_on),
        Arm("guided_kacl", guided, ("guided_focal", "guided_kacl_random_roi"), chosen_on),
        Arm("guided_kacl_random_roi", {**guided, **RANDOM}, ("guided_focal",), chosen_on),
        Arm("kacl_truth_roi", TRUTH, against=("kacl",)),
    ]


def weak_ablations() -> list[Arm]:
    """Each arm differs from kacl in one key."""
    keys = {
        "kacl_whole_image": {"roi.source": "whole"},
        "kacl_box_roi": {"roi.shape": "box"},
        "kacl_centred": {"cam.center": "mean"},
        "kacl_shape": {"radiomics.families": "shape2D"},
        "kacl_firstorder": {"radiomics.families": "firstorder"},
        "kacl_lambda_.5": {"loss.focal_weight": 0.5},
        "kacl_lambda_.9": {"loss.focal_weight": 0.9},
        "kacl_temperature_.1": {"loss.temperature": 0.1},
        "kacl_lag0": {"feedback.lag": 0},
        "kacl_epoch_lag": {"feedback.lag": -1},
        "kacl_stage3": {"cam.stage": 3},
    }
    return [Arm(name, overrides, against=("kacl",)) for name, overrides in keys.items()]


def batch_norm_arms() -> list[Arm]:
    """focal_two_views is SimCLR's step without its loss: two views of each image go through every BatchNorm.

    A sweep of its own: in the others each planned difference would change Holm's correction.
    """
    two_views = {"loss.positive": "augmented"}
    return [
        Arm("focal", FOCAL),
        Arm("focal_two_views", {**two_views, "loss.nt_xent_weight": 0.0}, against=("focal",)),
        Arm("simclr", two_views, against=("focal", "focal_two_views")),
    ]


def box_ablations(data: str) -> list[Arm]:
    """Arms that earlier results suggested: box guidance with SimCLR, which localizes best without boxes; Grad-CAM's
    region in every image, also in annotated ones; weaker guidance by a fifth of the boxes.
    """
    guided, chosen_on = _guided_keys(data)
    # The guidance loss is a mean over boxes. With a fifth of the boxes, a fifth of the weight keeps each box's weight.
    share20 = {**guided, "data.box_share": 0.2, "loss.box_weight": 0.02}
    focal = "guided_focal_share20_weight.02"
    return [
        Arm(
            "guided_kacl_cam_roi",
            {**guided, "roi.truth_boxes": False},
            ("guided_kacl", "guided_kacl_random_roi"),
            chosen_on,
        ),
        Arm(
            "guided_simclr",
            {**guided, "loss.positive": "augmented"},
            ("guided_focal", "guided_kacl"),
            chosen_on,
        ),
        Arm(focal, {**share20, **FOCAL}, ("guided_focal_share20",), chosen_on),
        Arm("guided_kacl_share20_weight.02", share20, (focal,), chosen_on),
    ]


def box_shares(data: str) -> list[Arm]:
    """How much a part of the training boxes helps, and whether the loop extends it to images without a box."""
    guided, chosen_on = _guided_keys(data)

    def arms(share: float) -> list[Arm]:
        # The patients of a share include those of every smaller share.
        share_key, suffix = {"data.box_share": share}, f"_share{100 * share:02.0f}"
        focal, random = f"guided_focal{suffix}", f"guided_kacl_random_roi{suffix}"
        return [
            Arm(f"kacl_truth_roi{suffix}", {**TRUTH, **share_key}, ("kacl",)),
            Arm(focal, {**guided, **share_key, **FOCAL}, ("guided_focal",), chosen_on),
            Arm(f"guided_kacl{suffix}", {**guided, **share_key}, (focal, random), chosen_on),
            Arm(random, {**guided, **share_key, **RANDOM}, (focal,), chosen_on),
        ]

    return [arm for share in (0.05, 0.2, 0.5) for arm in arms(share)]


def _guided_keys(data: str) -> tuple[dict[str, object], int]:
    """The config keys of a guided arm, and the number of truth boxes its rule was chosen on."""
    rule, chosen_on = PILOT_RULE[data]
    return {**GUIDED, **rule}, chosen_on


def _config_file(name: str, *variant: str) -> ConfigDict:
    config: ConfigDict = runpy.run_path(str(Path(__file__).with_name(name)))["get_config"](*variant)
    return config
