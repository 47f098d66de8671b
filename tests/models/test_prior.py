"""The prior's transformer: every part of its sequence is heard, padding is nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.models.condition import Condition, SpatialMap, Text, drop, null
from diffjax.models.prior import Prior, _Layer
from tests.weights import moved

X = jax.random.normal(jax.random.key(0), (2, 6))
T = jnp.array([3.0, 700.0])
MASK = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
SMALL = {"width": 16, "layers": 2, "head_channels": 8}


def condition():
    tokens = jax.random.normal(jax.random.key(3), (2, 4, 5))
    return Condition(
        label=jnp.array([0, 2]),
        text=Text(tokens, MASK, jax.random.normal(jax.random.key(4), (2, 5))),
    )


@pytest.fixture(scope="module")
def network():
    net = Prior(**SMALL, num_classes=3, text_width=5)
    params = jax.jit(net.init)(jax.random.key(1), X, T, condition())["params"]
    return jax.jit(net.apply), moved(params, scale=0.1)


def out(network, cond, *, x=X, t=T):
    apply, params = network
    return np.asarray(apply({"params": params}, x, t, cond))


def test_it_starts_at_the_mean():
    net = Prior(**SMALL)
    params = net.init(jax.random.key(1), X, T)
    np.testing.assert_array_equal(net.apply(params, X, T), np.zeros((2, 6)))


def test_every_part_is_heard(network):
    cond = condition()
    first = out(network, cond)
    text = cond.text
    others = {
        "x": out(network, cond, x=X + 0.1),
        "t": out(network, cond, t=T + 5),
        "label": out(network, cond._replace(label=jnp.array([1, 1]))),
        "token": out(network, cond._replace(text=text._replace(tokens=text.tokens + 0.5))),
        "pooled": out(network, cond._replace(text=text._replace(pooled=text.pooled + 0.5))),
    }
    for name, other in others.items():
        assert (np.abs(other - first).max(-1) > 1e-4).all(), name


def test_padding_is_nothing_and_a_dropped_text_is_no_text(network):
    cond = condition()
    text = cond.text
    garbage = jnp.where(MASK[..., None], text.tokens, 99.0)
    other = cond._replace(text=text._replace(tokens=garbage))
    np.testing.assert_array_equal(out(network, cond), out(network, other))
    dropped = out(network, drop(cond, jnp.array([True, False])))
    np.testing.assert_allclose(dropped[1], out(network, cond)[1], atol=1e-6)
    np.testing.assert_allclose(dropped[0], out(network, null(cond))[0], atol=1e-6)
    assert np.abs(dropped[0] - out(network, cond)[0]).max() > 1e-3


def test_a_layer_is_torch_s_with_a_causal_mask():
    torch = pytest.importorskip("torch", reason="a second implementation of the layer")
    layer = _Layer(8, 0.0, jnp.float32)
    x = jax.random.normal(jax.random.key(5), (3, 7, 16))
    seen = jnp.tri(7, dtype=bool)[None, None]
    params = moved(layer.init(jax.random.key(6), x, seen, False)["params"], scale=0.2)
    ours = layer.apply({"params": params}, x, seen, False)
    theirs = torch.nn.TransformerEncoderLayer(
        16, 2, 64, 0.0, functools.partial(torch.nn.functional.gelu, approximate="tanh"),
        batch_first=True, norm_first=True,
    )  # fmt: skip
    kernel = np.asarray(params["qkv"]["kernel"])
    # Ours holds q, k and v in turn, each of all heads.
    weights = {
        "self_attn.in_proj_weight": kernel.T, "self_attn.in_proj_bias": np.zeros(48),
        "self_attn.out_proj.weight": params["out"]["kernel"].T,
        "self_attn.out_proj.bias": params["out"]["bias"],
        "linear1.weight": params["expand"]["kernel"].T, "linear1.bias": params["expand"]["bias"],
        "linear2.weight": params["contract"]["kernel"].T,
        "linear2.bias": params["contract"]["bias"],
        "norm1.weight": params["attention_norm"]["scale"],
        "norm1.bias": params["attention_norm"]["bias"],
        "norm2.weight": params["mlp_norm"]["scale"], "norm2.bias": params["mlp_norm"]["bias"],
    }  # fmt: skip
    theirs.load_state_dict({k: torch.tensor(np.array(v)).float() for k, v in weights.items()})
    with torch.no_grad():
        mask = torch.nn.Transformer.generate_square_subsequent_mask(7)
        expected = theirs(torch.tensor(np.array(x)), src_mask=mask).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-5)


def test_rematerialisation_changes_no_gradient():
    plain, saving = Prior(**SMALL), Prior(**SMALL, remat=jax.checkpoint_policies.nothing_saveable)
    params = moved(plain.init(jax.random.key(1), X, T)["params"], scale=0.1)

    def gradient(net):
        return jax.grad(lambda p: jnp.square(net.apply({"params": p}, X, T)).sum())(params)

    for a, b in zip(*(jax.tree.leaves(gradient(net)) for net in (plain, saving)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def test_wrong_arguments():
    def call(net, x=X, cond=None):
        jax.eval_shape(net.init, jax.random.key(0), x, T, cond)

    with pytest.raises(UserError, match="layers"):
        call(Prior(layers=0))
    with pytest.raises(ValueError, match=r"embeddings \(B, D\), not \(2, 6, 1\)"):
        call(Prior(**SMALL), x=X[..., None])
    with pytest.raises(ValueError, match="heads of 5"):
        call(Prior(width=16, head_channels=5))
    spatial = SpatialMap(jnp.zeros((2, 4, 4, 1)), jnp.ones(2, bool))
    with pytest.raises(ValueError, match="a map was given"):
        call(Prior(**SMALL), cond=Condition(map=spatial))
    with pytest.raises(ValueError, match="text_width 4"):
        call(Prior(**SMALL, text_width=4), cond=condition()._replace(label=None))
