"""Layers of the image encoders, written so that XLA compiles them to fast code. They compute the same functions with
the same parameters as the usual layers; some gradients are written by hand, because XLA's are several times slower.

Axes: b batch · h w pixels · u v the same after a stride · i k channels in and out. Maps are float32 or bfloat16,
parameters float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial, reduce
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

EncoderPart = Literal["whole", "early", "last"]

PairPerChannel = tuple[Float[Array, "k"], Float[Array, "k"]]

# PyTorch's momentum 0.1 is flax's 0.9.
BATCH_NORM_MOMENTUM = 0.9

# Kaiming-normal initialisation; each network uses the fan of its authors.
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
KAIMING_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def batch_norm(
    name: str, *, train: bool, epsilon: float, dtype: Any, axis_name: str | None
) -> BatchNorm:
    """BatchNorm with this package's momentum; in training its statistics are shared over `axis_name`."""
    return BatchNorm(train, epsilon, dtype, axis_name, name=name)


class BatchNorm(nn.Module):
    """Flax's `BatchNorm` (biased variance, statistics and sums in float32) with a hand-written gradient.

    XLA's own gradient reads the maps about twice as often and is 1.5 to 4 times slower on CPU.
    """

    train: bool
    epsilon: float
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
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
                    momentum = BATCH_NORM_MOMENTUM
                    running.value = momentum * running.value + (1 - momentum) * batch
            affine = _with_varying_axes_of(x, scale), _with_varying_axes_of(x, bias)
            y = _batch_normalise(x, moments, affine, self.epsilon, axis)
        else:
            y = _normalise(x, (running_mean.value, running_var.value), (scale, bias), self.epsilon)
        return y.astype(self.dtype)


def _moments(x: Float[Array, "b h w k"], axis_name: str | None) -> PairPerChannel:
    """Mean and biased variance, float32, over all devices of `axis_name`."""
    x = x.astype(jnp.float32)
    mean, square = x.mean((0, 1, 2)), (x * x).mean((0, 1, 2))
    if axis_name is not None:
        mean, square = lax.pmean((mean, square), axis_name)
    return mean, jnp.maximum(0.0, square - mean * mean)


def _normalise(
    x: Float[Array, "b h w k"], moments: PairPerChannel, affine: PairPerChannel, epsilon: float
) -> Float[Array, "b h w k"]:
    mean, var = moments
    scale, bias = affine
    gain = lax.rsqrt(var + epsilon) * scale
    # Not (x − mean) · gain, here and in the gradient: XLA would store x − mean as an array, because it is used twice.
    return (x * gain + (bias - mean * gain)).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _batch_normalise(
    x: Float[Array, "b h w k"],
    moments: PairPerChannel,
    affine: PairPerChannel,
    epsilon: float,
    axis_name: str | None,
) -> Float[Array, "b h w k"]:
    """x normalised by `moments`, which are computed from x: the gradient with respect to x includes them."""
    return _normalise(x, moments, affine, epsilon)


def _batch_normalise_forward(
    x: Array, moments: PairPerChannel, affine: PairPerChannel, epsilon: float, axis_name: str | None
) -> tuple[Array, tuple[Array, PairPerChannel, Array]]:
    return _normalise(x, moments, affine, epsilon), (x, moments, affine[0])


def _batch_normalise_backward(
    epsilon: float,
    axis_name: str | None,
    residuals: tuple[Float[Array, "b h w k"], PairPerChannel, Float[Array, "k"]],
    cotangent: Float[Array, "b h w k"],
) -> tuple[Float[Array, "b h w k"], PairPerChannel, PairPerChannel]:
    """Gradient with respect to x: gain · (ct − mean(ct) − x̂ · mean(ct · x̂)), with means over the global batch."""
    x, (mean, var), scale = residuals
    inverse = lax.rsqrt(var + epsilon)
    ct = cotangent.astype(jnp.float32)
    bias_gradient = ct.sum((0, 1, 2))
    scale_gradient = (ct * (x - mean)).sum((0, 1, 2)) * inverse
    pixels = x.size // x.shape[-1]
    mean_ct, mean_scale_gradient = bias_gradient / pixels, scale_gradient / pixels
    if axis_name is not None:
        mean_ct, mean_scale_gradient = lax.pmean((mean_ct, mean_scale_gradient), axis_name)
    gain, correction = inverse * scale, inverse * mean_scale_gradient
    x_gradient = ct * gain - x * (gain * correction) + gain * (mean * correction - mean_ct)
    return (
        x_gradient.astype(x.dtype),
        (jnp.zeros_like(mean), jnp.zeros_like(var)),
        (scale_gradient, bias_gradient),
    )


_batch_normalise.defvjp(_batch_normalise_forward, _batch_normalise_backward)


def _with_varying_axes_of(
    x: Float[Array, "b h w k"], parameter: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`parameter` with the varying mesh axes of x, and with its own values unchanged.

    Under shard_map a hand-written gradient must vary over the same mesh axes as its argument. Marking the parameter
    as varying fulfils this, and autodiff then adds the psum of the gradient.
    """
    return jnp.where(False, lax.stop_gradient(x[0, 0, 0, 0]).astype(parameter.dtype), parameter)


def max_pool(x: Float[Array, "b h w k"]) -> Float[Array, "b (h+1)//2 (w+1)//2 k"]:
    """3×3 maximum with stride 2 and padding 1. Among equal cells the first gets the
    gradient.

    It takes maxima along columns, then along rows: the gradient of XLA's two-dimensional window is five times slower
    on CPU.
    """
    pads = [(1, side % 2) for side in x.shape[1:3]]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    return _max_of_three(_max_of_three(padded, 2), 1)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_of_three(x: Float[Array, "b _h _w k"], axis: int) -> Float[Array, "b _u _v k"]:
    """Maxima of the cells (0, 1, 2), (2, 3, 4) … along an axis with an odd number of cells."""
    return _max_of_three_forward(x, axis)[0]


def _max_of_three_forward(x: Array, axis: int) -> tuple[Array, Array]:
    end = x.shape[axis]
    first, middle, last = (lax.slice_in_dim(x, k, end - 2 + k, 2, axis) for k in range(3))
    maximum = jnp.maximum(jnp.maximum(first, middle), last)
    position = jnp.where(first == maximum, 0, jnp.where(middle == maximum, 1, 2))
    return maximum, position.astype(jnp.uint8)


def _max_of_three_backward(axis: int, position: Array, cotangent: Array) -> tuple[Array]:
    """Each even cell is the first of one window and the last of the window before; an odd cell is a middle."""
    first, middle, last = (jnp.where(position == k, cotangent, 0) for k in range(3))

    def pad(part: Array, low: int, high: int) -> Array:
        return lax.pad(part, jnp.zeros((), part.dtype), _padding_of_axis(axis, (low, high, 0)))

    even, odd = pad(first, 0, 1) + pad(last, 1, 0), pad(middle, 0, 1)
    shape = list(even.shape)
    shape[axis] *= 2
    interleaved = jnp.stack([even, odd], axis + 1).reshape(shape)
    return (lax.slice_in_dim(interleaved, 0, shape[axis] - 1, 1, axis),)


_max_of_three.defvjp(_max_of_three_forward, _max_of_three_backward)


def _padding_of_axis(axis: int, padding: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    return [padding if k == axis else (0, 0, 0) for k in range(4)]


def average_pool(x: Float[Array, "b h w k"]) -> Float[Array, "b h//2 w//2 k"]:
    """Mean of every 2×2 cells; an odd last row or column is left out."""
    b, h, w, k = x.shape
    even = x[:, : h // 2 * 2, : w // 2 * 2]
    return even.reshape(b, h // 2, 2, w // 2, 2, k).mean((2, 4))


class Conv(nn.Module):
    """Convolution without bias; a 1×1 kernel becomes a matrix product, faster on every backend.

    padding: 'SAME' for TensorFlow's rule, or the number of cells to add on every side.
    first_kernel: how the kernel is initialised.
    """

    features: int
    kernel: int
    stride: int
    padding: int | Literal["SAME"]
    dtype: Any
    first_kernel: nn.initializers.Initializer = KAIMING_FAN_OUT

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b u v {self.features}"]:
        k, s = self.kernel, self.stride
        kernel = self.param(
            "kernel", self.first_kernel, (k, k, x.shape[-1], self.features), jnp.float32
        )
        kernel = kernel.astype(self.dtype)
        if k == 1:
            if s > 1:
                # Without this barrier XLA for GPUs fuses the strided read into the product and crashes while
                # compiling it (jax 0.11.2; openxla/xla#47381).
                x = lax.optimization_barrier(x[:, ::s, ::s])
            return _pointwise(x, _with_varying_axes_of(x, kernel[0, 0]))
        padding = self.padding if isinstance(self.padding, str) else [(self.padding,) * 2] * 2
        return lax.conv_general_dilated(
            x, kernel, (s, s), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


@jax.custom_vjp
def _pointwise(x: Float[Array, "b h w i"], kernel: Float[Array, "i k"]) -> Float[Array, "b h w k"]:
    return jnp.tensordot(x, kernel, 1)


def _pointwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _pointwise(x, kernel), (x, kernel)


def _pointwise_backward(
    residuals: tuple[Float[Array, "b h w i"], Float[Array, "i k"]],
    cotangent: Float[Array, "b h w k"],
) -> tuple[Float[Array, "b h w i"], Float[Array, "i k"]]:
    """The kernel's gradient is xᵀ · ct; autodiff's (ctᵀ · x)ᵀ is three times slower on CPU for Lite0's layers."""
    x, kernel = residuals
    pixels = (0, 1, 2)
    return jnp.tensordot(cotangent, kernel.T, 1), jnp.tensordot(x, cotangent, (pixels, pixels))


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


class DepthwiseConv(nn.Module):
    """One k×k filter per channel, TensorFlow's 'SAME' padding, no bias.

    On accelerators this is XLA's grouped convolution. On a CPU XLA has no fast grouped kernel. There it is a sum of k²
    shifted products: the same function, several times faster. The device that a program is compiled for decides.
    """

    kernel: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"]) -> Float[Array, "b u v k"]:
        k, channels = self.kernel, x.shape[-1]
        kernel = self.param("kernel", KAIMING_FAN_IN, (k, k, 1, channels), jnp.float32)
        kernel = kernel.astype(self.dtype)
        return _depthwise(x, _with_varying_axes_of(x, kernel[:, :, 0]), self.stride)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(
    x: Float[Array, "b h w k"], kernel: Float[Array, "side side k"], stride: int
) -> Float[Array, "b -(-h//{stride}) -(-w//{stride}) k"]:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_shifted_depthwise, stride=stride),
        default=partial(_grouped_depthwise, stride=stride),
    )


def _depthwise_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(x, kernel, stride), (x, kernel)


def _depthwise_backward(
    stride: int,
    residuals: tuple[Float[Array, "b h w k"], Float[Array, "side side k"]],
    cotangent: Float[Array, "b u v k"],
) -> tuple[Float[Array, "b h w k"], Float[Array, "side side k"]]:
    return lax.platform_dependent(
        *residuals,
        cotangent,
        cpu=partial(_shifted_depthwise_gradients, stride=stride),
        default=partial(_grouped_depthwise_gradients, stride=stride),
    )


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _grouped_depthwise(
    x: Float[Array, "b h w k"], kernel: Float[Array, "side side k"], stride: int
) -> Float[Array, "b u v k"]:
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _grouped_depthwise_gradients(
    x: Array, kernel: Array, cotangent: Array, stride: int
) -> tuple[Float[Array, "b h w k"], Float[Array, "side side k"]]:
    _, pull = jax.vjp(partial(_grouped_depthwise, stride=stride), x, kernel)
    return pull(cotangent)


def _shifted_depthwise(
    x: Float[Array, "b h w k"], kernel: Float[Array, "side side k"], stride: int
) -> Float[Array, "b u v k"]:
    out_shape = tuple(-(-side // stride) for side in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), *_same_pads(x, kernel, stride), (0, 0)))
    return _sum_of_products(padded, kernel, out_shape, stride)


def _shifted_depthwise_gradients(
    x: Array, kernel: Array, cotangent: Float[Array, "b u v k"], stride: int
) -> tuple[Float[Array, "b h w k"], Float[Array, "side side k"]]:
    """A hand-written gradient: XLA's own is 2.3 times slower on CPU for Lite0's layers.

    XLA fuses the kernel's k² reductions into one loop and does not vectorise it. Working on one image at
    a time (`lax.map`) at least keeps the data in the cache.
    """
    size = kernel.shape[0]
    pads = _same_pads(x, kernel, stride)
    # For x: the same sum of shifted products, over the dilated cotangent and the flipped kernel.
    before = [size - 1 - low for low, _ in pads]
    after = [
        side + size - 1 - low - (n - 1) * stride - 1
        for side, low, n in zip(x.shape[1:3], before, cotangent.shape[1:3], strict=True)
    ]
    dilation = [(low, high, stride - 1) for low, high in zip(before, after, strict=True)]
    zero = jnp.zeros((), cotangent.dtype)
    dilated = lax.pad(cotangent, zero, [(0, 0, 0), *dilation, (0, 0, 0)])
    x_gradient = _sum_of_products(dilated, kernel[::-1, ::-1], x.shape[1:3], 1)
    # For the kernel: one sum over pixels for each shift.
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))

    def one_image(rows: tuple[Array, Array]) -> Array:
        image, ct = rows[0][None], rows[1]
        return jnp.stack(
            [
                (window[0] * ct).sum((0, 1), dtype=jnp.float32)
                for window in _windows(image, size, ct.shape[:2], stride)
            ]
        )

    kernel_gradient = lax.map(one_image, (padded, cotangent)).sum(0)
    return x_gradient, kernel_gradient.reshape(kernel.shape).astype(kernel.dtype)


def _same_pads(x: Array, kernel: Array, stride: int) -> Sequence[tuple[int, int]]:
    return lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), "SAME")


def _windows(
    x: Float[Array, "b h w k"], size: int, out_shape: Sequence[int], stride: int
) -> Iterator[Float[Array, "b u v k"]]:
    """For each of the size² kernel cells, the view of padded x that it multiplies; `out_shape` is its (u, v)."""
    for i in range(size):
        for j in range(size):
            rows = x[:, i : i + (out_shape[0] - 1) * stride + 1 : stride]
            yield rows[:, :, j : j + (out_shape[1] - 1) * stride + 1 : stride]


def _sum_of_products(
    x: Float[Array, "b h w k"],
    kernel: Float[Array, "side side k"],
    out_shape: Sequence[int],
    stride: int,
) -> Float[Array, "b u v k"]:
    cells = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
    views = _windows(x, kernel.shape[0], out_shape, stride)
    return reduce(jnp.add, [view * cell for view, cell in zip(views, cells, strict=True)])
