"""IP-Adapters against diffusers': the U-Net's output with an image, and pictures by config."""

import copy

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import diffjax
from diffjax.errors import UserError
from diffjax.main import run
from diffjax.models.condition import Condition, Text
from diffjax.stable_diffusion import image_adapter, unet
from diffjax.stable_diffusion.folder import load_folder
from tests.stable_diffusion.test_config import config_of

WIDTH, TOKENS = 24, 4


@pytest.fixture(scope="module")
def encoder(tiny, tmp_path_factory):
    """A folder of a tiny CLIP image model, and transformers' network."""
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
        image_size=12, patch_size=4, projection_dim=WIDTH,
    )  # fmt: skip
    theirs = tiny.randomise(transformers.CLIPVisionModelWithProjection(config), 9)
    folder = tmp_path_factory.mktemp("encoder")
    theirs.save_pretrained(folder)
    return folder, theirs


def random_adapter(network, seed=0):
    """The tensors of a file for diffusers' U-Net, with random values."""
    draw = np.random.default_rng(seed)
    width = network.config.cross_attention_dim

    def normal(*shape):
        return draw.normal(size=shape).astype(np.float32) / shape[-1] ** 0.5

    made = {
        "image_proj.proj.weight": normal(TOKENS * width, WIDTH),
        "image_proj.proj.bias": normal(TOKENS * width),
        "image_proj.norm.weight": 1 + normal(width), "image_proj.norm.bias": normal(width),
    }  # fmt: skip
    number = 1
    for name in network.attn_processors:
        if "attn2" not in name:
            continue
        module = network.get_submodule(name.removesuffix(".processor"))
        for part in ("k", "v"):
            shape = (module.inner_dim, width)
            made[f"ip_adapter.{number}.to_{part}_ip.weight"] = normal(*shape)
        number += 2
    return made


@pytest.fixture(scope="module")
def adapters(folders, tmp_path_factory):
    """family -> (file of an adapter, its tensors)."""
    made = {}

    def of(family):
        if family not in made:
            tensors = random_adapter(folders(family)[1].unet)
            path = tmp_path_factory.mktemp(family) / "ip-adapter.safetensors"
            save_file(tensors, path)
            made[family] = path, tensors
        return made[family]

    return of


@pytest.mark.parametrize("family", ("sd15", pytest.param("sdxl", marks=pytest.mark.slow)))
def test_the_output_is_diffusers(tiny, folders, adapters, encoder, family):
    import torch

    folder, pipeline = folders(family)
    path, tensors = adapters(family)
    theirs = copy.deepcopy(pipeline.unet)
    state = {"image_proj": {}, "ip_adapter": {}}
    for name, array in tensors.items():
        part, _, rest = name.partition(".")
        state[part][rest] = torch.tensor(array)
    theirs._load_ip_adapter_weights([state])
    for processor in theirs.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.6]
    ours = unet.read(folder / "unet")
    adapter = image_adapter.load(path, encoder[0], ours.module).scaled(0.6)
    params = adapter.merged(unet.load(ours, folder / "unet"))
    draw = np.random.default_rng(1)
    x, t = draw.standard_normal((2, 8, 6, 4), np.float32), np.array([17.0, 981.0], np.float32)
    tokens = draw.standard_normal((2, 9, ours.module.text_width), np.float32)
    z = draw.standard_normal((2, WIDTH), np.float32)
    pooled = sizes = None
    added = {"image_embeds": [torch.tensor(z)[:, None]]}
    if family == "sdxl":
        pooled = draw.standard_normal((2, 32), np.float32)
        sizes = np.array([[512, 384, 0, 16, 256, 256]] * 2, np.float32)
        added |= {"text_embeds": torch.tensor(pooled), "time_ids": torch.tensor(sizes)}
    with torch.no_grad():
        expected = theirs(
            tiny.nchw(x), torch.tensor(t), encoder_hidden_states=torch.tensor(tokens),
            added_cond_kwargs=added,
        ).sample  # fmt: skip
    condition = Condition(text=Text(tokens, None, pooled), augmentation=sizes, embedding=z)
    module = adapter.extended(ours.module)
    with jax.default_matmul_precision("float32"):
        found = module.apply({"params": params}, x, t, condition)
        without = ours.module.apply(
            {"params": unet.load(ours, folder / "unet")}, x, t, condition._replace(embedding=None)
        )
    np.testing.assert_allclose(found, tiny.nhwc(expected), atol=2e-5)
    assert np.abs(found - without).max() > 1e-2


def test_a_file_of_torch_is_the_same(adapters, folders, encoder, tmp_path):
    import torch

    path, tensors = adapters("sd15")
    state = {"image_proj": {}, "ip_adapter": {}}
    for name, array in tensors.items():
        part, _, rest = name.partition(".")
        state[part][rest] = torch.tensor(array)
    torch.save(state, tmp_path / "ip-adapter.bin")
    module = unet.read(folders("sd15")[0] / "unet").module
    found, expected = (
        image_adapter.load(file, encoder[0], module).params
        for file in (tmp_path / "ip-adapter.bin", path)
    )
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(expected))


def test_the_embedding_is_transformers(adapters, folders, encoder):
    import torch

    folder, theirs = encoder
    module = unet.read(folders("sd15")[0] / "unet").module
    adapter = image_adapter.load(adapters("sd15")[0], folder, module)
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    mean, std = (np.array(x) for x in ((0.48145466, 0.4578275, 0.40821073),
                                       (0.26862954, 0.26130258, 0.27577711)))  # fmt: skip
    pixels = np.moveaxis((images / 255 - mean) / std, -1, 1).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(pixels)).image_embeds
    np.testing.assert_allclose(adapter.embeddings(images), expected, atol=1e-5)


@pytest.mark.slow
def test_pictures_by_config(folders, adapters, encoder, tmp_path):
    folder, _ = folders("sd15")
    draw = np.random.default_rng(0)
    for number, size in enumerate(((12, 12), (20, 14))):
        Image.fromarray(draw.integers(0, 256, (*size, 3), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    images = [np.asarray(Image.open(tmp_path / f"{number}.png"))[None] for number in (0, 1)]
    model = diffjax.load(folder, image_adapter=adapters("sd15")[0], image_encoder=encoder[0])
    how = {"steps": 2, "seed": 3, "image_scale": 0.6}
    drawn = [model.sample(["a cat"], image_prompts=image, **how) for image in images]
    assert (drawn[0] != drawn[1]).any()
    config = config_of(
        folder, sample__image_adapter=f"{adapters('sd15')[0]}@0.6",
        sample__image_encoder=str(encoder[0]), sample__image_prompts=str(tmp_path / "1.png"),
        sample__prompt="a cat", sample__count=1, sample__steps=2, sample__seed=3,
        sample__format="npz,png", sample__batch_size=4,
    )  # fmt: skip
    assert run(config, tmp_path / "run", mode="sample") == 0
    (archive,) = (tmp_path / "run/generated").glob("*.npz")
    with np.load(archive) as found:
        np.testing.assert_array_equal(found["images"], drawn[1])
    # At a scale of 0 there is the text alone.
    plain = diffjax.load(folder).sample(["a cat"], steps=2, seed=3)
    found = model.sample(["a cat"], image_prompts=images[0], **how | {"image_scale": 0.0})
    assert np.abs(found.astype(int) - plain).max() <= 1
    with pytest.raises(UserError, match="has an image adapter: give image_prompts"):
        model.sample(["a cat"], steps=2)
    with pytest.raises(UserError, match=r"the model has no image adapter: load it"):
        diffjax.load(folder).sample(["a cat"], image_prompts=images[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"image_proj.latents": np.ones((1, 2), np.float32)}, "which is of IP-Adapter Plus"),
        ({"ip_adapter.1.to_k_ip.weight": None}, "found no ip_adapter.1.to_k_ip.weight"),
        ({"ip_adapter.1.to_k_ip.weight": np.ones((3, 2), np.float32)}, r"of shape \(3, 2\)"),
        ({"ip_adapter.99.to_k_ip.weight": np.ones(2, np.float32)}, "found ip_adapter.99"),
    ),
)
def test_wrong_files(adapters, folders, encoder, tmp_path, changes, message):
    folder, _ = folders("sd15")
    module = unet.read(folder / "unet").module
    tensors = adapters("sd15")[1] | changes
    path = tmp_path / "adapter.safetensors"
    save_file({name: array for name, array in tensors.items() if array is not None}, path)
    with pytest.raises(UserError, match=message) as error:
        image_adapter.load(path, encoder[0], module)
    assert "\n" not in str(error.value)


def test_what_is_missing(adapters, folders, encoder):
    folder = load_folder(folders("sd15")[0], reads_unet=False)
    path = adapters("sd15")[0]
    for given, message in (
        ((path, None), "no image encoder: give image_encoder=FOLDER"),
        ((None, encoder[0]), "there is no image_adapter that it is for"),
        ((adapters("sdxl")[0], encoder[0]), "IP-Adapter for a"),
    ):
        with pytest.raises(UserError, match=message):
            folder.with_image_adapter(*given)
    for changes, message in (
        ({"sample__image_prompts": "a.png"}, "there is no image adapter: give its file by"),
        ({"sample__image_adapter": f"{path}|{path}"}, "expected one file"),
        ({"sample__image_adapter": str(path)}, "no image encoder"),
        ({"sample__image_adapter": str(path), "sample__image_encoder": str(encoder[0])},
         "config.sample.image_prompts is empty"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            run(config_of(folder.path, sample__prompt="a", **changes), "/nowhere", mode="sample")
