"""The autoencoder against diffusers', in both namings of its attention."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.latent.tiled_decode import encode_tiled
from diffjax.stable_diffusion import names, vae
from diffjax.stable_diffusion.names import LEAVES


@pytest.fixture
def read(folders):
    folder = folders("sd15")[0] / "vae"
    stage, scaling = vae.read(folder, size=(8, 12))
    return folder, stage, scaling


def compare(tiny, theirs, stage, params):
    import torch

    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    z = rng.standard_normal((2, 8, 12, 4), np.float32)
    eps = rng.standard_normal((2, 8, 12, 4), np.float32)
    factor = theirs.config.scaling_factor
    with torch.no_grad():
        posterior = theirs.encode(tiny.nchw(images)).latent_dist
        mean, std = tiny.nhwc(posterior.mean), tiny.nhwc(posterior.std)
        decoded = tiny.nhwc(theirs.decode(tiny.nchw(z / factor)).sample)
    made = jax.jit(stage.encode)(params, images)
    assert np.abs(mean).max() > 0.5 and np.ptp(std) > 0.5 and np.abs(decoded).max() > 0.5
    np.testing.assert_allclose(stage.sample(params, made), factor * mean, atol=1e-5, rtol=1e-5)
    sampled = stage.sample(params, made, eps=jnp.asarray(eps))
    np.testing.assert_allclose(sampled, factor * (mean + std * eps), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(stage.decode)(params, z), decoded, atol=1e-5, rtol=1e-5)


def test_it_is_diffusers_autoencoder(tiny, folders, read):
    folder, stage, scaling = read
    assert stage.image_shape == (16, 24, 3) and stage.latent_shape == (8, 12, 4)
    compare(tiny, folders("sd15")[1].vae, stage, vae.load(stage, scaling, folder))


def test_older_files_have_other_names_for_the_attention(tiny, folders, read, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, stage, scaling = read
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(folder / "diffusion_pytorch_model.safetensors").items():
        if ".attentions." in name:
            for new, before in old.items():
                name = name.replace(f".{new}.", f".{before}.")
            if tensor.ndim == 2:  # as converted from the original checkpoints
                tensor = tensor[:, :, None, None]
        tensors[name] = tensor.contiguous()
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    compare(tiny, folders("sd15")[1].vae, stage, vae.load(stage, scaling, tmp_path))


def test_parameters_of_the_full_autoencoder(tiny, tmp_path):
    import diffusers
    import torch

    config = {
        "block_out_channels": [128, 256, 512, 512], "latent_channels": 4, "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4, "sample_size": 512,
    }  # fmt: skip
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(**config)
    expected = {name: tuple(p.shape) for name, p in theirs.state_dict().items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stage, scaling = vae.read(tmp_path, size=(64, 64))
    assert stage.image_shape == (512, 512, 3) and float(scaling.factor[0]) == np.float32(0.18215)
    shapes, of, found, count = vae.shapes(stage), names.of_vae(4), {}, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        owner, _, end = "/".join(key.key for key in path).rpartition("/")
        parts = of(owner)[0]
        shape = (*leaf.shape[:-1], leaf.shape[-1] // len(parts))
        count += leaf.size
        for part in parts:
            name = f"{part}.{LEAVES[end]}"
            whole = (shape[-1], shape[-2], *shape[:-2]) if end == "kernel" else shape
            found[name] = whole + (1, 1) * (len(expected[name]) == 4 and len(whole) == 2)
    assert found == expected and len(found) == 248 and count == 83_653_863


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"latents_mean": [0.0] * 4}, "latents_mean="),
        ({"mid_block_add_attention": False}, "mid_block_add_attention=False .*expected true"),
        ({"block_out_channels": [32, 40]}, "expected multiples of the first"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "down_block_types="),
        ({"scaling_factor": "a"}, "scaling_factor='a'"),
    ),
)
def test_a_field_that_is_not_supported(read, tmp_path, change, message):
    config = json.loads((read[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        vae.read(tmp_path, size=(8, 8))


def test_sdxls_autoencoder_is_kept_in_float32_where_float16_would_overflow(read, tmp_path):
    config = json.loads((read[0] / "config.json").read_text())
    for upcast, kept in ((True, jnp.float32), (False, jnp.float16)):
        (tmp_path / "config.json").write_text(json.dumps(config | {"force_upcast": upcast}))
        stage, _ = vae.read(tmp_path, size=(8, 8), dtype=jnp.float16)
        assert stage.encoder.dtype == stage.decoder.dtype == kept


def test_tiles_of_a_local_map_are_the_whole():
    def encode(images):  # means of 2x2 pixels
        batch, height, width, channels = images.shape
        return images.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))

    images = np.random.default_rng(0).standard_normal((2, 21, 14, 3), np.float32)
    padded = np.pad(images, ((0, 0), (0, 1), (0, 0), (0, 0)), mode="edge")
    for tile in (3, 4, 5, 11, 40):
        found = encode_tiled(encode, images, tile=tile, factor=2)
        np.testing.assert_allclose(found, encode(padded), atol=1e-6)
    with pytest.raises(ValueError, match="overlap"):
        encode_tiled(encode, images, tile=4, factor=2, overlap=4)


def test_tiles_are_nearer_to_the_whole_than_diffusers(tiny, folders):
    import torch

    folder, pipeline = folders("sd15")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :64] / 32.0  # smooth, with some noise, as photographs are
    waves = np.sin(np.stack([3 * x + y, 2 * y - x, x * y], axis=-1))
    image = np.float32(waves + 0.05 * rng.standard_normal(waves.shape))[None]
    z = rng.standard_normal((1, 48, 32, 4), np.float32)
    made = []
    for tile in (0, 24):
        stage, scaling = vae.read(folder / "vae", size=(48, 32), tile=tile)
        params = vae.load(stage, scaling, folder / "vae")
        made.append((jax.jit(stage.encode)(params, image)[..., :4], stage.decode(params, z)))
    theirs = copy.deepcopy(pipeline.vae)
    theirs.enable_tiling()
    theirs.tile_sample_min_size, theirs.tile_latent_min_size = 48, 24
    with torch.no_grad():
        factor = theirs.config.scaling_factor
        others = (
            tiny.nhwc(theirs.encode(tiny.nchw(image)).latent_dist.mean),
            tiny.nhwc(theirs.decode(tiny.nchw(z / factor)).sample),
        )
    for name, whole, tiled, other in zip(("encoding", "decoding"), *made, others, strict=True):
        ours, of_diffusers = (
            float(np.sqrt(np.mean(np.square(found - whole))) / np.std(whole))
            for found in (tiled, other)
        )
        steps = np.abs(np.diff(tiled - whole, axis=1)).mean((0, 2, 3))
        print(
            f"{name} in tiles: an error of {ours:.3f} standard deviations, diffusers' "
            f"{of_diffusers:.3f}; the largest step of the error between rows is "
            f"{steps.max() / np.median(steps):.1f} times the median"
        )
        assert 0 < ours < of_diffusers
        assert steps.max() < 5 * np.median(steps)
