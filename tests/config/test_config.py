"""The check of the config: every rule refuses what it should, all at once, in words."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from absl.flags import FlagValues
from ml_collections import ConfigDict, config_flags

from kacl_jax import config as config_keys
from kacl_jax.config import allowed, command_line, keys
from kacl_jax.runtime.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def sound() -> ConfigDict:
    config = config_keys.default()
    config.data.root = "somewhere"
    return config


def changed(**values: Any) -> ConfigDict:
    config = sound()
    config.update_from_flattened_dict(values)
    return config


BROKEN = [
    ("protocol", "D"),
    ("fold", 5),
    ("fold", -1),
    ("folds", 1),
    ("seed", -1),
    ("data.root", ""),
    ("data.image_size", 100),
    ("data.findings", 9),
    ("data.on_error", "ignore"),
    ("data.uncertain", "maybe"),
    ("data.findings", "Mass,,Nodule"),
    ("data.max_megapixels", 0),
    ("data.box_share", 0.5),
    ("data.box_share", 1.5),
    ("data.val_fraction", 0.0),
    ("data.val_fraction", 0.6),
    ("data.val_fraction", math.nan),
    ("data.split_version", 3),
    ("data.shards", 0),
    ("augment.rotate", 90.0),
    ("model.encoder", "vgg"),
    ("model.input", "xray"),
    ("model.output_stride", 8),
    ("model.dtype", "float16"),
    ("train.batch_size", 30),
    ("train.batch_size", 4),
    ("train.warmup_epochs", 20),
    ("train.learning_rate", 0.0),
    ("train.learning_rate", math.inf),
    ("train.learning_rate", math.nan),
    ("train.schedule", "linear"),
    ("train.rate_warmup", 0.0),
    ("train.head_start", "zero"),
    ("train.head_rate", 0.0),
    ("train.ema", 1.0),
    ("augment.flip", 1.5),
    ("loss.focal_weight", 1.5),
    ("loss.temperature", 0.0),
    ("loss.box_weight", 0.1),
    ("loss.turned_box", "mask"),
    ("loss.nt_xent_weight", -1.0),
    ("loss.positive", "rotated"),
    ("loss.positive", "augmented"),
    ("cam.center", "median"),
    ("cam.stage", 2),
    ("cam.threshold", 1.0),
    ("roi.source", "box"),
    ("roi.shape", "hull"),
    ("feedback.lag", -2),
    ("feedback.late", "skip"),
    ("radiomics.backend", "cuda"),
    ("fusion.kind", "shape"),
    ("fusion.grid", 0),
    ("radiomics.bin_width", 0.0),
    ("radiomics.families", ""),
    ("radiomics.families", "shape2D,texture"),
    ("radiomics.families", "shape2D,"),
    ("parallel.mode", "jit"),
    ("eval.batch_size", 30),
    ("profile.steps", (5, 2)),
    ("profile.steps", (4, 4)),
    ("profile.steps", (1, 2, 3)),
    ("log_every", 0),
    ("loss.focal_weight", 0.0),
    ("data.threads", 0),
    ("augment.shift", 0.6),
    ("augment.scale", -0.1),
    ("augment.contrast", 1.0),
    ("model.projection_dim", 1),
    ("train.epochs", 0),
    ("train.batch_size", 0),
    ("train.weight_decay", -1e-5),
    ("train.warmup_epochs", -1),
    ("train.checkpoint_every", -1),
    ("loss.focal_alpha", 1.0),
    ("loss.focal_gamma", -1.0),
    ("feedback.workers", -1),
    ("feedback.timeout_s", 0.0),
    ("feedback.timeout_s", 1e-9),
    ("feedback.timeout_s", 1e300),
    ("feedback.workers", 100_000),
    ("seed", 10**23),
    ("data.threads", 1_000_000),
    ("data.image_size", 1_000_032),
    ("eval.bootstrap", 10**9),
    ("eval.batch_size", 0),
    ("eval.bootstrap", 0),
    ("eval.report_images", -1),
]


@pytest.mark.parametrize("key, value", BROKEN)
def test_a_value_that_cannot_run_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"config.{key}|protocol A|box_weight"):
        config_keys.check(changed(**{key: value}), n_devices=4)


def test_a_validation_part_larger_than_the_fold_it_comes_from_is_refused() -> None:
    changes = {"protocol": "C", "data.val_fraction": 0.26}
    with pytest.raises(UserError, match=r"val_fraction is 0\.26; .*folds=5 .* at most 0\.25"):
        config_keys.check(changed(**changes), n_devices=4)
    for fits in ({"data.val_fraction": 0.25}, {"folds": 3}, {"data.split_version": 1}):
        config_keys.check(changed(**changes | fits), n_devices=4)


def test_the_default_is_sound() -> None:
    config_keys.check(sound(), n_devices=4)


def test_all_problems_are_told_at_once() -> None:
    config = changed(**{"protocol": "D", "train.learning_rate": -1.0, "cam.threshold": 2.0})
    with pytest.raises(UserError) as caught:
        config_keys.check(config, n_devices=1)
    for key in ("protocol", "train.learning_rate", "cam.threshold"):
        assert f"config.{key}" in str(caught.value)


@pytest.mark.parametrize(
    "shards, batch_size, error_text",
    [
        (1, 64, "a multiple of the 2 processes: use --config.data.shards=2"),
        (5, 60, "a multiple of the 2 processes: use --config.data.shards=4"),
        (6, 64, "train.batch_size is 64; it must be a multiple of the 6"),
    ],
)
def test_shards_fit_the_processes_and_the_batch(
    shards: int, batch_size: int, error_text: str
) -> None:
    config = changed(**{"data.shards": shards, "train.batch_size": batch_size})
    with pytest.raises(UserError, match=error_text):
        config_keys.check(config, n_devices=4, n_processes=2)
    config_keys.check(changed(**{"data.shards": 4}), n_devices=4, n_processes=2)


def test_guidance_and_centring_exclude_each_other() -> None:
    config = changed(
        **{"protocol": "C", "data.box_share": 1.0, "loss.box_weight": 0.1, "cam.center": "mean"}
    )
    with pytest.raises(UserError, match=r"cam\.center"):
        config_keys.check(config, n_devices=1)


ARMS: list[dict[str, Any]] = [
    {"loss.positive": "augmented", "augment.contrast": 0.1},
    {"loss.positive": "augmented", "loss.focal_weight": 1.0},
    {"radiomics.families": "firstorder"},
    {"radiomics.families": "ngtdm,shape2D"},
    {"roi.shape": "box"},
    {"cam.stage": 3, "cam.center": "mean"},
    {"cam.stage": 3, "radiomics.backend": "jax"},
]


@pytest.mark.parametrize("values", ARMS)
def test_the_arms_are_sound(values: dict[str, Any]) -> None:
    config_keys.check(changed(**values), n_devices=4)


def test_boxes_teach_the_last_stages_map_only() -> None:
    values = {"loss.box_weight": 0.1, "data.box_share": 1.0, "protocol": "C", "cam.stage": 3}
    with pytest.raises(UserError, match=r"cam\.stage=4"):
        config_keys.check(changed(**values), n_devices=4)


@pytest.mark.parametrize("typed", ["firstorder", "shape2D,glcm"])
def test_families_are_given_on_the_command_line_as_one_word(
    typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", f"--config.radiomics.families={typed}"])
    flags = FlagValues()
    config_flags.DEFINE_config_dict("config", sound(), flag_values=flags)
    flags(sys.argv)
    config_keys.check(flags.config, n_devices=4)
    assert flags.config.radiomics.families == typed


@pytest.mark.parametrize(
    "typed, folder",
    [("configs/nih.py", "runs/nih"), ("configs/nih.py:pooled", "runs/nih_pooled")],
)
def test_every_variant_has_a_workdir_of_its_own(
    typed: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "_WORKDIR", SimpleNamespace(value=None))
    monkeypatch.setattr(command_line, "config_name", lambda: typed)
    assert command_line.workdir() == Path(folder)


@pytest.mark.parametrize(
    "file, variant, protocol",
    [
        *(("demo", None, "C"), ("nih", None, "A"), ("nih", "semi", "B")),
        *(("nih", "pooled", "C"), ("nih", "strong", "A")),
    ],
)
def test_the_configs_are_sound(file: str, variant: str | None, protocol: str) -> None:
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant) if variant else module.get_config()
    config.data.root = config.data.root or "somewhere"
    config_keys.check(config, n_devices=4)
    assert config.protocol == protocol


def test_flatten_names_every_leaf_with_dots() -> None:
    flat = config_keys.flatten(sound())
    assert flat["loss.focal_weight"] == 0.8
    assert flat["profile.steps"] == [0, 0]
    assert set(config_keys.FREE_KEYS) <= flat.keys()


@pytest.mark.parametrize(
    "key, value, error_text",
    [
        ("train.epochs", None, "config.train.epochs is None; it must be a whole number"),
        ("train.epochs", True, "config.train.epochs is True; it must be a whole number"),
        ("cam.relu", None, "config.cam.relu is None; it must be True or False"),
        ("model.encoder", None, "config.model.encoder is None; it must be text"),
        ("profile.steps", (1.5, 2), "it must be \\(first, end\\)"),
    ],
)
def test_a_value_of_another_type_is_refused(key: str, value: Any, error_text: str) -> None:
    config = sound()
    group, _, leaf = key.partition(".")
    config[group]._fields[leaf] = value  # a config file may make such a config in other ways
    with pytest.raises(UserError, match=error_text):
        config_keys.check(config, n_devices=4)


@pytest.mark.parametrize(
    "rule, right, wrong, words",
    [
        (allowed.interval("[0, 1)"), (0, 0.5), (-0.1, 1, math.nan), "in [0, 1)"),
        (allowed.interval("(0, 0.5]"), (0.1, 0.5), (0, 0.6), "in (0, 0.5]"),
        (allowed.interval("[-1, 9]"), (-1, 9), (-2, 10, math.nan), "in [−1, 9]"),
        (allowed.one_of("a", "b"), ("a", "b"), ("c", ""), "one of 'a', 'b'"),
        (
            allowed.multiple_of(32, 64, 96),
            (64, 96),
            (32, 65, 0, 128),
            "a multiple of 32 from 64 to 96",
        ),
    ],
)
def test_a_rule_holds_for_what_its_words_say(
    rule: allowed.Allowed, right: tuple[Any, ...], wrong: tuple[Any, ...], words: str
) -> None:
    assert all(map(rule.test, right))
    assert not any(map(rule.test, wrong))
    assert rule.words == words


def test_every_rule_of_one_key_was_broken_above_and_holds_for_its_default() -> None:
    """A rule that allows everything was broken by no value."""
    broken = {key for key, _ in BROKEN}
    for name, key in keys.KEYS.items():
        assert key.rule().test(key.default), name
        wrong = [value for other, value in BROKEN if other == name]
        assert name in broken or type(key.default) is bool or name in UNLIMITED, name
        assert all(isinstance(value, type(key.default)) or key.text_too for value in wrong)


UNLIMITED = {"data.split_seed", "model.pretrained"}
