"""The accelerator's operations against XLA's in float32, forward and backward."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from diffjax import accelerator
from diffjax.accelerator.ops import NATIVE
from diffjax.models import UNet, remat
from diffjax.models.ops import XLA, Ops
from tests.accelerator.closeness import BOUNDS, error, normal

# (batch, height, width, in, out, kernel, stride, padding, groups)
CONVOLUTIONS = {
    "odd channels and sides": (5, 7, 9, 6, 10, 3, 1, 1, 1),
    "a training batch": (32, 14, 14, 32, 32, 3, 1, 1, 1),
    "a batch that does not divide": (67, 8, 8, 16, 16, 3, 1, 1, 1),
    "tiles cut at every edge": (33, 9, 7, 24, 48, 3, 1, 1, 1),
    "tiles without a border": (40, 10, 11, 40, 16, 3, 1, 0, 1),
    "tiles within a wide border": (40, 6, 5, 8, 32, 3, 1, 2, 1),
    "many channels": (16, 8, 8, 96, 160, 3, 1, 1, 1),
    "half a panel of outputs": (16, 12, 12, 48, 80, 3, 1, 1, 1),
    "one grey image": (1, 28, 28, 1, 32, 3, 1, 1, 1),
    "stride 2, odd height": (3, 9, 8, 16, 24, 3, 2, 1, 1),
    "stride 2, no border": (3, 9, 8, 16, 24, 3, 2, 0, 1),
    "no border": (2, 6, 5, 8, 8, 3, 1, 0, 1),
    "wide border": (2, 5, 5, 8, 8, 3, 1, 3, 1),
    "1x1": (2, 5, 5, 8, 4, 1, 1, 0, 1),
    "depthwise 7x7": (4, 8, 8, 12, 12, 7, 1, 3, 12),
    "two groups": (7, 6, 6, 8, 12, 3, 1, 1, 2),
}


@pytest.fixture(scope="module", autouse=True)
def _library(native_library: str) -> None:
    """Every test here needs it."""


def _cotangent(y: jax.Array) -> jax.Array:
    return normal(9, *y.shape, dtype=y.dtype)


def _with_gradients(function: Callable[..., jax.Array], *operands: jax.Array) -> Any:
    """(result, gradients) for `_cotangent`."""

    @jax.jit
    def both(*operands: jax.Array) -> Any:
        y, pull_back = jax.vjp(function, *operands)
        return y, pull_back(_cotangent(y))

    return both(*operands)


def _conv(ops: Ops, case: tuple[int, ...]) -> Callable[..., jax.Array]:
    *_, stride, padding, groups = case
    return lambda x, kernel, bias: ops.conv(
        x, kernel, bias, stride=stride, padding=padding, groups=groups
    )


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions(case: tuple[int, ...], dtype: str) -> None:
    batch, height, width, channels, features, side, *_, groups = case
    x = normal(0, batch, height, width, channels, dtype=dtype)
    kernel, bias = normal(1, side, side, channels // groups, features), normal(2, features)
    y, (dx, dkernel, dbias) = _with_gradients(_conv(NATIVE, case), x, kernel, bias)
    assert (y.dtype, dx.dtype, dkernel.dtype) == (dtype, dtype, jnp.float32)

    wide = x.astype(jnp.float32)
    reference = _conv(XLA, case)
    expected, pull_back = jax.vjp(reference, wide, kernel, bias)
    images, sums = BOUNDS[dtype]
    assert error(y, expected) < images
    expected_dx, expected_dkernel, expected_dbias = pull_back(_cotangent(y).astype(jnp.float32))
    assert error(dx, expected_dx) < images
    assert error(dkernel, expected_dkernel) < sums
    assert error(dbias, expected_dbias) < sums


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(3, 5, 7, 12), (4, 6), (2, 3, 40)])
def test_dense(shape: tuple[int, ...], dtype: str) -> None:
    x, kernel, bias = normal(0, *shape, dtype=dtype), normal(1, shape[-1], 20), normal(2, 20)
    y, gradients = _with_gradients(NATIVE.dense, x, kernel, bias)
    assert (y.dtype, y.shape) == (dtype, (*shape[:-1], 20))
    expected, pull_back = jax.vjp(XLA.dense, x.astype(jnp.float32), kernel, bias)
    images, sums = BOUNDS[dtype]
    assert error(y, expected) < images
    references = pull_back(_cotangent(y).astype(jnp.float32))
    for ours, reference, bound in zip(gradients, references, (images, sums, sums), strict=True):
        assert error(ours, reference) < bound


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((3, 5, 4, 12), 3), ((4, 49, 32), 8), ((2, 28, 28, 32), 8), ((2, 3, 3, 7), 1), ((1, 1, 4), 1)],
)
def test_group_norm(shape: tuple[int, ...], groups: int, silu: bool, dtype: str) -> None:
    # A mean of three deviations: what is lost by subtracting squares would show.
    x = (2 * normal(0, *shape) + 6).astype(dtype)
    scale, shift = normal(1, shape[0], shape[-1]), normal(2, shape[0], shape[-1])

    def function(ops: Ops) -> Callable[..., jax.Array]:
        return lambda *operands: ops.group_norm(*operands, groups=groups, eps=1e-5, silu=silu)

    y, gradients = _with_gradients(function(NATIVE), x, scale, shift)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, scale, shift)]
        expected, pull_back = jax.vjp(_group_norm_in_float64(groups, silu), *wide)
        references = pull_back(jnp.asarray(np.asarray(_cotangent(y), np.float64)))
    images, _ = BOUNDS[dtype]
    assert y.dtype == dtype
    assert error(y, expected) < images
    for ours, reference in zip(gradients, references, strict=True):
        assert error(ours, reference) < 2 * images


def _group_norm_in_float64(groups: int, silu: bool) -> Callable[..., jax.Array]:
    """By jax.nn.standardize over a view with groups, in whatever type it is given."""

    def function(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
        view = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
        h = jax.nn.standardize(view, axis=(1, 3), epsilon=1e-5).reshape(x.shape)
        space = tuple(range(1, x.ndim - 1))
        u = h * jnp.expand_dims(scale, space) + jnp.expand_dims(shift, space)
        return jax.nn.silu(u) if silu else u

    return function


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(
    "shape", [(3, 7, 2, 32), (5, 192), (2, 3, 13), (1, 1), (9000, 4), (2, 9001)]
)
def test_rms_norm(shape: tuple[int, ...], dtype: str) -> None:
    x, scale = normal(0, *shape, dtype=dtype), normal(1, shape[-1])
    y, gradients = _with_gradients(lambda *a: NATIVE.rms_norm(*a, eps=1e-6), x, scale)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, scale)]
        expected, pull_back = jax.vjp(_rms_norm_in_float64, *wide)
        references = pull_back(jnp.asarray(np.asarray(_cotangent(y), np.float64)))
    images, _ = BOUNDS[dtype]
    assert y.dtype == dtype
    assert error(y, expected) < images
    for ours, reference in zip(gradients, references, strict=True):
        if shape[-1] > 1:  # one number is normalised to its sign
            assert error(ours, reference) < 2 * images


def _rms_norm_in_float64(x: jax.Array, scale: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return scale * x / jnp.hypot(length / x.shape[-1] ** 0.5, 1e-3)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(3, 7, 64), (5, 26), (2, 3, 13, 2), (9000, 4), (2, 140_000)])
def test_swiglu(shape: tuple[int, ...], dtype: str) -> None:
    x = 4 * normal(0, *shape, dtype=dtype)
    y, (dx,) = _with_gradients(NATIVE.swiglu, x)
    gate, value = np.split(np.asarray(x, np.float64), 2, axis=-1)
    images, _ = BOUNDS[dtype]
    assert y.dtype == dtype
    assert error(y, gate * scipy.special.expit(gate) * value) < images
    with jax.enable_x64(True):
        wide, dy = (jnp.asarray(np.asarray(a, np.float64)) for a in (x, _cotangent(y)))
        (expected,) = jax.vjp(XLA.swiglu, wide)[1](dy)
    assert error(dx, expected) < 2 * images


def test_swiglu_of_what_is_far_from_zero_or_not_finite() -> None:
    gate = jnp.array([-1e30, -200.0, 200.0, 1e30, jnp.nan, jnp.inf])
    x = jnp.concatenate([gate, jnp.ones(6)])
    y, dx = NATIVE.swiglu(x), jax.grad(lambda x: NATIVE.swiglu(x).sum())(x)
    np.testing.assert_allclose(y[2:], gate[2:], rtol=1e-6)
    np.testing.assert_allclose(dx[:4], [0.0, 0.0, 1.0, 1.0], atol=1e-6)
    assert np.abs(y[1]) < 1e-30 and np.isnan(dx[4])


# (batch, queries, keys, heads, channels of a head)
ATTENTIONS = {
    "one block and a part": (2, 53, 53, 3, 32),
    "a part of a vector": (2, 7, 7, 2, 12),
    "more keys than queries": (1, 5, 70, 2, 8),
    "more queries than keys": (2, 100, 3, 1, 40),
    "one token": (3, 1, 1, 2, 4),
    "whole blocks": (1, 96, 96, 2, 64),
}


def _attention_in_float64(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("case", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attention(case: tuple[int, ...], dtype: str) -> None:
    batch, queries, keys, *heads = case
    q = normal(0, batch, queries, *heads, dtype=dtype)
    k, v = (normal(seed, batch, keys, *heads, dtype=dtype) for seed in (1, 2))
    y, gradients = _with_gradients(NATIVE.attention, q, k, v)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (q, k, v)]
        expected, pull_back = jax.vjp(_attention_in_float64, *wide)
        references = pull_back(jnp.asarray(np.asarray(_cotangent(y), np.float64)))
    images, _ = BOUNDS[dtype]
    assert y.dtype == dtype
    assert error(y, expected) < images
    for ours, reference in zip(gradients, references, strict=True):
        assert ours.dtype == dtype
        if keys > 1:  # the weight of one key is 1, whatever q and k
            assert error(ours, reference) < images


def test_attention_with_scores_that_overflow_an_exponential() -> None:
    q, k, v = (normal(seed, 1, 20, 1, 8) for seed in range(3))
    y, gradients = _with_gradients(NATIVE.attention, 100 * q, 100 * k, v)
    expected, references = _with_gradients(XLA.attention, 100 * q, 100 * k, v)
    assert error(y, expected) < 1e-4 and np.isfinite(gradients[0]).all()
    assert error(gradients[2], references[2]) < 1e-4


def test_a_long_attention_keeps_no_matrix_of_tokens() -> None:
    tokens = 2048
    q = jax.ShapeDtypeStruct((1, tokens, 4, 8), jnp.float32)

    def memory(ops: Ops) -> int:
        gradient = jax.jit(jax.grad(lambda q: jnp.square(ops.attention(q, q, q)).sum()))
        return gradient.lower(q).compile().memory_analysis().temp_size_in_bytes

    assert memory(NATIVE) < 4 * tokens * tokens * 4 / 20 < memory(XLA)


def test_a_constant_image_and_extremes_are_finite() -> None:
    ones = jnp.ones((2, 8))
    options = {"groups": 2, "eps": 1e-5, "silu": True}
    constant = jnp.full((2, 4, 4, 8), 1e4)
    y, gradients = _with_gradients(
        lambda x: NATIVE.group_norm(x, ones, 0 * ones, **options), constant
    )
    np.testing.assert_allclose(y, 0, atol=1e-2)
    assert np.isfinite(gradients[0]).all()
    far = NATIVE.group_norm(normal(0, 2, 4, 4, 8), 1e4 * ones, 0 * ones, **options)
    assert np.isfinite(far).all() and float(far.min()) > -1e-30


@pytest.mark.parametrize("dtype", BOUNDS)
def test_nan_stays_where_it_belongs(dtype: str) -> None:
    x = normal(0, 3, 6, 6, 8, dtype=dtype).at[1, 2, 3, 4].set(jnp.nan)
    ones = jnp.ones((3, 8))
    y = NATIVE.group_norm(x, ones, ones, groups=2, eps=1e-5, silu=True)
    broken = np.isnan(np.asarray(y, np.float32))
    assert broken[1, ..., 4:].all() and broken.sum() == broken[1, ..., 4:].size
    y = NATIVE.conv(x, normal(1, 3, 3, 8, 4), jnp.zeros(4), padding=1)
    broken = np.isnan(np.asarray(y, np.float32))
    assert broken[1, 1:4, 2:5].all() and broken.sum() == broken[1, 1:4, 2:5].size


def test_vmap_over_images_kernels_and_both() -> None:
    x, kernel, bias = normal(0, 3, 2, 5, 5, 4), normal(1, 3, 3, 3, 4, 6), jnp.ones(6)

    def function(ops: Ops) -> Callable[..., jax.Array]:
        return lambda x, kernel: ops.conv(x, kernel, bias, padding=1)

    for axes, operands in (
        ((0, None), (x, kernel[0])),
        ((None, 0), (x[0], kernel)),
        ((0, 0), (x, kernel)),
    ):
        ours, reference = (
            jax.jit(jax.vmap(function(ops), axes))(*operands) for ops in (NATIVE, XLA)
        )
        assert error(ours, reference) < 1e-5


def test_gradients_per_example() -> None:
    x, kernel, bias = normal(0, 4, 5, 5, 4), normal(1, 3, 3, 4, 6), jnp.ones(6)

    def per_example(ops: Ops) -> jax.Array:
        def loss(kernel: jax.Array, image: jax.Array) -> jax.Array:
            return jnp.square(ops.conv(image[None], kernel, bias, padding=1)).sum()

        return jax.vmap(jax.grad(loss), (None, 0))(kernel, x)

    assert error(per_example(NATIVE), per_example(XLA)) < 1e-5


ON_FOUR_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from diffjax import accelerator

ops = accelerator.onednn().ops
rng = np.random.default_rng(0)
x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((8, 6, 6, 4), (3, 3, 4, 4)))
scale = jnp.ones((8, 4))

def loss(kernel, x, scale):
    h = ops.conv(x, kernel, jnp.ones(4), padding=1)
    return jnp.square(ops.group_norm(h, scale, scale, groups=2, eps=1e-5, silu=True) - x).mean()

expected = jax.jit(jax.grad(loss))(kernel, x, scale)
devices = jax.devices()
assert len(devices) == 4
split = lambda a: a.reshape(4, 2, *a.shape[1:])
step = jax.pmap(lambda x, s: jax.lax.pmean(jax.grad(loss)(kernel, x, s), "b"), axis_name="b")
for _ in range(20):  # four devices share the plans and the thread pool
    np.testing.assert_allclose(step(split(x), split(scale))[3], expected, rtol=1e-4, atol=1e-6)
sharding = NamedSharding(Mesh(np.asarray(devices), ("b",)), PartitionSpec("b"))
sharded = jax.jit(jax.grad(loss))(kernel, *jax.device_put((x, scale), sharding))
np.testing.assert_allclose(sharded, expected, rtol=1e-4, atol=1e-6)
"""


def test_pmap_and_sharding_give_one_devices_numbers() -> None:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_network_and_its_gradient_are_those_of_xla() -> None:
    x, t = normal(0, 3, 9, 7, 2), jnp.asarray([1.0, 50.0, 900.0])
    options: Any = {
        "base_channels": 8,
        "channel_multipliers": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (5,),
    }
    network = UNet(**options, head_channels=8, num_classes=3)
    params = jax.jit(network.init)(jax.random.key(0), x, t)["params"]
    # Zero-started layers would hide what comes before them.
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.1 * noise.normal(size=p.shape).astype(np.float32), params)

    def loss(network: UNet) -> Callable[[Any], jax.Array]:
        def of(params: Any) -> jax.Array:
            labels = jnp.asarray([0, 2, -1])
            return jnp.square(network.apply({"params": params}, x, t, labels) - x).mean()

        return of

    expected, expected_gradient = jax.jit(jax.value_and_grad(loss(network)))(params)
    native = network.clone(ops=NATIVE, remat=remat.full)
    ours, gradient = jax.jit(jax.value_and_grad(loss(native)))(params)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    errors = jax.tree.map(error, gradient, expected_gradient)
    assert max(jax.tree.leaves(errors)) < 1e-4


def test_an_empty_batch() -> None:
    x, kernel, bias = jnp.zeros((0, 5, 5, 4)), normal(1, 3, 3, 4, 6), jnp.ones(6)
    y, gradients = _with_gradients(lambda *a: NATIVE.conv(*a, padding=1), x, kernel, bias)
    assert y.shape == (0, 5, 5, 6)
    np.testing.assert_array_equal(gradients[1], jnp.zeros_like(kernel))
    empty = jnp.ones((0, 4))
    assert NATIVE.group_norm(x, empty, empty, groups=2, eps=1e-5, silu=True).shape == x.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, k, b: NATIVE.conv(x.astype(jnp.float16), k, b), "float16"),
        (lambda x, k, b: NATIVE.conv(x[0], k, b), r"expected \(B, H, W, C\)"),
        (lambda x, k, b: NATIVE.conv(x, k, b[:2]), r"bias \(2,\)"),
        (lambda x, k, b: NATIVE.conv(x[..., :2], k, b), "groups"),
        (lambda x, k, b: NATIVE.dense(x[..., :2], k[0, 0], b), r"kernel \(4, 6\)"),
        (
            lambda x, k, b: NATIVE.group_norm(x, b, b, groups=2, eps=1e-5, silu=True),
            "scale",
        ),
        (
            lambda x, k, b: NATIVE.group_norm(
                x, jnp.ones((2, 4)), jnp.ones((2, 4)), groups=3, eps=1e-5, silu=True
            ),
            "3 groups",
        ),
        (lambda x, k, b: NATIVE.rms_norm(x, b, eps=1e-6), r"scale \(6,\)"),
        (lambda x, k, b: NATIVE.swiglu(x[..., 1:]), r"expected \(\.\.\., 2 C\)"),
        (lambda x, k, b: NATIVE.attention(x, x[:, 1:], x), r"k \(2, 4, 5, 4\)"),
        (lambda x, k, b: NATIVE.attention(x, x[..., 1:], x[..., 1:]), r"twice \(B, L', heads, D"),
        (lambda x, k, b: NATIVE.attention(x, x, x.astype(jnp.bfloat16)), "expected one type"),
        (lambda x, k, b: NATIVE.attention(x[0], x[0], x[0]), r"expected \(B, L, heads, D\)"),
    ],
)
def test_what_does_not_fit_is_told(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(normal(0, 2, 5, 5, 4), normal(1, 3, 3, 4, 6), jnp.ones(6))


def test_auto_takes_it() -> None:
    kernels = accelerator.auto()
    assert kernels.ops is NATIVE
    assert "oneDNN" in kernels.line
