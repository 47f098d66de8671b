"""A first stage trained here is diffusers' AutoencoderKL, and read again as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffjax.errors import UserError
from diffjax.experiment import autoencoder_networks, schema
from diffjax.latent.first_stage import Scaling, StageParams
from diffjax.stable_diffusion import vae, vae_writer


def config(**changes):
    values = {"layout": "diffusers", "channels": 16, "multipliers": (1, 2), "blocks": 1}
    return schema.complete(
        ConfigDict({"autoencoder": {"dtype": "float32", **values, **changes}})
    )  # fmt: skip


@pytest.fixture
def trained():
    """A stage with arrays that are all different from those of its initialisation."""
    stage = autoencoder_networks.stage(config(), image_shape=(16, 24, 3))
    images, latents = jnp.zeros((1, *stage.image_shape)), jnp.zeros((1, *stage.latent_shape))
    params = {
        "encoder": stage.encoder.init(jax.random.key(0), images)["params"],
        "decoder": stage.decoder.init(jax.random.key(1), latents)["params"],
    }
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    scaling = Scaling(jnp.array([0.3, -0.2, 0.0, 1.0]), jnp.array([0.5, 1.0, 2.0, 0.8]))
    return stage, StageParams(jax.tree.unflatten(tree, moved), (), scaling)


def test_it_is_diffusers_autoencoder(tiny, trained, tmp_path):
    import diffusers
    import torch

    stage, params = trained
    written = vae_writer.write_vae(tmp_path, stage, params)
    assert [path.name for path in written] == [
        "config.json", "diffusion_pytorch_model.safetensors"
    ]  # fmt: skip
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    latents = rng.standard_normal((2, *stage.latent_shape), np.float32)
    with torch.no_grad():
        encoded = tiny.nhwc(theirs.encode(tiny.nchw(images)).latent_dist.parameters)
        decoded = tiny.nhwc(theirs.decode(tiny.nchw(latents)).sample)
    assert np.ptp(encoded) > 0.5 and np.ptp(decoded) > 0.5
    made = stage.encode(params, images)
    # Of the log-variance, theirs is clipped; it is far from the bounds here.
    np.testing.assert_allclose(made, encoded, atol=2e-5)
    found = stage.decoder.apply({"params": params.params["decoder"]}, latents)
    np.testing.assert_allclose(found, decoded, atol=2e-5)


def test_it_is_read_again(trained, tmp_path):
    stage, params = trained
    vae_writer.write_vae(tmp_path, stage, params)
    again, scaling = vae.read(tmp_path, size=stage.latent_shape[:2])
    assert again.encoder == stage.encoder.clone(mix=again.encoder.mix)
    loaded = vae.load(again, scaling, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params.params)
    # One number for all channels: of latents with these means and deviations, drawn.
    rng = np.random.default_rng(0)
    z = rng.normal(params.scaling.shift, 1 / params.scaling.factor, (200_000, 4))
    assert float(scaling.factor[0]) == pytest.approx(1 / z.std(), rel=0.01)


def test_the_groups_divide_the_channels():
    for channels, groups in ((128, 32), (48, 16), (20, 4), (7, 1)):
        assert vae_writer.layout(channels)[0]["groups"] == groups


def test_what_it_does_not_have():
    for changes in ({"patch": 2}, {"regulariser": "vq(size=16)"}):
        with pytest.raises(UserError, match="neither patches nor a codebook"):
            autoencoder_networks.stage(config(**changes), image_shape=(16, 16, 3))
