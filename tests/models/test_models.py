"""Properties of KACL's networks; parity with PyTorch is in test_pretrained.py."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from kacl_jax.models import layers
from kacl_jax.models.encoders import ENCODERS
from kacl_jax.models.kacl import (
    KACL,
    MIN_READY_ROWS,
    MaskedBatchNorm,
    ProjectionHead,
    RadiomicsEncoder,
    l2_normalise,
)
from kacl_jax.models.layers import Conv, DepthwiseConv, average_pool, batch_norm, max_pool
from kacl_jax.models.resnet import ResNet

# A ResNet with one block a stage: small enough to train in a test.
TINY = ResNet((1, 1, 1, 1), bottleneck=False)


def batch(rows: int, size: int = 32, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(rows, size, size, 3)).astype(np.float32)
    radiomics = rng.normal(size=(rows, 102)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(radiomics), jnp.asarray(rng.random(rows) < 0.7)


def shapes(model: KACL, size: int = 64) -> Any:
    arguments = batch(2, size)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *arguments, train=False))


def filled(tree: Any) -> Any:
    """Plausible arrays for a tree of shapes: far quicker than compiling `init`."""
    rng = np.random.default_rng(0)

    def leaf(path: Any, shape: Any) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        fan_in = max(1, int(np.prod(shape.shape[:-1])))
        return rng.normal(0, np.sqrt(2 / fan_in), shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, tree)


# ---------------------------------------------------------------------------------------- encoders


@cache
def outlined(encoder: str, stride: int) -> tuple[Any, Any]:
    """(last map, variables) of an encoder as shapes, for images of 64 px."""
    net = ENCODERS[encoder].build(stride, jnp.float32, None)
    return jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), batch(2, 64)[0], False))


@pytest.mark.parametrize(
    "encoder,parameters,channels",
    [
        ("resnet18", 11_176_512, 512),  # torchvision's 11,689,512 less fc (512·1000 + 1000)
        ("resnet50", 23_508_032, 2048),  # 25,557,032 less 2048·1000 + 1000
        ("densenet121", 6_953_856, 1024),  # 7,978,856 less 1024·1000 + 1000
        ("efficientnet_lite0", 3_371_008, 1280),  # 4,652,008 less 1280·1000 + 1000
    ],
)
def test_encoders_have_the_published_number_of_parameters(
    encoder: str, parameters: int, channels: int
) -> None:
    last, variables = outlined(encoder, 32)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert last.shape[-1] == channels
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_output_stride_16_doubles_the_grid_and_keeps_the_parameters(encoder: str) -> None:
    (coarse, variables), (fine, same) = (outlined(encoder, stride) for stride in (32, 16))
    assert variables == same
    assert coarse.shape[1:3] == (2, 2)
    assert fine.shape[1:3] == (4, 4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_earlier_map_and_the_last_stage_share_out_the_encoder(encoder: str) -> None:
    """Every layer belongs to one part; the earlier map is twice as fine."""
    model = KACL(encoder, 8)
    whole = outlined(encoder, 32)[1]["params"]

    def part(method: Any, x: Any) -> tuple[Any, Any]:
        out, variables = jax.eval_shape(
            lambda: nn.init_with_output(method, model)(jax.random.key(0), x, False)
        )
        return out, variables["params"]["image_encoder"]

    early, first = part(KACL.early_map, batch(2, 64)[0])
    last, second = part(KACL.last_stage, jnp.zeros(early.shape))
    assert not first.keys() & second.keys()
    assert first | second == whole
    assert early.shape[1:3] == (4, 4)
    assert last.shape[1:3] == (2, 2)


def test_in_two_parts_the_encoder_gives_the_same_map_and_statistics() -> None:
    images = batch(4)[0]
    shape = jax.eval_shape(lambda: TINY.init(jax.random.key(0), images, False))

    @jax.jit
    def both(v: Any) -> Any:
        run = partial(TINY.apply, train=True, mutable=["batch_stats"])
        whole, moved = run(v, images)
        early, state = run(v, images, part="early")
        last, state = run({"params": v["params"], **state}, early, part="last")
        return (whole, moved), (last, state)

    jax.tree.map(np.testing.assert_array_equal, *both(filled(shape)))


@pytest.mark.parametrize(
    "kernel,stride,size", [(3, 1, 7), (3, 2, 7), (3, 2, 8), (5, 2, 9), (5, 1, 4)]
)
def test_shifted_and_grouped_depthwise_are_the_same_function(
    kernel: int, stride: int, size: int
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, size, size + 3, 6)).astype(np.float32)
    weights = rng.normal(size=(kernel, kernel, 6)).astype(np.float32)
    results = []
    for form, gradients in (
        (layers._shifted_depthwise, layers._shifted_depthwise_gradients),
        (layers._grouped_depthwise, layers._grouped_depthwise_gradients),
    ):
        out = jax.jit(partial(form, stride=stride))(x, weights)
        cotangent = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        results.append((out, *jax.jit(partial(gradients, stride=stride))(x, weights, cotangent)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), results[0], results[1]
    )


@pytest.mark.parametrize("platform,convolutions", [("cpu", 0), ("tpu", 3), ("cuda", 3)])
def test_the_device_that_a_program_is_compiled_for_chooses_the_form_of_depthwise(
    platform: str, convolutions: int
) -> None:
    """Grouped on an accelerator, forward and in both gradients, although a CPU traces the program."""
    layer, x = DepthwiseConv(3, 2, jnp.float32), jnp.zeros((2, 8, 8, 6))
    variables = {"params": {"kernel": jnp.zeros((3, 3, 1, 6))}}

    def run(variables: Any, x: Any) -> Any:
        out, pull = jax.vjp(layer.apply, variables, x)
        return out, *pull(out)

    lowered = jax.jit(run).trace(variables, x).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count("stablehlo.convolution") == convolutions


def pulled(function: Any, *arguments: Any) -> Any:
    """Value and gradients under a cotangent that is different everywhere."""

    def run(*arguments: Any) -> Any:
        out, pull = jax.vjp(function, *arguments)
        return out, *pull(jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype))

    return jax.jit(run)(*arguments)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (3, 2), (1, 1)])
def test_max_pool_and_its_gradient_are_those_of_the_plain_window(size: tuple[int, int]) -> None:
    """After a ReLU, where half of the cells are equal: the first of them gets the gradient."""
    x = np.random.default_rng(0).normal(size=(2, *size, 5)).astype(np.float32).clip(0)
    plain = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    (value, gradient), (expected, plain_gradient) = pulled(max_pool, x), pulled(plain, x)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(gradient, plain_gradient, atol=1e-6)


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 2)])
def test_average_pool_and_its_gradient_are_those_of_the_plain_window(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(2, *size, 5)).astype(np.float32)
    plain = partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2))
    for actual, expected in zip(pulled(average_pool, x), pulled(plain, x), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pointwise_convolution_and_its_gradients_are_those_of_the_plain_one(stride: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 4, 3)).astype(np.float32)
    params = {"kernel": rng.normal(size=(1, 1, 3, 7)).astype(np.float32)}
    layer = Conv(7, 1, stride, 0, jnp.float32)

    def plain(params: Any, x: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x,
            params["kernel"],
            (stride, stride),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        pulled(lambda params, x: layer.apply({"params": params}, x), params, x),
        pulled(plain, params, x),
    )


@pytest.mark.parametrize("dtype,tolerance", [(jnp.float32, 1e-4), (jnp.bfloat16, 3e-2)])
def test_batch_norm_its_gradient_and_statistics_are_those_of_flax(
    dtype: Any, tolerance: float
) -> None:
    rng = np.random.default_rng(0)
    x = (3 * rng.normal(size=(4, 5, 6, 7)) + 2).astype(np.float32)
    params = {name: rng.uniform(0.5, 2, 7).astype(np.float32) for name in ("scale", "bias")}
    stats = {name: jnp.float32(rng.uniform(0.5, 2, 7)) for name in ("mean", "var")}
    results = []
    for train in (True, False):
        package_layer = batch_norm("bn", train=train, epsilon=1e-3, dtype=dtype, axis_name=None)
        flax = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-3, dtype=dtype)
        for layer in (package_layer, flax):

            def apply(params: Any, x: Any, layer: Any = layer) -> Any:
                variables = {"params": params, "batch_stats": stats}
                return layer.apply(variables, x.astype(dtype), mutable=["batch_stats"])

            out = pulled(lambda *a, apply=apply: apply(*a)[0], params, x)
            assert out[0].dtype == dtype
            results.append((out, jax.jit(apply)(params, x)[1]))
    for actual, expected in (results[:2], results[2:]):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a.astype(np.float32), b.astype(np.float32), rtol=tolerance, atol=tolerance
            ),
            actual,
            expected,
        )


def test_bfloat16_stays_close_and_leaves_parameters_and_outputs_in_float32() -> None:
    images = batch(8, 64)[0]
    maps = []
    for dtype in (jnp.float32, jnp.bfloat16):
        net = TINY.clone(dtype=dtype)
        shape = jax.eval_shape(lambda net=net: net.init(jax.random.key(0), images, False))
        variables = filled(shape)
        out, _ = jax.jit(lambda v, net=net: net.apply(v, images, True, mutable=["batch_stats"]))(
            variables
        )
        assert out.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(shape)} == {jnp.dtype("float32")}
        maps.append(np.asarray(out).mean((1, 2)).ravel())
    exact, rough = maps
    assert not np.array_equal(exact, rough)
    assert np.corrcoef(exact, rough)[0, 1] > 0.99


@pytest.mark.parametrize("name, stride", [("resnet34", 32), ("resnet18", 8)])
def test_there_is_no_silent_default_encoder(name: str, stride: int) -> None:
    with pytest.raises(ValueError, match=f"'{name}' with output stride {stride}"):
        shapes(KACL(name, 8, output_stride=stride))


# --------------------------------------------------------------------------------- several devices


def on_four_devices(function: Any, *arguments: Any) -> Any:
    """Runs `function` with its first argument replicated and the others split by rows."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(everywhere, *[rows] * (len(arguments) - 1)),
        out_specs=(rows, everywhere),
    )
    return jax.jit(mapped)(*arguments)


def test_image_batch_norm_on_four_devices_is_that_of_the_global_batch() -> None:
    images = batch(8)[0]
    alone, spread = TINY, TINY.clone(axis_name="data")
    variables = filled(jax.eval_shape(lambda: alone.init(jax.random.key(0), images, False)))

    def step(net: nn.Module) -> Any:
        return lambda v, x: net.apply(v, x, True, mutable=["batch_stats"])

    expected = jax.jit(step(alone))(variables, images)
    actual = on_four_devices(step(spread), variables, images)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), actual, expected
    )
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), expected[1], {"batch_stats": variables["batch_stats"]}
    )
    assert min(jax.tree.leaves(moved)) > 1e-4


def test_the_batch_norm_gradient_on_four_devices_is_that_of_the_global_batch() -> None:
    rng = np.random.default_rng(0)
    x = (3 * rng.normal(size=(8, 3, 4, 5)) + 2).astype(np.float32)
    weight = rng.normal(size=x.shape).astype(np.float32)
    params = {"scale": np.full(5, 1.5, np.float32), "bias": np.ones(5, np.float32)}
    stats = {"mean": jnp.zeros(5), "var": jnp.ones(5)}

    def gradients(params: Any, x: Any, weight: Any, layer: nn.Module, axis: str | None) -> Any:
        def loss(params: Any, x: Any) -> Any:
            variables = {"params": params, "batch_stats": stats}
            out, _ = layer.apply(variables, x, mutable=["batch_stats"])
            total = (out**2 * weight).sum()
            return total if axis is None else jax.lax.psum(total, axis)

        to_params, to_x = jax.grad(loss, argnums=(0, 1))(params, x)
        return to_x, to_params

    flax = nn.BatchNorm(False, momentum=0.9, epsilon=1e-5)
    expected = jax.jit(partial(gradients, layer=flax, axis=None))(params, x, weight)
    package_layer = batch_norm("bn", train=True, epsilon=1e-5, dtype=jnp.float32, axis_name="data")
    actual = on_four_devices(
        partial(gradients, layer=package_layer, axis="data"), params, x, weight
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), actual, expected
    )


@pytest.mark.parametrize(
    "layer,channels",
    [
        (DepthwiseConv(3, 2, jnp.float32), (1, 3)),
        (Conv(4, 1, 2, 0, jnp.float32), (3, 4)),
    ],
)
def test_a_kernels_gradient_on_four_devices_is_the_sum_over_the_global_batch(
    layer: Any, channels: tuple[int, int]
) -> None:
    x = np.random.default_rng(0).normal(size=(8, 5, 6, 3)).astype(np.float32)
    variables = {"params": {"kernel": np.ones((layer.kernel, layer.kernel, *channels), np.float32)}}

    def gradient(v: Any, x: Any, total: Any) -> Any:
        return x, jax.grad(lambda v: total((layer.apply(v, x) ** 2).sum()))(v)

    expected = jax.jit(lambda v, x: gradient(v, x, lambda value: value))(variables, x)[1]
    actual = on_four_devices(
        lambda v, x: gradient(v, x, lambda value: jax.lax.psum(value, "data")), variables, x
    )[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), actual, expected)


def test_masked_batch_norm_on_four_devices_with_uneven_and_empty_shares() -> None:
    """Counts of 4, 0, 3 and 2 ready rows: a mean of per-device means would be wrong or NaN."""
    rng = np.random.default_rng(0)
    x = jnp.float32(rng.normal(size=(16, 5)) * 3 + 2)
    ready = jnp.array([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 1], bool)
    variables = MaskedBatchNorm(None).init(jax.random.key(0), x, ready, False)

    def step(v: Any, x: Any, ready: Any) -> Any:
        return MaskedBatchNorm("data").apply(v, x, ready, True, mutable=["batch_stats"])

    out, state = on_four_devices(step, variables, x, ready)
    mean, var = x[ready].mean(0), x[ready].var(0)
    np.testing.assert_allclose(out[ready], (x[ready] - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=1e-5)


# -------------------------------------------------------------------------------------- radiomics


@pytest.mark.parametrize("count", [0, 1, MIN_READY_ROWS - 1])
def test_too_few_ready_rows_move_no_statistic_and_give_finite_gradients(count: int) -> None:
    radiomics, ready = batch(16)[1], jnp.arange(16) < count
    net = RadiomicsEncoder(None)
    variables = net.init(jax.random.key(0), radiomics, ready, False)
    stats = jax.tree.map(lambda leaf: leaf + 0.25, variables["batch_stats"])

    def loss(params: Any) -> Any:
        v = {"params": params, "batch_stats": stats}
        out, state = net.apply(v, radiomics, ready, True, mutable=["batch_stats"])
        return (out**2).sum(), (out, state["batch_stats"])

    (_, (out, after)), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    frozen = net.apply(
        {"params": variables["params"], "batch_stats": stats}, radiomics, ready, False
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, after, stats))
    np.testing.assert_allclose(out, frozen, rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, grads)))


def test_a_column_without_spread_gives_finite_values_and_gradients() -> None:
    x, ready = jnp.full((12, 3), 7.0), jnp.ones(12, bool)
    net = MaskedBatchNorm(None)
    variables = net.init(jax.random.key(0), x, ready, False)
    out, pull = jax.vjp(
        lambda x: net.apply(variables, x, ready, True, mutable=["batch_stats"])[0], x
    )
    assert np.abs(out).max() < 1e-2
    assert np.isfinite(pull(jnp.ones_like(out))[0]).all()


@pytest.mark.parametrize("filler", [np.nan, np.inf, 1e30, 5.0])
def test_rows_that_are_not_ready_touch_nothing(filler: float) -> None:
    """Values, statistics and gradients are bit for bit those of any other filler: here zeros."""
    _, radiomics, _ = batch(16)
    ready = jnp.arange(16) % 3 != 0
    model = KACL("resnet18", 8)
    variables = nn.init(KACL.project_radiomics, model)(jax.random.key(0), radiomics, ready, False)
    variables = jax.tree.map(np.asarray, variables)

    @jax.jit
    def run(params: Any, radiomics: Any) -> Any:
        def loss(params: Any, radiomics: Any) -> Any:
            v = {"params": params, "batch_stats": variables["batch_stats"]}
            z, state = model.apply(
                v, radiomics, ready, True, mutable=["batch_stats"], method="project_radiomics"
            )
            # every row carries a gradient: those not ready must not let it through
            return (z * jnp.arange(z.size).reshape(z.shape)).sum(), (z, state)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, radiomics)

    results = []
    for value in (0.0, filler):
        rows = jnp.where(ready[:, None], radiomics, value)
        results.append(jax.tree.map(np.asarray, run(variables["params"], rows)))
    (_, (z, _)), (_, row_gradient) = results[1]
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, atol=1e-5)
    assert not row_gradient[~ready].any()
    assert (np.abs(row_gradient[ready]).max(-1) > 0).all()
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_loss_on_rows_that_are_not_ready_moves_no_parameter() -> None:
    _, radiomics, _ = batch(16)
    ready = jnp.arange(16) % 3 != 0
    model = KACL("resnet18", 8)
    variables = nn.init(KACL.project_radiomics, model)(jax.random.key(0), radiomics, ready, False)

    def gradient(weights: np.ndarray) -> Any:
        def loss(params: Any) -> Any:
            z, _ = model.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                radiomics,
                ready,
                True,
                mutable=["batch_stats"],
                method="project_radiomics",
            )
            return (z[:, 0] * weights).sum()

        return jax.jit(jax.grad(loss))(variables["params"])

    weights = np.arange(1, 17, dtype=np.float32)
    everywhere, where_ready = gradient(weights), gradient(weights * ready)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), everywhere, where_ready
    )


def test_ready_rows_alone_give_the_same_result_as_among_others() -> None:
    _, radiomics, _ = batch(24)
    ready = jnp.arange(24) % 2 == 0
    net = RadiomicsEncoder(None)
    variables = net.init(jax.random.key(0), radiomics, ready, False)
    among, among_state = net.apply(variables, radiomics, ready, True, mutable=["batch_stats"])
    alone, alone_state = net.apply(
        variables, radiomics[ready], jnp.ones(12, bool), True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(among[ready], alone, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), among_state, alone_state)


# ------------------------------------------------------------------------------------------ heads


def test_projections_have_unit_length_and_a_zero_row_stays_finite() -> None:
    x = jnp.float32(np.random.default_rng(0).normal(size=(4, 6))).at[0].set(0)
    head = ProjectionHead(5)
    z = head.apply(head.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(np.linalg.norm(z[1:], axis=-1), 1, rtol=1e-5)
    out, pull = jax.vjp(l2_normalise, x)
    assert np.isfinite(out).all()
    assert np.isfinite(pull(jnp.ones_like(out))[0]).all()


def test_the_model_is_a_linear_head_on_the_mean_over_cells_with_a_rare_finding_prior() -> None:
    model = KACL("resnet18", 8)
    a = jnp.float32(np.abs(np.random.default_rng(0).normal(size=(3, 2, 2, 512))))
    variables = nn.init(KACL.classify, model)(jax.random.key(0), a)
    kernel, bias = (np.asarray(variables["params"]["classifier"][k]) for k in ("kernel", "bias"))
    logits = model.apply(variables, a, method="classify")
    np.testing.assert_allclose(logits, a.mean((1, 2)) @ kernel + bias, rtol=1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), 0.1, rtol=1e-5)


def test_one_variables_tree_serves_every_method() -> None:
    images, radiomics, ready = batch(9)
    model = KACL("resnet18", 3, projection_dim=16)
    variables = filled(shapes(model))

    @jax.jit
    def both(v: Any) -> Any:
        whole = model.apply(v, images, radiomics, ready, False)
        a = model.apply(v, images, False, method="feature_map")
        parts = (
            a,
            model.apply(v, a, method="classify"),
            model.apply(v, a, method="project_image"),
            model.apply(v, radiomics, ready, False, method="project_radiomics"),
        )
        return whole, parts

    whole, parts = both(variables)
    assert [x.shape for x in whole] == [(9, 1, 1, 512), (9, 3), (9, 16), (9, 16)]
    assert {x.dtype for x in whole} == {jnp.dtype("float32")}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), whole, parts)
