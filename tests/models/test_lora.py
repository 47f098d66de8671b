"""Low-rank adapters: next to their kernels as torch computes them, merged, and of no effect."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import lora, remat
from diffjax.models.blocks import Conv3x3, Dense

X = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype(np.float32)


class Net(nn.Module):
    dtype: type = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        conv = nn.remat(Conv3x3, policy=remat.full) if self.remat else Conv3x3
        h = conv(8, stride=2, dtype=self.dtype, name="down")(x)
        h = nn.silu(Dense(8, dtype=self.dtype, name="mlp_in")(h))
        return nn.Dense(4, use_bias=False, dtype=self.dtype, name="mlp_out")(h)


def adapters(params, layers="", rank=2, seed=1, alpha=3.0):
    """Adapters whose `up` is not zero."""
    tree = lora.init(jax.random.key(seed), params, rank=rank, layers=layers)
    tree = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape) / 4 if not x.any() else x, tree
    )
    return lora.of_tree(tree, alpha=alpha)


@pytest.fixture(scope="module")
def params():
    return Net().init(jax.random.key(0), X)["params"]


def apart(net, params, found, x=X, **how):
    with lora.intercepted(found, **how):
        return net.apply({"params": params}, x)


@pytest.mark.parametrize("is_remat", (False, True))
def test_apart_is_merged(params, is_remat):
    found = adapters(params)
    assert set(found) == {(name, "kernel") for name in ("down", "mlp_in", "mlp_out")}
    merged = lora.merge(params, found, scale=0.5)
    expected = Net().apply({"params": merged}, X)
    made = jax.jit(lambda p: apart(Net(remat=is_remat), p, found, scale=0.5))(params)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    assert np.abs(np.asarray(expected) - Net().apply({"params": params}, X)).max() > 0.1


def test_a_convolutions_adapter_is_two_of_torchs(params):
    torch = pytest.importorskip("torch")
    found = adapters(params, "^down$")[("down", "kernel")]
    net = Conv3x3(8, stride=2)
    kernel = {"kernel": params["down"]["kernel"], "bias": jnp.zeros(8)}
    made = apart(net, kernel, {("kernel",): found})
    down, up = (torch.tensor(np.asarray(x)).permute(3, 2, 0, 1) for x in found[:2])
    x = torch.tensor(X).permute(0, 3, 1, 2)
    h = torch.nn.functional.conv2d(x, down, stride=2, padding=1)
    expected = torch.nn.functional.conv2d(h, up).permute(0, 2, 3, 1) * 3.0 / 2
    change = made - net.apply({"params": kernel}, X)
    np.testing.assert_allclose(change, expected.numpy(), atol=1e-5)


def test_new_adapters_change_nothing(params):
    tree = lora.init(jax.random.key(3), params, rank=4, layers="mlp")
    assert jax.tree.map(jnp.shape, tree) == {
        "mlp_in": {"kernel": {"down": (8, 4), "up": (4, 8)}},
        "mlp_out": {"kernel": {"down": (8, 4), "up": (4, 4)}},
    }
    found = lora.of_tree(tree, alpha=4.0)
    expected = Net().apply({"params": params}, X)
    np.testing.assert_array_equal(apart(Net(), params, found), expected)
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params, found), params)
    # Half the variance of a layer's usual initialisation or more: gradients of `up` are not 0.
    deviation = np.std(np.asarray(tree["mlp_in"]["kernel"]["down"]))
    assert 0.2 < deviation < 0.55


def test_a_small_change_is_rounded_away_in_bfloat16_only_where_it_is_merged():
    # Numbers that cancel, so that the result is small, too.
    kernel = jnp.tile(jnp.array([[1.0], [-1.0]], jnp.bfloat16), (4, 3))
    net, params = nn.Dense(3, use_bias=False, dtype=jnp.bfloat16), {"kernel": kernel}
    found = {("kernel",): lora.Adapter(jnp.full((8, 1), 0.01), jnp.full((1, 3), 0.01), 1.0)}
    merged = lora.merge(params, found)["kernel"]
    assert merged.dtype == jnp.bfloat16
    x = jnp.ones((1, 8))
    assert not np.any(net.apply({"params": {"kernel": merged}}, x))
    np.testing.assert_allclose(np.asarray(apart(net, params, found, x), float), 8e-4, rtol=0.02)


@pytest.mark.parametrize(
    ("layers", "message"),
    (("(", "is no regular expression"), ("attention", "matches none of the layers, such as down")),
)
def test_wrong_layers(params, layers, message):
    with pytest.raises(ValueError, match=message):
        lora.init(jax.random.key(0), params, rank=2, layers=layers)


def test_adapters_of_another_network(params):
    found = adapters(params)
    with pytest.raises(ValueError, match="the adapter of mlp_in/kernel fits no parameter"):
        lora.merge({"down": params["down"], "mlp_out": params["mlp_out"]}, found)
    other = {**params, "mlp_in": {"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)}}
    with pytest.raises(ValueError, match=r"mlp_in/kernel is of \(8, 8\), not \(3, 3\)"):
        lora.merge(other, found)


def test_a_layer_that_is_neither_a_linear_map_nor_a_3x3_convolution():
    net = nn.Conv(4, (1, 1), name=None)
    params = net.init(jax.random.key(0), X)["params"]
    found = adapters({"kernel": params["kernel"]})
    with pytest.raises(ValueError, match="is a Conv: it can't have an adapter"):
        apart(net, params, found)
