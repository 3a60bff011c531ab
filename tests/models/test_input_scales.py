from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from kacl_jax import config as config_keys
from kacl_jax.models.input_scales import INPUT_SCALES
from kacl_jax.train import network

GREY = jnp.float32([[[0, 127, 255]]])


def test_lite_is_x_less_127_over_128() -> None:
    expected = np.repeat(np.float32([-127 / 128, 0, 1])[:, None], 3, axis=1)
    np.testing.assert_allclose(INPUT_SCALES["lite"].apply(GREY)[0, 0], expected, atol=1e-6)


def test_imagenet_is_torchvisions_normalisation_of_a_grey_image() -> None:
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (np.array([0, 127, 255])[:, None] / 255 - mean) / std
    np.testing.assert_allclose(INPUT_SCALES["imagenet"].apply(GREY)[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "name, channels, ends",
    [("xrv", 1, (-1024, 1024)), ("unit", 3, (0, 1)), ("grey", 1, (-0.449 / 0.226, 0.551 / 0.226))],
)
def test_black_and_white_are_the_ends_of_a_scale(
    name: str, channels: int, ends: tuple[float, float]
) -> None:
    scaled = INPUT_SCALES[name].apply(GREY)[0, 0]
    np.testing.assert_allclose(
        scaled[::2], np.repeat(np.float32(ends)[:, None], channels, 1), rtol=1e-6
    )


@pytest.mark.parametrize(
    "encoder, named, expected",
    [
        ("efficientnet_lite0", "auto", "lite"),
        ("efficientnet_lite0", "imagenet", "imagenet"),
        ("resnet50", "auto", "imagenet"),
        ("resnet18", "lite", "lite"),
    ],
)
def test_auto_is_the_scale_of_the_encoders_published_weights(
    encoder: str, named: str, expected: str
) -> None:
    c = config_keys.default()
    c.model.encoder, c.model.input = encoder, named
    programs = network.programs(c, 10, network.region_rule(c), 8)
    assert programs.input_scale == INPUT_SCALES[expected] == programs.forward_pass.input_scale
