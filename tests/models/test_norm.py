"""Group normalisation against Flax's and PyTorch's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models.norm import GroupNorm

X = 2 + 3 * jax.random.normal(jax.random.key(0), (2, 5, 7, 64))
PARAMS = {"params": {
    "scale": jax.random.normal(jax.random.key(1), (64,)),
    "bias": jax.random.normal(jax.random.key(2), (64,)),
}}  # fmt: skip


@pytest.mark.parametrize("groups", [1, 4, 32, 64])
def test_that_of_flax(groups):
    theirs = nn.GroupNorm(num_groups=groups, epsilon=1e-5)
    np.testing.assert_allclose(
        GroupNorm(groups=groups).apply(PARAMS, X), theirs.apply(PARAMS, X), atol=1e-5
    )


def test_that_of_torch_with_gradients():
    torch = pytest.importorskip("torch", reason="a second implementation of GroupNorm")
    x = torch.tensor(np.asarray(X).transpose(0, 3, 1, 2)).requires_grad_()
    scale, bias = (torch.tensor(np.asarray(PARAMS["params"][k])) for k in ("scale", "bias"))
    theirs = torch.nn.functional.group_norm(x, 16, scale, bias, eps=1e-5)
    theirs.square().sum().backward()
    loss = lambda x: jnp.square(GroupNorm().apply(PARAMS, x)).sum()  # noqa: E731
    np.testing.assert_allclose(
        GroupNorm().apply(PARAMS, X).transpose(0, 3, 1, 2), theirs.detach().numpy(), atol=1e-5
    )
    np.testing.assert_allclose(
        jax.grad(loss)(X).transpose(0, 3, 1, 2), x.grad.numpy(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (48, 8), (128, 32), (256, 32)])
def test_default_groups(channels, groups):
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, channels))
    module = GroupNorm()
    params = module.init(jax.random.key(1), x)
    np.testing.assert_array_equal(
        module.apply(params, x), GroupNorm(groups=groups).apply(params, x)
    )


def test_a_constant_image_and_one_pixel_are_finite():
    for x in (jnp.full((1, 4, 4, 32), 7.0), jnp.ones((2, 1, 1, 32))):
        module = GroupNorm()
        params = module.init(jax.random.key(0), x)
        np.testing.assert_allclose(module.apply(params, x), 0, atol=1e-3)
        gradient = jax.grad(lambda x, m=module, p=params: m.apply(p, x).sum())(x)
        assert np.isfinite(gradient).all()


def test_bfloat16_keeps_float32_statistics():
    x = (X + 30).astype(jnp.bfloat16)
    low = GroupNorm(dtype=jnp.bfloat16).apply(PARAMS, x)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        low.astype(jnp.float32), GroupNorm().apply(PARAMS, x.astype(jnp.float32)), atol=0.06
    )


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="64 channels can't be divided into 5 groups"):
        GroupNorm(groups=5).apply(PARAMS, X)


def test_float64_is_float64_throughout():
    with jax.enable_x64(True):
        x, scale, shift = (
            jax.random.normal(jax.random.key(i), shape, jnp.float64)
            for i, shape in enumerate([(2, 5, 7, 32), (2, 32), (2, 32)])
        )
        module = GroupNorm(groups=8, eps=1e-30, dtype=jnp.float64)
        params = module.init(jax.random.key(3), x)
        plain = np.asarray(module.apply(params, x + 3.0))
        grouped = plain.reshape(2, 35, 8, 4)
        np.testing.assert_allclose(grouped.mean((1, 3)), 0, atol=1e-13)
        np.testing.assert_allclose(grouped.std((1, 3)), 1, rtol=1e-12)
        modulated = module.apply(params, x + 3.0, (scale, shift))
        expected = plain * (1 + np.asarray(scale))[:, None, None] + np.asarray(shift)[:, None, None]
        assert modulated.dtype == jnp.float64
        np.testing.assert_allclose(modulated, expected, rtol=1e-11, atol=1e-12)
