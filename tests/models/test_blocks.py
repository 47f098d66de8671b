"""Residual blocks and changes of resolution against PyTorch."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import ConvNeXtBlock, ResNetBlock
from diffjax.models.blocks import (
    Downsample,
    Upsample,
    average_pool,
    depth_to_space,
    nearest,
    space_to_depth,
)
from tests.weights import normal_like

X = jax.random.normal(jax.random.key(0), (2, 7, 6, 32))
E = jax.random.normal(jax.random.key(1), (2, 16))


def randomised(module, *inputs, **static):
    init = functools.partial(module.init, **static)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
    return normal_like(shapes, scale=0.2)


class Torch:
    """The layers' PyTorch counterparts, reading our parameters."""

    def __init__(self, torch, params):
        self.torch, self.f = torch, torch.nn.functional
        self.p = jax.tree.map(lambda a: torch.tensor(np.array(a)), params["params"])

    def image(self, x):
        return self.torch.tensor(np.array(x).transpose(0, 3, 1, 2))

    def conv(self, x, name, **options):
        layer = self.p[name]
        return self.f.conv2d(x, layer["kernel"].permute(3, 2, 0, 1), layer["bias"], **options)

    def dense(self, x, name):
        layer = self.p[name]
        return self.f.linear(x, layer["kernel"].T, layer["bias"])

    def pixels(self, x, name):
        return self.dense(x.permute(0, 2, 3, 1), name).permute(0, 3, 1, 2)

    def norm(self, x, name, groups):
        layer = self.p[name]
        return self.f.group_norm(x, groups, layer["scale"], layer["bias"], eps=1e-5)

    def embedding(self):
        e = self.torch.tensor(np.array(E))
        return self.dense(self.f.silu(e), "embedding")[:, :, None, None]


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="a second implementation of the blocks")


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("features", [32, 64])
def test_resnet_block(torch, features, scale_shift):
    block = ResNetBlock(features, scale_shift=scale_shift)
    params = randomised(block, X, E)
    t = Torch(torch, params)
    x = t.image(X)
    h = t.conv(t.f.silu(t.norm(x, "norm1", 8)), "conv1", padding=1)
    if scale_shift:
        scale, shift = t.embedding().chunk(2, dim=1)
        h = t.norm(h, "norm2", features // 4) * (1 + scale) + shift
    else:
        h = t.norm(h + t.embedding(), "norm2", features // 4)
    h = t.conv(t.f.silu(h), "conv2", padding=1)
    theirs = h + (x if features == 32 else t.pixels(x, "skip"))
    ours = block.apply(params, X, E).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("features", [32, 48])
def test_convnext_block(torch, features, scale_shift):
    block = ConvNeXtBlock(features, scale_shift=scale_shift)
    params = randomised(block, X, E)
    t = Torch(torch, params)
    x = t.image(X)
    h = t.norm(t.conv(x, "depthwise", padding=3, groups=32), "norm", 1)
    if scale_shift:
        scale, shift = t.embedding().chunk(2, dim=1)
        h = h * (1 + scale) + shift
    else:
        h = h + t.embedding()
    h = t.pixels(t.f.gelu(t.pixels(h, "expand"), approximate="tanh"), "contract")
    theirs = h + (x if features == 32 else t.pixels(x, "skip"))
    ours = block.apply(params, X, E).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=5e-4)


def test_downsample(torch):
    params = randomised(Downsample(), X)
    t = Torch(torch, params)
    theirs = t.conv(t.image(X), "conv", stride=2, padding=1).numpy()
    ours = Downsample().apply(params, X)
    assert ours.shape == (2, 4, 3, 32)
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), theirs, rtol=1e-4, atol=1e-4)


def test_upsample(torch):
    params = randomised(Upsample(), X, height=14, width=12)
    t = Torch(torch, params)
    big = t.f.interpolate(t.image(X), scale_factor=2, mode="nearest")
    for height, width in ((14, 12), (13, 11)):
        theirs = t.conv(big[:, :, :height, :width], "conv", padding=1).numpy()
        ours = Upsample().apply(params, X, height, width)
        np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), theirs, rtol=1e-4, atol=1e-4)


def test_average_pool_on_odd_sizes(torch):
    pool = torch.nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
    theirs = pool(torch.tensor(np.array(X).transpose(0, 3, 1, 2))).numpy()
    assert average_pool(X).shape == (2, 4, 3, 32)
    np.testing.assert_allclose(average_pool(X).transpose(0, 3, 1, 2), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("direction", ["down", "up"])
def test_adm_block_that_changes_the_resolution(torch, direction, scale_shift):
    x = X[:, :6]
    up = direction == "up"
    resample = functools.partial(nearest, height=12, width=12) if up else average_pool
    block = ResNetBlock(32, scale_shift=scale_shift, resample=resample)
    params = randomised(block, x, E)
    t = Torch(torch, params)
    change = torch.nn.Upsample(scale_factor=2) if up else torch.nn.AvgPool2d(2)
    image = t.image(x)
    h = t.conv(change(t.f.silu(t.norm(image, "norm1", 8))), "conv1", padding=1)
    if scale_shift:
        scale, shift = t.embedding().chunk(2, dim=1)
        h = t.norm(h, "norm2", 8) * (1 + scale) + shift
    else:
        h = t.norm(h + t.embedding(), "norm2", 8)
    theirs = change(image) + t.conv(t.f.silu(h), "conv2", padding=1)
    ours = block.apply(params, x, E).transpose(0, 3, 1, 2)
    assert ours.shape == ((2, 32, 12, 12) if up else (2, 32, 3, 3))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=2e-4)


def test_space_to_depth_is_torchs_pixel_unshuffle_up_to_the_order_of_channels(torch):
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    theirs = torch.nn.functional.pixel_unshuffle(
        torch.tensor(np.array(x).transpose(0, 3, 1, 2)), 2
    ).numpy()  # channels (C, p, p); ours (p, p, C)
    theirs = theirs.reshape(2, 3, 4, 3, 2).transpose(0, 3, 4, 2, 1).reshape(2, 3, 2, 12)
    np.testing.assert_array_equal(space_to_depth(x, 2), theirs)


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("size", [(7, 5)])
def test_depth_to_space_undoes_space_to_depth(size, patch):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    deep = space_to_depth(x, patch)
    assert deep.shape == (2, -(-size[0] // patch), -(-size[1] // patch), 3 * patch**2)
    np.testing.assert_array_equal(depth_to_space(deep, patch, *size), x)


@pytest.mark.parametrize("block", [ResNetBlock, ConvNeXtBlock])
def test_blocks_start_as_the_identity_and_drop_out_only_in_training(block):
    module = block(32, dropout=0.5)
    params = module.init(jax.random.key(0), X, E)
    np.testing.assert_array_equal(module.apply(params, X, E), X)
    params = randomised(module, X, E)
    plain = block(32).apply(params, X, E)
    np.testing.assert_array_equal(module.apply(params, X, E), plain)
    dropped = module.apply(params, X, E, True, rngs={"dropout": jax.random.key(0)})
    assert not np.allclose(dropped, plain)
    with pytest.raises(flax.errors.InvalidRngError):
        module.apply(params, X, E, True)


@pytest.mark.parametrize("block", [ResNetBlock, ConvNeXtBlock])
def test_both_uses_of_the_embedding_matter(block):
    for scale_shift in (True, False):
        module = block(32, scale_shift=scale_shift)
        params = randomised(module, X, E)
        assert not np.allclose(
            module.apply(params, X, E), module.apply(params, X, jnp.zeros_like(E))
        )
