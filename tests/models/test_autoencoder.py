"""The encoder and the decoder: sizes, and parity with those of diffusers."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models.autoencoder import Decoder, Encoder
from diffjax.models.norm import default_groups
from tests.weights import normal_like

SMALL = {"channels": 8, "multipliers": (1, 2, 2), "blocks": 1}


def randomised(module, *inputs, scale=0.2):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return normal_like(shapes, scale=scale)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (7, 5), (29, 31), (1, 1)], ids=str)
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_images_of_any_size_come_back_at_their_size(size, levels):
    options = SMALL | {"multipliers": (1,) * levels}
    encoder, decoder = Encoder(6, **options), Decoder(3, **options)
    x = jnp.zeros((2, *size, 3))
    params = jax.eval_shape(encoder.init, jax.random.key(0), x)
    z = jax.eval_shape(encoder.apply, params, x)
    f = 2 ** (levels - 1)
    assert z.shape == (2, -(-size[0] // f), -(-size[1] // f), 6) and z.dtype == jnp.float32

    def decode(key, z):
        return decoder.apply(decoder.init(key, z, size), z, size)

    out = jax.eval_shape(decode, jax.random.key(0), z)
    assert out.shape == x.shape and out.dtype == jnp.float32


def test_latents_of_another_size_are_refused():
    decoder = Decoder(1, **SMALL)
    with pytest.raises(ValueError, match="latents of 7x7 are not those of images of 32x28"):
        jax.eval_shape(
            lambda z: decoder.init(jax.random.key(0), z, (32, 28)), jnp.zeros((1, 7, 7, 4))
        )


def test_every_pixel_reaches_every_latent_through_the_attention():
    encoder, x = Encoder(2, **SMALL), jax.random.normal(jax.random.key(0), (1, 16, 16, 1))
    params = randomised(encoder, x)
    slope = jax.grad(lambda x: encoder.apply(params, x)[0, 0, 0, 0])(x)
    assert (slope != 0).all()


NAMES = {
    "stem": "conv_in", "head": "conv_out", "norm": "conv_norm_out",
    "middle/block_0": "mid_block.resnets.0", "middle/block_1": "mid_block.resnets.1",
    "middle/attention": "mid_block.attentions.0",
}  # fmt: skip


def theirs_of(path, levels):
    """diffusers' name of one of our modules."""
    first, *rest = path
    if first == "middle":
        return ".".join([NAMES["/".join(path[:2])], *rest[1:]])
    if first in NAMES:
        return ".".join([NAMES[first], *rest])
    kind = first.rstrip("_0123456789")
    level, _, block = first.removeprefix(kind).partition("_")
    place = int(level) if kind == "down" else levels - 1 - int(level)
    module = f"resnets.{block}" if block else f"{kind}samplers.0"
    return ".".join([f"{kind}_blocks.{place}", module, *rest])


def copy_into(torch, module, params, levels):
    """Puts our parameters into diffusers' module; returns how many tensors were set."""
    state, done = module.state_dict(), set()

    def put(name, value):
        assert state[name].shape == value.shape, name
        state[name] = torch.tensor(np.asarray(value))
        done.add(name)

    for path, leaf in flax.traverse_util.flatten_dict(params["params"]).items():
        *modules, kind = path
        value = np.asarray(leaf)
        if modules[-1] == "qkv":
            name = theirs_of(tuple(modules[:-1]), levels)
            for part, piece in zip("qkv", np.split(value, 3, axis=-1), strict=True):
                put(f"{name}.to_{part}.{'weight' if kind == 'kernel' else 'bias'}", piece.T)
            continue
        name = theirs_of(tuple(modules), levels)
        name = name.replace(".skip", ".conv_shortcut")
        if "attentions" in name:
            name = name.replace(".norm", ".group_norm").replace(".out", ".to_out.0")
        if kind == "kernel":
            if value.ndim == 4:
                value = value.transpose(3, 2, 0, 1)
            elif "conv_shortcut" in name:
                value = value.T[:, :, None, None]
            else:
                value = value.T
        put(f"{name}.{'bias' if kind == 'bias' else 'weight'}", value)
    module.load_state_dict(state)
    return done


@pytest.fixture(scope="module")
def peers():
    torch = pytest.importorskip("torch", reason="parity with diffusers needs torch")
    vae = pytest.importorskip(
        "diffusers.models.autoencoders.vae", reason="a second implementation of the autoencoder"
    )
    return torch, vae


def as_ours(torch, module):
    """Our groups, epsilon and padding: diffusers' halvings pad on two sides alone."""
    for part in module.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.num_groups, part.eps = default_groups(part.num_channels), 1e-5
        if type(part).__name__ == "Downsample2D":
            part.padding, part.conv.padding = 1, (1, 1)
    return module.eval()


@pytest.mark.parametrize("head_channels", [None, 8])
def test_encoder_is_that_of_diffusers(peers, head_channels):
    torch, vae = peers
    theirs = vae.Encoder(
        1, 6, ("DownEncoderBlock2D",) * 3, (8, 16, 16), layers_per_block=1, norm_num_groups=2,
        double_z=False,
    )  # fmt: skip
    theirs = as_ours(torch, theirs)
    if head_channels:
        theirs.mid_block.attentions[0].heads = 16 // head_channels
    x = jax.random.normal(jax.random.key(0), (2, 20, 12, 1))
    ours = Encoder(6, **SMALL, head_channels=head_channels)
    params = randomised(ours, x)
    assert copy_into(torch, theirs, params, 3) == set(theirs.state_dict())
    with torch.no_grad():
        expected = theirs(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours.apply(params, x), expected, rtol=1e-3, atol=2e-4)


def test_decoder_is_that_of_diffusers(peers):
    torch, vae = peers
    theirs = vae.Decoder(
        4, 1, ("UpDecoderBlock2D",) * 3, (8, 16, 16), layers_per_block=1, norm_num_groups=2
    )
    theirs = as_ours(torch, theirs)
    z = jax.random.normal(jax.random.key(0), (2, 5, 3, 4))
    ours = Decoder(1, **SMALL)
    params = randomised(ours, z)
    assert copy_into(torch, theirs, params, 3) == set(theirs.state_dict())
    with torch.no_grad():
        expected = theirs(torch.tensor(np.asarray(z)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours.apply(params, z), expected, rtol=1e-3, atol=2e-4)
