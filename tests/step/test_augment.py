"""On-device augmentation: the way back is the way back, for images, maps and boxes."""

from __future__ import annotations

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from kacl_jax.step import augment
from kacl_jax.step.box_area import turned_union_area


def keys(n: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), n)


def smooth(n: int, size: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.stack(
        [cv2.GaussianBlur(random.normal(size=(size, size)), (0, 0), 6) for _ in range(n)]
    ).astype(np.float32)


def test_inverse_brings_a_map_back_to_its_frame() -> None:
    images = smooth(4, 64)
    affine = augment.draw_affine(keys(4), rotate=12.0, shift=0.05, scale=0.1)
    there = augment.warp(jnp.array(images), affine)
    back = augment.warp(there, augment.invert(affine))
    inside = np.s_[:, 16:48, 16:48]
    error = np.abs(np.asarray(back)[inside] - images[inside]).max()
    moved = np.abs(np.asarray(there)[inside] - images[inside]).max()
    assert error < 0.1 * moved


def test_no_range_is_the_identity() -> None:
    images = jnp.array(smooth(2, 32))
    affine = augment.draw_affine(keys(2), rotate=0.0, shift=0.0, scale=0.0)
    np.testing.assert_allclose(augment.warp(images, affine), images, atol=1e-6)
    np.testing.assert_allclose(
        augment.random_contrast(keys(2), images, contrast=0.0), images, atol=1e-6
    )


def test_warp_equals_opencv() -> None:
    image = smooth(1, 48)
    affine = augment.draw_affine(keys(1), rotate=15.0, shift=0.1, scale=0.1)
    matrix = np.asarray(affine[0], np.float64)
    # The same map in pixels of cv2's corner-less convention.
    to_fraction = np.array([[1 / 48, 0, 0.5 / 48 - 0.5], [0, 1 / 48, 0.5 / 48 - 0.5], [0, 0, 1]])
    pixels = np.linalg.inv(to_fraction) @ np.vstack([matrix, [0, 0, 1]]) @ to_fraction
    theirs = cv2.warpAffine(
        image[0],
        pixels[:2],
        (48, 48),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    np.testing.assert_allclose(augment.warp(jnp.array(image), affine)[0], theirs, atol=0.02)


def test_a_box_follows_its_pixels() -> None:
    images = np.zeros((3, 128, 128), np.float32)
    images[:, 40:70, 50:90] = 1
    box = np.float32([50, 40, 90, 70]) / 128
    affine = augment.draw_affine(keys(3), rotate=8.0, shift=0.05, scale=0.1)
    there = np.asarray(augment.warp(jnp.array(images), affine)) > 0.5
    moved = np.asarray(augment.warp_boxes(jnp.tile(box, (3, 1, 1, 1)), affine))[:, 0, 0]
    for mask, found in zip(there, moved, strict=True):
        rows, columns = np.nonzero(mask)
        hull = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 128
        np.testing.assert_allclose(found, hull, atol=0.02)


def test_a_draw_belongs_to_the_image_not_to_its_place_in_the_batch() -> None:
    three = keys(3)
    together = augment.draw_affine(three, rotate=10.0, shift=0.1, scale=0.1)
    alone = augment.draw_affine(three[2:], rotate=10.0, shift=0.1, scale=0.1)
    np.testing.assert_allclose(together[2:], alone, rtol=1e-5)
    assert not np.allclose(together[0], together[1])


def test_a_flip_mirrors_images_boxes_and_maps_and_changes_no_other_draw() -> None:
    images = jnp.array(smooth(3, 32))
    ranges = {"rotate": 10.0, "shift": 0.1, "scale": 0.1}
    straight = augment.draw_affine(keys(3), **ranges)
    flipped = augment.draw_affine(keys(3), **ranges, flip=1.0)
    mirrored = augment.warp(images, straight)[:, :, ::-1]
    np.testing.assert_allclose(augment.warp(images, flipped), mirrored, atol=1e-3)

    alone = augment.draw_affine(keys(3), rotate=0.0, shift=0.0, scale=0.0, flip=1.0)
    np.testing.assert_allclose(augment.warp(images, alone), images[:, :, ::-1], atol=1e-5)
    back = augment.warp(augment.warp(images, alone), augment.invert(alone))
    np.testing.assert_allclose(back, images, atol=1e-5)
    boxes = jnp.tile(jnp.float32([0.1, 0.2, 0.4, 0.9]), (3, 1, 1, 1))
    moved = augment.warp_boxes(boxes, alone)[:, 0, 0]
    np.testing.assert_allclose(moved, np.tile([0.6, 0.2, 0.9, 0.9], (3, 1)), atol=1e-6)
    # A turned box, too: the area in each cell is the mirrored one.
    area, mirrored_area = (turned_union_area(boxes, affine, 5, 4) for affine in (straight, flipped))
    np.testing.assert_allclose(mirrored_area, area[..., ::-1], atol=1e-5)

    many = augment.draw_affine(keys(400), rotate=0.0, shift=0.0, scale=0.0, flip=0.25)
    assert 0.18 < (np.asarray(many)[:, 0, 0] < 0).mean() < 0.32
