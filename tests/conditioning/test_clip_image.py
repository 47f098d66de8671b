"""CLIP's image model against transformers', at random weights."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from diffjax.conditioning.clip_image import clip_image, text_projection
from diffjax.errors import UserError

torch = pytest.importorskip("torch", reason="a second implementation of CLIP")
transformers = pytest.importorskip("transformers", reason="a second implementation of CLIP")

SIZES = {
    "hidden_size": 24, "intermediate_size": 50, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 12, "patch_size": 4, "projection_dim": 10,
}  # fmt: skip
# OpenAI's statistics of pixels in [0, 1].
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def tower(saved, **changes):
    config = transformers.CLIPVisionConfig(**(SIZES | changes))
    model = transformers.CLIPVisionModelWithProjection(config)
    return saved(model), model


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def theirs(model, images):
    """transformers' embeddings of images in [-1, 1] of the network's own size."""
    with torch.no_grad():
        return model(pixel_values=pixels_of(images)).image_embeds.numpy()


def pixels_of(images):
    normalised = ((images + 1) / 2 - MEAN) / STD
    return torch.tensor(normalised.transpose(0, 3, 1, 2)).float()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_it_is_transformers_clip(saved, activation):
    folder, model = tower(saved, hidden_act=activation)
    network = clip_image(folder=folder)
    images = random_images(3, 12, 12, 3)
    ours = jax.jit(network.apply)(network.params, images)
    assert ours.shape == (3, network.dimensions) == (3, 10)
    np.testing.assert_allclose(ours, theirs(model, images), atol=2e-5, rtol=0)


def test_a_whole_clip_is_read_too(saved):
    vision = {k: v for k, v in SIZES.items() if k != "projection_dim"}
    text = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 20, "bos_token_id": 38,
            "eos_token_id": 39, "pad_token_id": 0}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)
    model = transformers.CLIPModel(config)
    folder = saved(model)
    network = clip_image(folder=folder)
    images = random_images(2, 12, 12, 3)
    with torch.no_grad():
        pooled = model.vision_model(pixels_of(images))
        expected = model.visual_projection(pooled.pooler_output).numpy()
    np.testing.assert_allclose(network.apply(network.params, images), expected, atol=2e-5, rtol=0)
    # Its texts are in the same space.
    kernel = text_projection(folder, width=16)
    np.testing.assert_array_equal(kernel, model.text_projection.weight.detach().numpy().T)
    with pytest.raises(UserError, match=r"text_projection.weight of shape \(10, 16\)"):
        text_projection(folder, width=17)


@pytest.mark.parametrize("size", [(30, 30), (40, 25), (9, 7)])
def test_other_sizes_are_resized_and_cropped_as_pillow_does(saved, size):
    """The shorter side to 12 by Pillow's bicubic filter, then the centre square."""
    folder, model = tower(saved)
    network = clip_image(folder=folder)
    height, width = size
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)
    shorter = min(size)
    large = (12 * width // shorter, 12 * height // shorter)
    planes = [
        np.asarray(Image.fromarray(pixels[..., c].astype(np.float32)).resize(large, Image.BICUBIC))
        for c in range(3)
    ]
    resized = np.clip(np.stack(planes, -1), 0, 255)
    top, left = (large[1] - 12) // 2, (large[0] - 12) // 2
    cut = resized[top : top + 12, left : left + 12] / 127.5 - 1
    ours = network.apply(network.params, pixels[None] / 127.5 - 1)
    np.testing.assert_allclose(ours, theirs(model, cut[None].astype(np.float32)), atol=1e-4)


def test_grey_images_are_repeated_and_others_refused(saved):
    network = clip_image(folder=tower(saved)[0])
    grey = random_images(2, 12, 12, 1)
    np.testing.assert_array_equal(
        network.apply(network.params, grey),
        network.apply(network.params, np.repeat(grey, 3, axis=-1)),
    )
    with pytest.raises(ValueError, match="4 channels for CLIP"):
        network.apply(network.params, random_images(1, 12, 12, 4))


def test_the_digest_is_of_weights_and_preprocessing(saved):
    folder, model = tower(saved)
    first = clip_image(folder=folder).digest
    assert clip_image(folder=folder).digest == first
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3}))
    assert clip_image(folder=folder).digest != first
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").unlink()
    assert clip_image(folder=folder).digest != first


def test_bad_folders(saved, tmp_path, edit_json):
    with pytest.raises(UserError, match="found no folder"):
        clip_image(folder=tmp_path / "none")
    folder, _ = tower(saved)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_std": [1, 0, 1]}))
    with pytest.raises(UserError, match=r"image_std=\[1, 0, 1\].*expected 3 numbers"):
        clip_image(folder=folder)
    (folder / "preprocessor_config.json").unlink()
    edit_json(folder / "config.json", patch_size=5)
    with pytest.raises(UserError, match="patch_size=5 for image_size=12"):
        clip_image(folder=folder)
    edit_json(folder / "config.json", patch_size=4, projection_dim=11)
    with pytest.raises(UserError, match=r"visual_projection.weight of shape \(10, 24\)"):
        clip_image(folder=folder)
    plain = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES))
    with pytest.raises(UserError, match=r"found no tensor vision_model\.visual_projection"):
        clip_image(folder=saved(plain, name="plain"))
