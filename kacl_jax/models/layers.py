"""The layers of the image encoders, in the forms that XLA compiles well: the same functions and parameters as the
plain ones, with gradients written by hand where XLA's own are several times slower.

All arrays are NHWC, parameters float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial, reduce
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

Depthwise = Literal["shifted", "grouped"]
Pair = tuple[Array, Array]

# PyTorch's momentum 0.1 is flax's 0.9.
BATCH_NORM_MOMENTUM = 0.9

# Kaiming-normal on the fan that each network's authors use.
_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def batch_norm(
    name: str, *, train: bool, epsilon: float, dtype: Any, axis_name: str | None
) -> BatchNorm:
    """BatchNorm with this package's momentum, synchronised over `axis_name` in training."""
    return BatchNorm(train, epsilon, dtype, axis_name, name=name)


class BatchNorm(nn.Module):
    """Flax's `BatchNorm` (biased variance, statistics and sums in float32) with its gradient by hand.

    XLA's own gradient reads the maps about twice as often, 1.5 to 4 times slower on CPU.
    """

    train: bool
    epsilon: float
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, width, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, width, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, width, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, width, jnp.float32)
        if self.train:
            axis = None if self.is_initializing() else self.axis_name
            moments = _moments(lax.stop_gradient(x), axis)
            if not self.is_initializing():
                for running, batch in zip((running_mean, running_var), moments, strict=True):
                    keep = BATCH_NORM_MOMENTUM
                    running.value = keep * running.value + (1 - keep) * batch
            affine = _as_varying_as(x, scale), _as_varying_as(x, bias)
            y = _batch_normal(x, moments, affine, self.epsilon, axis)
        else:
            y = _normal(x, (running_mean.value, running_var.value), (scale, bias), self.epsilon)
        return y.astype(self.dtype)


def _moments(x: Array, axis_name: str | None) -> Pair:
    """Mean and biased variance f32 [k] of x [b h w k], over all devices of `axis_name`."""
    x = x.astype(jnp.float32)
    mean, square = x.mean((0, 1, 2)), (x * x).mean((0, 1, 2))
    if axis_name is not None:
        mean, square = lax.pmean((mean, square), axis_name)
    return mean, jnp.maximum(0.0, square - mean * mean)


def _normal(x: Array, moments: Pair, affine: Pair, epsilon: float) -> Array:
    mean, var = moments
    scale, bias = affine
    gain = lax.rsqrt(var + epsilon) * scale
    # Not (x − mean) · gain, here and in the gradient: of two uses of x − mean XLA makes an array of its own.
    return (x * gain + (bias - mean * gain)).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _batch_normal(
    x: Array, moments: Pair, affine: Pair, epsilon: float, axis_name: str | None
) -> Array:
    """x [b h w k] normalised by its own moments; the gradient at x counts that they are made of x."""
    return _normal(x, moments, affine, epsilon)


def _batch_normal_forward(
    x: Array, moments: Pair, affine: Pair, epsilon: float, axis_name: str | None
) -> tuple[Array, tuple[Array, Pair, Array]]:
    return _normal(x, moments, affine, epsilon), (x, moments, affine[0])


def _batch_normal_backward(
    epsilon: float, axis_name: str | None, saved: tuple[Array, Pair, Array], cotangent: Array
) -> tuple[Array, Pair, Pair]:
    """At x: gain · (ct − mean(ct) − x̂ · mean(ct · x̂)), means over the global batch."""
    x, (mean, var), scale = saved
    inverse = lax.rsqrt(var + epsilon)
    ct = cotangent.astype(jnp.float32)
    to_bias = ct.sum((0, 1, 2))
    to_scale = (ct * (x - mean)).sum((0, 1, 2)) * inverse
    pixels = x.size // x.shape[-1]
    level, slope = to_bias / pixels, to_scale / pixels
    if axis_name is not None:
        level, slope = lax.pmean((level, slope), axis_name)
    gain, tilt = inverse * scale, inverse * slope
    to_x = ct * gain - x * (gain * tilt) + gain * (mean * tilt - level)
    return to_x.astype(x.dtype), (jnp.zeros_like(mean), jnp.zeros_like(var)), (to_scale, to_bias)


_batch_normal.defvjp(_batch_normal_forward, _batch_normal_backward)


def _as_varying_as(x: Array, parameter: Array) -> Array:
    """Under shard_map a hand-written gradient must vary over the devices exactly as its argument does: borrow that
    from x [b h w k], never its values. Autodiff then adds the psum."""
    return jnp.where(False, lax.stop_gradient(x[0, 0, 0, 0]).astype(parameter.dtype), parameter)


def max_pool(x: Array) -> Array:
    """3×3 maximum with stride 2 and padding 1, [b h w k] → [b ⌈h/2⌉ ⌈w/2⌉ k]; of equal cells the first counts.

    Columns, then rows: the gradient of XLA's two-dimensional window is five times slower on CPU.
    """
    pads = [(1, side % 2) for side in x.shape[1:3]]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    return _max_of_three(_max_of_three(padded, 2), 1)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_of_three(x: Array, axis: int) -> Array:
    """Maxima of the cells (0, 1, 2), (2, 3, 4) … of an axis with an odd number of cells."""
    return _max_of_three_forward(x, axis)[0]


def _max_of_three_forward(x: Array, axis: int) -> tuple[Array, Array]:
    end = x.shape[axis]
    first, middle, last = (lax.slice_in_dim(x, k, end - 2 + k, 2, axis) for k in range(3))
    top = jnp.maximum(jnp.maximum(first, middle), last)
    place = jnp.where(first == top, 0, jnp.where(middle == top, 1, 2))
    return top, place.astype(jnp.uint8)


def _max_of_three_backward(axis: int, place: Array, cotangent: Array) -> tuple[Array]:
    """An even cell is the first of one window and the last of the one before, an odd one the middle of one."""
    first, middle, last = (jnp.where(place == k, cotangent, 0) for k in range(3))

    def pad(part: Array, low: int, high: int) -> Array:
        return lax.pad(part, jnp.zeros((), part.dtype), _on(axis, (low, high, 0)))

    even, odd = pad(first, 0, 1) + pad(last, 1, 0), pad(middle, 0, 1)
    shape = list(even.shape)
    shape[axis] *= 2
    woven = jnp.stack([even, odd], axis + 1).reshape(shape)
    return (lax.slice_in_dim(woven, 0, shape[axis] - 1, 1, axis),)


_max_of_three.defvjp(_max_of_three_forward, _max_of_three_backward)


def _on(axis: int, padding: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    return [padding if k == axis else (0, 0, 0) for k in range(4)]


class Conv(nn.Module):
    """Convolution without bias; a 1×1 kernel becomes a matrix product, faster on every backend.

    padding: 'SAME' is TensorFlow's rule, an integer pads every side by that much.
    """

    features: int
    kernel: int
    stride: int
    padding: int | Literal["SAME"]
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, s = self.kernel, self.stride
        kernel = self.param("kernel", _FAN_OUT, (k, k, x.shape[-1], self.features), jnp.float32)
        kernel = kernel.astype(self.dtype)
        if k == 1:
            if s > 1:
                # An array of its own: XLA for GPUs fuses the strided read into the product and dies of it (jax 0.11.2).
                x = lax.optimization_barrier(x[:, ::s, ::s])
            return _pointwise(x, _as_varying_as(x, kernel[0, 0]))
        padding = self.padding if isinstance(self.padding, str) else [(self.padding,) * 2] * 2
        return lax.conv_general_dilated(
            x, kernel, (s, s), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


@jax.custom_vjp
def _pointwise(x: Array, kernel: Array) -> Array:
    """x [b h w i], kernel [i o] → [b h w o]."""
    return jnp.tensordot(x, kernel, 1)


def _pointwise_forward(x: Array, kernel: Array) -> tuple[Array, Pair]:
    return _pointwise(x, kernel), (x, kernel)


def _pointwise_backward(saved: Pair, cotangent: Array) -> Pair:
    """At the kernel xᵀ · ct: autodiff's own order, (ctᵀ · x)ᵀ, is three times slower on CPU over Lite0's layers."""
    x, kernel = saved
    pixels = (0, 1, 2)
    return jnp.tensordot(cotangent, kernel.T, 1), jnp.tensordot(x, cotangent, (pixels, pixels))


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


class DepthwiseConv(nn.Module):
    """One k×k filter per channel, TensorFlow's 'SAME' padding, no bias.

    'grouped' is XLA's grouped convolution. 'shifted' sums k² shifted products: the same numbers and
    parameters, several times faster where XLA has no good grouped kernel (CPU).
    """

    kernel: int
    stride: int
    mode: Depthwise
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, s, channels = self.kernel, self.stride, x.shape[-1]
        kernel = self.param("kernel", _FAN_IN, (k, k, 1, channels), jnp.float32)
        kernel = kernel.astype(self.dtype)
        if self.mode == "shifted":
            return _shifted_depthwise(x, _as_varying_as(x, kernel[:, :, 0]), s)
        return lax.conv_general_dilated(
            x,
            kernel,
            (s, s),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted_depthwise(x: Array, kernel: Array, stride: int) -> Array:
    """x [b h w k], kernel [i j k] → [b ceil(h/stride) ceil(w/stride) k]."""
    out = tuple(-(-side // stride) for side in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), *_same_pads(x, kernel, stride), (0, 0)))
    return _sum_of_products(padded, kernel, out, stride)


def _shifted_depthwise_forward(
    x: Array, kernel: Array, stride: int
) -> tuple[Array, tuple[Array, Array]]:
    return _shifted_depthwise(x, kernel, stride), (x, kernel)


def _shifted_depthwise_backward(
    stride: int, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    """The gradient by hand: XLA's own is 2.3 times slower on CPU over Lite0's layers.

    It fuses the kernel's k² reductions into one loop that it does not vectorise; one image at a
    time (`lax.map`) the data at least stays in the cache.
    """
    x, kernel = saved
    size = kernel.shape[0]
    pads = _same_pads(x, kernel, stride)
    # x: the same sum of shifted products, over the dilated cotangent and the turned kernel
    before = [size - 1 - low for low, _ in pads]
    after = [
        side + size - 1 - low - (n - 1) * stride - 1
        for side, low, n in zip(x.shape[1:3], before, cotangent.shape[1:3], strict=True)
    ]
    spread = [(low, high, stride - 1) for low, high in zip(before, after, strict=True)]
    zero = jnp.zeros((), cotangent.dtype)
    dilated = lax.pad(cotangent, zero, [(0, 0, 0), *spread, (0, 0, 0)])
    to_x = _sum_of_products(dilated, kernel[::-1, ::-1], x.shape[1:3], 1)
    # kernel: one sum over pixels for each shift
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))

    def one_image(rows: tuple[Array, Array]) -> Array:
        image, ct = rows[0][None], rows[1]
        return jnp.stack(
            [
                (window[0] * ct).sum((0, 1), dtype=jnp.float32)
                for window in _windows(image, size, ct.shape[:2], stride)
            ]
        )

    to_kernel = lax.map(one_image, (padded, cotangent)).sum(0)
    return to_x, to_kernel.reshape(kernel.shape).astype(kernel.dtype)


_shifted_depthwise.defvjp(_shifted_depthwise_forward, _shifted_depthwise_backward)


def _same_pads(x: Array, kernel: Array, stride: int) -> Sequence[tuple[int, int]]:
    return lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), "SAME")


def _windows(x: Array, size: int, out: Sequence[int], stride: int) -> Iterator[Array]:
    """The size² views of padded x [b h w k] that one kernel cell each sees, [b *out k]."""
    for i in range(size):
        for j in range(size):
            rows = x[:, i : i + (out[0] - 1) * stride + 1 : stride]
            yield rows[:, :, j : j + (out[1] - 1) * stride + 1 : stride]


def _sum_of_products(x: Array, kernel: Array, out: Sequence[int], stride: int) -> Array:
    cells = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
    views = _windows(x, kernel.shape[0], out, stride)
    return reduce(jnp.add, [view * cell for view, cell in zip(views, cells, strict=True)])
