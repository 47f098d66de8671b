"""Self-attention against PyTorch, its quadratic form and its symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import SelfAttention, linear_attention
from tests.weights import normal_like

X = jax.random.normal(jax.random.key(0), (2, 3, 5, 32))
MIXERS = {"softmax": jax.nn.dot_product_attention, "linear": linear_attention}


def randomised(module, *inputs):
    """Parameters all drawn at random, since a zero start would hide everything."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return normal_like(shapes, scale=0.2)


def test_linear_attention_is_its_quadratic_form():
    q, k, v = jax.random.normal(jax.random.key(2), (3, 2, 15, 4, 8))
    q64, k64, v64 = (np.asarray(a, np.float64) for a in (q, k, v))
    rho_q = np.exp(q64) / np.exp(q64).sum(3, keepdims=True)
    rho_k = np.exp(k64) / np.exp(k64).sum(1, keepdims=True)
    weights = np.einsum("blhd,bmhd->bhlm", rho_q, rho_k)  # the pixels x pixels matrix
    # Every row is an average over the pixels (Shen et al. 2021, section 3.3).
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(
        linear_attention(q, k, v), np.einsum("bhlm,bmhd->blhd", weights, v64), atol=1e-5
    )


def test_softmax_attention_block_is_that_of_torch():
    torch = pytest.importorskip("torch", reason="a second implementation of attention")
    module = SelfAttention(head_channels=8)
    params = randomised(module, X)
    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), params["params"])
    attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(p["qkv"]["kernel"].T)
        attention.in_proj_bias.copy_(p["qkv"]["bias"])
        attention.out_proj.weight.copy_(p["out"]["kernel"].T)
        attention.out_proj.bias.copy_(p["out"]["bias"])
        x = torch.tensor(np.asarray(X).reshape(2, 15, 32))
        h = torch.nn.functional.group_norm(
            x.transpose(1, 2), 8, p["norm"]["scale"], p["norm"]["bias"], eps=1e-5
        ).transpose(1, 2)
        theirs = x + attention(h, h, h, need_weights=False)[0]
    np.testing.assert_allclose(
        module.apply(params, X).reshape(2, 15, 32), theirs.numpy(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", MIXERS)
def test_pixels_are_a_set(name):
    module = SelfAttention(head_channels=8, mix=MIXERS[name])
    params = randomised(module, X)
    order = np.random.default_rng(0).permutation(15)

    def shuffle(x):
        return x.reshape(2, 15, 32)[:, order].reshape(2, 3, 5, 32)

    np.testing.assert_allclose(
        module.apply(params, shuffle(X)), shuffle(module.apply(params, X)), rtol=1e-4, atol=1e-4
    )
    # And every pixel sees every other one.
    moved = module.apply(params, X.at[0, 0, 0].add(1.0)) - module.apply(params, X)
    assert np.all(np.abs(moved[0]).max(-1) > 0) and np.all(moved[1] == 0)


@pytest.mark.parametrize("name", MIXERS)
def test_it_starts_as_the_identity(name):
    module = SelfAttention(head_channels=16, mix=MIXERS[name])
    params = module.init(jax.random.key(0), X)
    np.testing.assert_array_equal(module.apply(params, X), X)


@pytest.mark.parametrize("name", MIXERS)
def test_bfloat16_is_near_float32(name):
    params = randomised(SelfAttention(head_channels=8, mix=MIXERS[name]), X)
    exact = SelfAttention(head_channels=8, mix=MIXERS[name]).apply(params, X)
    low = SelfAttention(head_channels=8, mix=MIXERS[name], dtype=jnp.bfloat16).apply(
        params, X.astype(jnp.bfloat16)
    )
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), exact, atol=0.1)


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="32 channels can't have heads of 12"):
        SelfAttention(head_channels=12).init(jax.random.key(0), X)
