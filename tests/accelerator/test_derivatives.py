"""Forward mode and derivatives of higher order through the accelerator's operations."""

import collections
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from jax.test_util import check_grads

from diffjax.accelerator.ops import NATIVE
from diffjax.losses import adversarial
from diffjax.models import UNet, remat
from diffjax.models.gan import Discriminator
from diffjax.models.ops import XLA, Ops
from tests.accelerator.closeness import BOUNDS, error, normal
from tests.weights import normal_like

# (batch, height, width, in, out, kernel, stride, padding, groups)
CONVOLUTIONS = {
    "tiles cut at every edge": (33, 9, 7, 24, 48, 3, 1, 1, 1),
    "stride 2, odd height": (3, 9, 8, 16, 24, 3, 2, 1, 1),
    "wide border": (2, 5, 5, 8, 8, 3, 1, 3, 1),
    "1x1": (2, 5, 5, 8, 4, 1, 1, 0, 1),
    "depthwise 7x7": (4, 8, 8, 12, 12, 7, 1, 3, 12),
    "two groups": (7, 6, 6, 8, 12, 3, 1, 0, 2),
}
NORMALISATIONS = [((3, 5, 4, 12), 3), ((4, 49, 32), 8), ((1, 1, 4), 1)]

Function = Callable[..., jax.Array]


@pytest.fixture(scope="module", autouse=True)
def _library(native_library: str) -> None:
    """Every test here needs it."""


def _conv(ops: Ops, case: tuple[int, ...]) -> Function:
    *_, stride, padding, groups = case
    return lambda x, kernel, bias: ops.conv(
        x, kernel, bias, stride=stride, padding=padding, groups=groups
    )


def _operands(case: tuple[int, ...], seed: int, dtype: str = "float32") -> tuple[jax.Array, ...]:
    batch, height, width, channels, features, side, *_, groups = case
    return (
        normal(seed, batch, height, width, channels, dtype=dtype),
        normal(seed + 1, side, side, channels // groups, features),
        normal(seed + 2, features),
    )


def _jvp(function: Function, operands: Any, tangents: Any) -> jax.Array:
    """Of the operands that have a tangent; None is none."""
    varied = [i for i, tangent in enumerate(tangents) if tangent is not None]

    @jax.jit
    def derivative(operands: Any, moved: Any) -> jax.Array:
        def of(*some: jax.Array) -> jax.Array:
            given = dict(zip(varied, some, strict=True))
            return function(*(given.get(i, one) for i, one in enumerate(operands)))

        return jax.jvp(of, tuple(operands[i] for i in varied), moved)[1]

    return derivative(operands, tuple(tangents[i] for i in varied))


def _derivative(function: Function, tangents: Any) -> Callable[..., Any]:
    """The gradient of a quadratic form in the jvp: reverse over forward mode."""

    def form(*operands: jax.Array) -> jax.Array:
        y, dy = jax.jvp(function, operands, tangents)
        return (jnp.square(dy) + y * dy).sum().astype(jnp.float32)

    return jax.jit(jax.grad(form, argnums=(0, 1, 2)))


def _in(dtype: Any, operands: Any) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a, dtype)), operands)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_tangents_of_convolutions(case: tuple[int, ...], dtype: str) -> None:
    operands, (dx, dkernel, dbias) = _operands(case, 0, dtype), _operands(case, 3, dtype)
    for tangents in ((dx, None, None), (None, None, dbias), (dx, dkernel, dbias)):
        dy = _jvp(_conv(NATIVE, case), operands, tangents)
        expected = _jvp(_conv(XLA, case), *_in(np.float32, (operands, tangents)))
        assert dy.dtype == dtype
        assert error(dy, expected) < BOUNDS[dtype][0]


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_reverse_over_forward_through_convolutions(case: tuple[int, ...]) -> None:
    operands, tangents = _operands(case, 0), _operands(case, 3)
    gradients, references = (
        _derivative(_conv(ops, case), tangents)(*operands) for ops in (NATIVE, XLA)
    )
    for ours, reference in zip(gradients, references, strict=True):
        assert error(ours, reference) < 1e-4  # a square of what is within 2e-5


# Central differences are off by a third derivative, up to 1e-3 of the value for this step.
QUOTIENTS: Any = {"order": 2, "atol": 5e-3, "rtol": 5e-3, "eps": 0.01}


@pytest.mark.parametrize("case", [(2, 5, 4, 4, 6, 3, 2, 1, 2), (2, 4, 4, 3, 2, 3, 1, 1, 1)])
def test_difference_quotients_of_convolutions(case: tuple[int, ...]) -> None:
    operands = _operands(case, 0)
    check_grads(_conv(NATIVE, case), operands, **QUOTIENTS)

    def of_bias(*operands: jax.Array) -> jax.Array:
        y, pull_back = jax.vjp(_conv(NATIVE, case), *operands)
        return pull_back(jnp.square(y))[2]

    check_grads(of_bias, operands, **QUOTIENTS | {"order": 1})


def _norm(ops: Ops, groups: int, silu: bool) -> Function:
    return lambda *operands: ops.group_norm(*operands, groups=groups, eps=1e-5, silu=silu)


def _norm_in_float64(groups: int, silu: bool) -> Function:
    """By jax.nn.standardize over a view with groups, in whatever type it is given."""

    def function(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
        view = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
        h = jax.nn.standardize(view, axis=(1, 3), epsilon=1e-5).reshape(x.shape)
        space = tuple(range(1, x.ndim - 1))
        u = h * jnp.expand_dims(scale, space) + jnp.expand_dims(shift, space)
        return jax.nn.silu(u) if silu else u

    return function


def _norm_operands(shape: tuple[int, ...], seed: int, dtype: str) -> tuple[jax.Array, ...]:
    scale, shift = (normal(seed + i, shape[0], shape[-1]) for i in (1, 2))
    # A mean of three deviations: what is lost by subtracting squares would show.
    return (2 * normal(seed, *shape) + 6).astype(dtype), scale, shift


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("shape", "groups"), NORMALISATIONS)
def test_tangents_of_group_norm(
    shape: tuple[int, ...], groups: int, silu: bool, dtype: str
) -> None:
    operands, (dx, *others) = (_norm_operands(shape, seed, dtype) for seed in (0, 3))
    for tangents in ((dx, None, None), (dx, *others)):
        dy = _jvp(_norm(NATIVE, groups, silu), operands, tangents)
        with jax.enable_x64(True):
            wide = _in(np.float64, (operands, tangents))
            expected = _jvp(_norm_in_float64(groups, silu), *wide)
        assert dy.dtype == dtype
        assert error(dy, expected) < 2 * BOUNDS[dtype][0]


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("shape", "groups"), NORMALISATIONS)
def test_reverse_over_forward_through_group_norm(
    shape: tuple[int, ...], groups: int, silu: bool
) -> None:
    operands, tangents = (_norm_operands(shape, seed, "float32") for seed in (0, 3))
    gradients = _derivative(_norm(NATIVE, groups, silu), tangents)(*operands)
    with jax.enable_x64(True):
        wide = _in(np.float64, (operands, tangents))
        references = _derivative(_norm_in_float64(groups, silu), wide[1])(*wide[0])
    for ours, reference in zip(gradients, references, strict=True):
        assert error(ours, reference) < 1e-4


@pytest.mark.parametrize("silu", [False, True])
def test_difference_quotients_of_group_norm(silu: bool) -> None:
    operands = _norm_operands((2, 3, 3, 4), 0, "float32")
    check_grads(_norm(NATIVE, 2, silu), operands, **QUOTIENTS)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_tangents_of_attention(dtype: str) -> None:
    operands, (dq, dk, dv) = (_attention_operands(seed, dtype) for seed in (0, 3))
    for tangents in ((dq, None, None), (None, dk, dv), (dq, dk, dv)):
        dy = _jvp(NATIVE.attention, operands, tangents)
        expected = _jvp(XLA.attention, *_in(np.float32, (operands, tangents)))
        assert dy.dtype == dtype
        assert error(dy, expected) < BOUNDS[dtype][0]


def test_reverse_over_forward_through_attention() -> None:
    operands, tangents = (_attention_operands(seed, "float32") for seed in (0, 3))
    gradients, references = (
        _derivative(ops.attention, tangents)(*operands) for ops in (NATIVE, XLA)
    )
    for ours, reference in zip(gradients, references, strict=True):
        assert error(ours, reference) < 1e-4


def test_difference_quotients_of_attention() -> None:
    check_grads(NATIVE.attention, _attention_operands(0, "float32"), **QUOTIENTS)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_tangents_of_rms_norm(dtype: str) -> None:
    operands, (dx, dscale) = (
        (normal(seed, 3, 5, 12, dtype=dtype), normal(seed + 1, 12)) for seed in (0, 3)
    )
    function = functools.partial(NATIVE.rms_norm, eps=1e-6)
    for tangents in ((dx, None), (None, dscale), (dx, dscale)):
        dy = _jvp(function, operands, tangents)
        expected = _jvp(
            functools.partial(XLA.rms_norm, eps=1e-6), *_in(np.float32, (operands, tangents))
        )
        assert dy.dtype == dtype
        assert error(dy, expected) < BOUNDS[dtype][0]


def test_difference_quotients_of_rms_norm() -> None:
    operands = normal(0, 3, 5), normal(1, 5)
    check_grads(functools.partial(NATIVE.rms_norm, eps=1e-6), operands, **QUOTIENTS)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_tangents_of_swiglu(dtype: str) -> None:
    operands, tangents = ((normal(seed, 3, 5, 12, dtype=dtype),) for seed in (0, 1))
    dy = _jvp(NATIVE.swiglu, operands, tangents)
    expected = _jvp(XLA.swiglu, *_in(np.float32, (operands, tangents)))
    assert dy.dtype == dtype
    assert error(dy, expected) < BOUNDS[dtype][0]


def test_difference_quotients_of_swiglu() -> None:
    check_grads(NATIVE.swiglu, (normal(0, 3, 8),), **QUOTIENTS)


def _attention_operands(seed: int, dtype: str) -> tuple[jax.Array, ...]:
    q = normal(seed, 2, 7, 2, 6, dtype=dtype)
    return q, *(normal(seed + i, 2, 9, 2, 6, dtype=dtype) for i in (1, 2))


def test_vmap_of_a_jvp_and_a_jvp_of_vmap() -> None:
    x, kernel, bias = normal(0, 3, 2, 5, 5, 4), normal(1, 3, 3, 4, 6), jnp.ones(6)

    def derivatives(ops: Ops) -> Any:
        def function(x: jax.Array) -> jax.Array:
            h = ops.conv(x, kernel, bias, padding=1)
            return ops.group_norm(h, h[:, 0, 0], h[:, 1, 1], groups=2, eps=1e-5, silu=True)

        def tangent(x: jax.Array, dx: jax.Array, function: Function = function) -> jax.Array:
            return jax.jvp(function, (x,), (dx,))[1]

        dx = normal(2, *x.shape)
        of_vmap = tangent(x, dx, jax.vmap(function))
        return jax.vmap(tangent)(x, dx), of_vmap, jax.vmap(tangent, (None, 0))(x[0], dx)

    for ours, reference in zip(derivatives(NATIVE), derivatives(XLA), strict=True):
        assert error(ours, reference) < 2e-5


def test_a_jvp_under_pmap() -> None:
    x, kernel = normal(0, 2, 5, 5, 4), normal(1, 3, 3, 4, 6)

    def tangent(ops: Ops) -> Function:
        function = _conv(ops, (3, 1, 1, 1))
        return lambda x: jax.jvp(lambda x: function(x, kernel, jnp.ones(6)), (x,), (x,))[1]

    ours = jax.pmap(tangent(NATIVE), devices=jax.devices()[:1])(x[None])[0]
    assert error(ours, tangent(XLA)(x)) < 2e-5


def test_a_shard_map_that_would_not_sum_gradients_is_refused() -> None:
    """Where operands are known to differ between devices, a result must be as well."""
    mesh, over = Mesh(np.asarray(jax.devices()[:1]), ("b",)), PartitionSpec("b")
    x, kernel = normal(0, 2, 5, 5, 4), normal(1, 3, 3, 4, 6)

    def sharded(**options: bool) -> Function:
        return jax.shard_map(
            lambda x: NATIVE.conv(x, kernel, jnp.ones(6)),
            mesh=mesh, in_specs=over, out_specs=over, **options,
        )  # fmt: skip

    with pytest.raises(ValueError, match="check_vma=False"):
        sharded()(x)
    assert error(sharded(check_vma=False)(x), NATIVE.conv(x, kernel, jnp.ones(6))) == 0


class Step:
    """MeanFlow's loss (Geng et al. 2025, Algorithm 1) of a small U-Net, of one time."""

    def __init__(self) -> None:
        self.x, self.v = normal(0, 3, 9, 7, 2), normal(1, 3, 9, 7, 2)
        self.t = jnp.asarray([0.1, 0.5, 0.9])
        self.network = UNet(
            base_channels=8, channel_multipliers=(1,), num_res_blocks=1, head_channels=8,
            attention_resolutions=(9,),
        )  # fmt: skip
        shapes = jax.eval_shape(self.network.init, jax.random.key(0), self.x, self.t)
        # Zero-started layers would hide what comes before them.
        self.params = normal_like(shapes, scale=0.2)

    def along(self, params: Any, network: UNet) -> tuple[jax.Array, jax.Array]:
        """(u, du / dt) on the path with velocity v."""
        tangents = self.v, jnp.ones_like(self.t)
        return jax.jvp(lambda x, t: network.apply(params, x, t), (self.x, self.t), tangents)

    def _loss(self, u: jax.Array, du: jax.Array) -> jax.Array:
        return jnp.square(u - jax.lax.stop_gradient(self.v - 0.3 * du)).mean()

    def fused(self, params: Any, network: UNet) -> jax.Array:
        return self._loss(*self.along(params, network))

    def split(self, params: Any, network: UNet) -> jax.Array:
        _, du = self.along(jax.lax.stop_gradient(params), network)
        return self._loss(network.apply(params, self.x, self.t), du)

    def plain(self, params: Any, network: UNet) -> jax.Array:
        return jnp.square(network.apply(params, self.x, self.t) - self.v).mean()


@pytest.fixture(scope="module")
def step() -> Step:
    return Step()


@pytest.mark.usefixtures("compile_quickly")
def test_a_networks_tangent_is_that_of_xla(step: Step) -> None:
    of = jax.jit(step.along, static_argnums=1)
    for ours, reference in zip(
        of(step.params, step.network.clone(ops=NATIVE)), of(step.params, step.network), strict=True
    ):
        assert error(ours, reference) < 1e-4


def _native_calls(compiled: Any) -> dict[str, int]:
    targets = re.findall(r'custom_call_target="diffjax_(\w+)"', compiled.as_text())
    return dict(collections.Counter(targets))


@pytest.mark.usefixtures("compile_quickly")
def test_a_mean_flows_gradient_is_that_of_xla_and_computes_only_what_it_needs(step: Step) -> None:
    def compiled(loss: Callable[..., jax.Array], network: UNet) -> Any:
        gradient = jax.jit(jax.grad(loss), static_argnums=1)
        return gradient.lower(step.params, network).compile()

    native = step.network.clone(ops=NATIVE)
    fused, split = compiled(step.fused, native), compiled(step.split, native)
    saving = compiled(step.fused, native.clone(remat=remat.layers))
    expected = compiled(step.fused, step.network)(step.params)
    for gradient in (fused, split, saving):
        errors = jax.tree.map(error, gradient(step.params), expected)
        assert max(jax.tree.leaves(errors)) < 1e-4

    plain = _native_calls(compiled(step.plain, native))
    layers, norms = plain["convolution_forward"], plain["group_norm_forward"]
    assert plain == {
        "convolution_forward": layers,
        "convolution_input_gradient": layers - 1,  # not with respect to the network's input
        "convolution_kernel_gradient": layers,
        "group_norm_forward": norms,
        "group_norm_backward": norms,
    }
    # The tangent is one forward convolution a layer, and nothing is differentiated twice.
    assert (
        _native_calls(fused) == _native_calls(split) == plain | {"convolution_forward": 2 * layers}
    )


def test_a_gradient_penaltys_gradient_is_that_of_xla() -> None:
    network, x = Discriminator(channels=(8, 12), zero=False), normal(1, 6, 8, 8, 1)
    params = normal_like(jax.eval_shape(network.init, jax.random.key(0), x)["params"], scale=0.3)

    def gradient(ops: Ops) -> Any:
        def penalty(params: Any) -> jax.Array:
            logits_of = functools.partial(network.clone(ops=ops).apply, {"params": params})
            return adversarial.gradient_penalty(logits_of, x)[1].mean()  # type: ignore[arg-type]

        return jax.jit(jax.grad(penalty))(params)

    ours, reference = gradient(NATIVE), gradient(XLA)
    for layer in ("Conv3x3_0", "Conv3x3_4", "Dense_1"):
        assert error(ours[layer]["kernel"], reference[layer]["kernel"]) < 1e-4
