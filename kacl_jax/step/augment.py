"""Augmentation on the device: a small random affine map and contrast, with the way back.

An affine map is float32 [2 3], from output to input, in centred fractions (the image spans [−½, ½]²), so that one
map serves images, CAMs and boxes of any size. Axes: b batch · h w pixels · c findings · k boxes of a finding.

Coordinates are products of full precision: an accelerator's default keeps 8 to 11 bits of them, which is pixels.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Float32, Int32, Key, UInt8


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges of the random change of a training image; all 0 is none."""

    rotate: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    contrast: float = 0.0
    flip: float = 0.0

    def view(
        self,
        images: UInt8[Array, "b h w 1"],
        image_id: Int32[Array, "b"],
        *,
        seed: int,
        step: Int32[Array, ""],
        number: int,
    ) -> tuple[Float32[Array, "b h w"], Float32[Array, "b 2 3"] | None]:
        """One random view of each image; the draw belongs to (seed, step, image, number).

        number: 0 for the first view, 1 for the second.

        Returns:
          As `random_view`.
        """
        grey = images[..., 0].astype(jnp.float32)
        key = jax.random.fold_in(jax.random.key(seed), step)
        keys = jax.vmap(
            lambda image_id: jax.random.split(jax.random.fold_in(key, image_id), 2 * number + 2)
        )(image_id)
        return random_view(keys[:, 2 * number :], grey, **dataclasses.asdict(self))


def random_view(
    keys: Key[Array, "b 2"],
    images: Float32[Array, "b h w"],
    *,
    rotate: float,
    shift: float,
    scale: float,
    contrast: float,
    flip: float,
) -> tuple[Float32[Array, "b h w"], Float32[Array, "b 2 3"] | None]:
    """A small random change of each image; ranges of 0 are none.

    Args:
      keys: one for the affine map and one for the contrast.
      images: grey levels.
      rotate, shift, scale, flip: as in `draw_affine`. contrast: as in `random_contrast`.

    Returns:
      (the changed images, the affine map used or None).
    """
    affine = None
    if rotate or shift or scale or flip:
        affine = draw_affine(keys[:, 0], rotate=rotate, shift=shift, scale=scale, flip=flip)
        images = warp(images, affine)
    if contrast:
        images = random_contrast(keys[:, 1], images, contrast=contrast)
    return images, affine


def draw_affine(
    keys: Key[Array, "b"], *, rotate: float, shift: float, scale: float, flip: float = 0.0
) -> Float32[Array, "b 2 3"]:
    """One affine map per row, uniform in ±rotate degrees, ±shift of the side, 1 ± scale; some are mirrored.

    Args:
      keys: one per image: a row's draw does not depend on its place in the batch.
      rotate: degrees. shift: fraction of the side. scale: relative. flip: the probability of a mirror image.
    """

    def draw(key: Key[Array, ""]) -> Float32[Array, "2 3"]:
        turn, grow, x, y = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
        angle = turn * rotate * jnp.pi / 180
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        linear = jnp.array([[cos, -sin], [sin, cos]]) / (1 + grow * scale)
        if flip:
            # A key of its own, so that the other draws are the same with and without flips.
            is_flipped = jax.random.bernoulli(jax.random.fold_in(key, 1), flip)
            linear *= jnp.where(is_flipped, jnp.array([-1.0, 1.0]), 1.0)
        return jnp.concatenate([linear, jnp.array([[x], [y]]) * shift], axis=1)

    return jax.vmap(draw)(keys)


def invert(affine: Float[Array, "b 2 3"]) -> Float[Array, "b 2 3"]:
    """The map from input to output."""
    linear = jnp.linalg.inv(affine[:, :, :2])
    shift = jnp.matmul(linear, affine[:, :, 2:], precision="highest")
    return jnp.concatenate([linear, -shift], axis=2)


def warp(images: Float[Array, "b h w"], affine: Float[Array, "b 2 3"]) -> Float[Array, "b h w"]:
    """Resample bilinearly, the edge pixel repeated outside."""

    def one(image: Float[Array, "h w"], matrix: Float[Array, "2 3"]) -> Float[Array, "h w"]:
        h, w = image.shape
        y, x = jnp.meshgrid(
            (jnp.arange(h) + 0.5) / h - 0.5, (jnp.arange(w) + 0.5) / w - 0.5, indexing="ij"
        )
        source = jnp.einsum("ij,jhw->ihw", matrix[:, :2], jnp.stack([x, y]), precision="highest")
        source += matrix[:, 2, None, None]
        coordinates = [(source[1] + 0.5) * h - 0.5, (source[0] + 0.5) * w - 0.5]
        return map_coordinates(image, coordinates, order=1, mode="nearest")

    return jax.vmap(one)(images, affine)


def warp_boxes(
    boxes: Float[Array, "b c k 4"], affine: Float[Array, "b 2 3"]
) -> Float[Array, "b c k 4"]:
    """Carry boxes, fractions (x0, y0, x1, y1), into the augmented frame.

    A box becomes the hull of its moved corners, clipped to the image.
    """
    inverse = invert(affine)
    corners = jnp.stack(
        [boxes[..., [0, 1]], boxes[..., [2, 1]], boxes[..., [0, 3]], boxes[..., [2, 3]]]
    )
    moved = jnp.einsum("bij,qbckj->qbcki", inverse[:, :, :2], corners - 0.5, precision="highest")
    moved = jnp.clip(moved + inverse[None, :, None, None, :, 2] + 0.5, 0.0, 1.0)
    return jnp.concatenate([moved.min(0), moved.max(0)], axis=-1)


def random_contrast(
    keys: Key[Array, "b"], images: Float[Array, "b h w"], *, contrast: float
) -> Float[Array, "b h w"]:
    """Scale each image's grey levels about its mean by 1 ± contrast."""
    factor = 1 + contrast * jax.vmap(lambda key: jax.random.uniform(key, minval=-1.0))(keys)
    mean = images.mean((1, 2), keepdims=True)
    return (images - mean) * factor[:, None, None] + mean
