"""What an accelerator's default product, of 8 to 11 bits, must not round, as the lowered programs say it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from kacl_jax.models.kacl import KACL
from kacl_jax.models.layers import Conv
from kacl_jax.step import augment, gradcam, losses

IMAGES, AFFINE, BOXES = jnp.zeros((2, 8, 8)), jnp.zeros((2, 2, 3)), jnp.zeros((2, 3, 1, 4))
MAP, Z, READY = jnp.zeros((2, 4, 4, 5)), jnp.zeros((2, 6)), jnp.ones(2, bool)


def classify(feature_map: jax.Array) -> jax.Array:
    return feature_map.mean((1, 2))[:, :3]


def nt_xent(z: jax.Array) -> Any:
    return losses.nt_xent(
        z, z, ready=READY, patient_id=jnp.arange(2), temperature=0.5, mask_same_patient=True
    )


def heads(feature_map: jax.Array) -> Any:
    run = functools.partial(KACL("resnet18", 3).apply, zeros())
    return (
        run(feature_map, method="classify"),
        run(feature_map, method="project_image"),
        run(jnp.zeros((2, 102)), READY, False, method="project_radiomics"),
    )


@functools.cache
def zeros() -> Any:
    """Zeros in the shapes of a model: nothing is computed with them."""
    model = KACL("resnet18", 3)
    shapes = jax.eval_shape(
        lambda: model.init(
            jax.random.key(0), jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 102)), READY[:1], False
        )
    )
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.mark.parametrize(
    "function, arguments, products",
    [
        (augment.warp, (IMAGES, AFFINE), 1),
        (augment.invert, (AFFINE,), 1),
        (augment.warp_boxes, (BOXES, AFFINE), 2),
        (nt_xent, (Z,), 1),
        (functools.partial(gradcam.class_maps, classify, n_findings=3), (MAP,), 1),
        (functools.partial(gradcam.finding_map, classify), (MAP, jnp.zeros(2, jnp.int32)), 1),
        (heads, (jnp.zeros((2, 2, 2, 512)),), 7),
    ],
    ids=["warp", "invert", "warp_boxes", "nt_xent", "class_maps", "finding_map", "heads"],
)
def test_every_product_is_of_full_precision(
    function: Callable[..., Any], arguments: tuple[Any, ...], products: int
) -> None:
    text = jax.jit(function).lower(*arguments).as_text()
    found = re.findall(r"dot_general.*", text)
    assert len(found) >= products, text
    assert all("HIGHEST" in product for product in found), found


def test_a_strided_pointwise_convolution_reads_an_array_of_its_own() -> None:
    layer = Conv(4, 1, 2, 0, jnp.float32)
    variables = jax.eval_shape(lambda: layer.init(jax.random.key(0), MAP))
    text = jax.jit(layer.apply).lower(variables, MAP).as_text()
    assert re.search(r"slice.*\n.*optimization_barrier.*\n(.*\n)*.*dot_general", text), text
