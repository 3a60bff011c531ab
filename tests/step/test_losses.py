"""The losses against optax, closed forms and finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kacl_jax.step import losses
from kacl_jax.step.box_area import union_area


def unit(random: np.random.Generator, *shape: int) -> jax.Array:
    z = jnp.float32(random.normal(size=shape))
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


@pytest.fixture
def views() -> tuple[jax.Array, jax.Array]:
    random = np.random.default_rng(0)
    return unit(random, 6, 16), unit(random, 6, 16)


EVERYONE = jnp.ones(6, bool)
STRANGERS = jnp.arange(6)


def nt_xent(image: jax.Array, radiomics: jax.Array, **changed: object) -> jax.Array:
    arguments = {
        "ready": EVERYONE,
        "patient_id": STRANGERS,
        "temperature": 0.5,
        "mask_same_patient": True,
        **changed,
    }
    loss, weight = losses.nt_xent(image, radiomics, **arguments)  # type: ignore[arg-type]
    return loss.sum() / weight.sum()


# ---- focal loss ------------------------------------------------------------------------------------


def test_focal_loss_equals_optax_per_element() -> None:
    random = np.random.default_rng(0)
    logits = jnp.float32(random.normal(scale=4, size=(7, 8)))
    labels = jnp.float32(random.random((7, 8)) < 0.3)
    ours = losses.focal_loss(logits, labels, alpha=0.25, gamma=2.0)
    theirs = optax.losses.sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=2.0)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)


def test_focal_loss_without_focus_is_half_of_cross_entropy() -> None:
    logits, labels = jnp.float32([[-3, 0.5, 8]]), jnp.float32([[1, 0, 1]])
    ours = losses.focal_loss(logits, labels, alpha=0.5, gamma=0.0)
    np.testing.assert_allclose(
        ours, 0.5 * optax.sigmoid_binary_cross_entropy(logits, labels), rtol=1e-6
    )


def test_focal_loss_focuses_on_each_element_not_on_the_batch_mean() -> None:
    """A batch of one hard and many easy elements: each keeps its own factor."""
    logits = jnp.float32([[-4.0, 4.0, 4.0, 4.0]])
    labels = jnp.ones((1, 4))
    together = losses.focal_loss(logits, labels, alpha=0.25, gamma=2.0)
    alone = [
        losses.focal_loss(logits[:, i : i + 1], labels[:, :1], alpha=0.25, gamma=2.0)
        for i in range(4)
    ]
    np.testing.assert_array_equal(together, np.concatenate(alone, 1))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradient_is_finite_at_saturated_logits(gamma: float) -> None:
    logits = jnp.array([[-200.0, 200.0, 0.0]])
    labels = jnp.array([[0.0, 1.0, 1.0]])
    gradient = jax.grad(lambda x: losses.focal_loss(x, labels, alpha=0.25, gamma=gamma).sum())(
        logits
    )
    assert np.isfinite(gradient).all()


# ---- NT-Xent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5])
def test_nt_xent_equals_optax(views: tuple[jax.Array, jax.Array], temperature: float) -> None:
    both = np.concatenate(views)
    labels = np.tile(np.arange(6), 2)
    theirs = optax.losses.ntxent(both, labels, temperature=temperature)
    np.testing.assert_allclose(nt_xent(*views, temperature=temperature), theirs, rtol=1e-5)


def test_nt_xent_gradient_equals_finite_differences(views: tuple[jax.Array, jax.Array]) -> None:
    ready = jnp.array([1, 1, 0, 1, 1, 1], bool)
    patients = jnp.array([0, 1, 2, 1, 4, 5])

    def loss(image: jax.Array) -> jax.Array:
        return nt_xent(image, views[1], ready=ready, patient_id=patients)

    random = np.random.default_rng(1)
    direction = random.normal(size=views[0].shape).astype(np.float32)
    step = 1e-2
    numeric = (loss(views[0] + step * direction) - loss(views[0] - step * direction)) / (2 * step)
    analytic = (jax.grad(loss)(jnp.array(views[0])) * direction).sum()
    np.testing.assert_allclose(analytic, numeric, rtol=2e-3)


def test_a_row_that_is_not_ready_is_neither_positive_nor_negative(
    views: tuple[jax.Array, jax.Array],
) -> None:
    ready = jnp.array([1, 1, 0, 1, 0, 1], bool)
    with_gaps = nt_xent(*views, ready=ready)
    without_them = nt_xent(
        views[0][ready], views[1][ready], ready=ready[ready], patient_id=STRANGERS[ready]
    )
    np.testing.assert_allclose(with_gaps, without_them, rtol=1e-6)


def test_other_images_of_the_patient_leave_the_denominator_but_the_positive_stays(
    views: tuple[jax.Array, jax.Array],
) -> None:
    patients = jnp.array([0, 0, 2, 3, 4, 5])
    image, radiomics = views
    both = np.concatenate(views) @ np.concatenate(views).T / 0.5
    expected = []
    for anchor in range(12):
        row = anchor % 6
        positive = (anchor + 6) % 12
        allowed = [
            j
            for j in range(12)
            if j != anchor and (j == positive or patients[j % 6] != patients[row])
        ]
        expected.append(np.log(np.exp(both[anchor, allowed]).sum()) - both[anchor, positive])
    np.testing.assert_allclose(
        nt_xent(image, radiomics, patient_id=patients), np.mean(expected), rtol=1e-5
    )
    unmasked = nt_xent(image, radiomics, patient_id=patients, mask_same_patient=False)
    np.testing.assert_allclose(unmasked, nt_xent(image, radiomics), rtol=1e-6)


def test_no_ready_row_at_all_is_a_finite_zero_with_a_finite_gradient(
    views: tuple[jax.Array, jax.Array],
) -> None:
    nobody = jnp.zeros(6, bool)

    def total(image: jax.Array) -> jax.Array:
        loss, _ = losses.nt_xent(
            image,
            views[1],
            ready=nobody,
            patient_id=STRANGERS,
            temperature=0.5,
            mask_same_patient=True,
        )
        return loss.sum()

    value, gradient = jax.value_and_grad(total)(jnp.array(views[0]))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


# ---- box guidance ----------------------------------------------------------------------------------


BOX = (0.1, 0.3, 0.55, 0.8)


@pytest.mark.parametrize(
    "boxes",
    [
        [BOX],
        [BOX, BOX],
        [BOX, (0.6, 0.05, 0.95, 0.2), (0.0, 0.0, 0.0, 0.0)],  # disjoint, and an unused place
        [BOX, (0.4, 0.6, 0.9, 1.0), (0.3, 0.4, 0.5, 0.9)],  # they overlap
        [BOX, (0.2, 0.4, 0.3, 0.5)],  # one within the other
    ],
    ids=["one", "equal", "disjoint", "overlapping", "nested"],
)
def test_box_guidance_is_the_cross_entropy_of_the_unions_share_of_each_cell(
    boxes: list[tuple[float, ...]],
) -> None:
    random = np.random.default_rng(0)
    maps = jnp.float32(random.normal(size=(1, 1, 4, 5)))
    # Brute force: the share of each cell from a fine grid of points.
    fine = 400
    y, x = (np.mgrid[:fine, :fine] + 0.5) / fine
    inside = np.any(
        [(x >= x0) & (x < x1) & (y >= y0) & (y < y1) for x0, y0, x1, y1 in boxes], axis=0
    )
    share = inside.reshape(4, fine // 4, 5, fine // 5).sum((1, 3)) / inside.sum()
    log_p = maps[0, 0] - np.log(np.exp(maps[0, 0]).sum())
    loss, weight = losses.box_guidance(
        maps, union_area(jnp.float32(boxes)[None, None], 4, 5), jnp.array([[True]])
    )
    assert weight[0, 0] == 1
    np.testing.assert_allclose(loss[0, 0], -(share * log_p).sum(), rtol=1e-4)


def test_box_guidance_pulls_the_map_onto_the_box() -> None:
    maps = jnp.zeros((1, 1, 4, 4))
    area = union_area(jnp.float32([[[[0.5, 0.5, 1.0, 1.0]]]]), 4, 4)

    def loss(m: jax.Array) -> jax.Array:
        return losses.box_guidance(m, area, jnp.array([[True]]))[0].sum()

    for _ in range(200):
        maps = maps - 1.0 * jax.grad(loss)(maps)
    heat = jax.nn.softmax(maps.reshape(-1)).reshape(4, 4)
    assert heat[2:, 2:].sum() > 0.95


def test_box_guidance_ignores_pairs_without_a_box() -> None:
    maps = jnp.float32(np.random.default_rng(0).normal(size=(2, 3, 4, 4)))
    area = union_area(jnp.zeros((2, 3, 2, 4)), 4, 4)
    loss, weight = losses.box_guidance(maps, area, jnp.zeros((2, 3), bool))
    assert loss.sum() == 0
    assert weight.sum() == 0
    gradient = jax.grad(lambda m: losses.box_guidance(m, area, jnp.ones((2, 3), bool))[0].sum())(
        maps
    )
    np.testing.assert_array_equal(gradient, 0)
