"""Fine-tuning of a folder: a train step against torch's, and runs that are resumed and loaded."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import diffjax
from diffjax import data, rng
from diffjax.errors import UserError
from diffjax.experiment import kinds, schema
from diffjax.latent import sizes
from diffjax.main import main
from diffjax.models import lora
from diffjax.stable_diffusion import names
from diffjax.training.objective import LossInputs
from tests.stable_diffusion.test_config import EXPERIMENT, config_of

CAPTIONS = ["a red cat", "dog", "a cat on a dog", "red", "dog on a cat"]
# Height and width of the files, and top and left of the 16x16 pixels that are cut out of each.
CROPS = {(16, 16): (0, 0), (20, 30): (0, 4), (40, 24): (5, 0), (16, 24): (0, 4), (48, 48): (0, 0)}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of images of several sizes with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    rows = []
    for number, (size, caption) in enumerate(zip(CROPS, CAPTIONS, strict=True)):
        pixels = draw.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": caption})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="session")
def small(tiny, folders, tmp_path_factory):
    """family -> (folder with a smaller U-Net, diffusers' pipeline of its parts)."""
    import diffusers

    made = {}

    def of(family):
        if family not in made:
            whole, pipeline = folders(family)
            folder = tmp_path_factory.mktemp("small") / family
            shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("unet"))
            config = dict(pipeline.unet.config) | {
                "layers_per_block": 1, "block_out_channels": (16, 32), "attention_head_dim": 2,
                "transformer_layers_per_block": 1,
            }  # fmt: skip
            network = tiny.randomise(diffusers.UNet2DConditionModel.from_config(config), 7)
            network.save_pretrained(folder / "unet")
            made[family] = folder, network, pipeline
        return made[family]

    return of


def training(folder, pictures, **changes):
    given = {
        "data__name": f"folder:{pictures}", "data__image_size": 16, "train__batch_size": 4,
        "train__warmup_steps": 0, "diffusion__condition_dropout": 0.5, "seed": 2,
    } | changes  # fmt: skip
    config = config_of(folder)
    for key, value in given.items():
        *section, name = key.split("__")
        with config.ignore_type():
            (config[section[0]] if section else config)[name] = value
    schema.check(config)
    return config


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def begun(setup):
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), setup.state_shapes())
    return setup.started(state, setup.read_start(), log=lambda line: None)


def texts_of(pipeline, captions):
    """Hidden states and pooled vectors by diffusers; "" are zeros for SDXL, as in its pipeline."""
    import torch

    with torch.no_grad():
        made = pipeline.encode_prompt(
            list(captions), device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    if not hasattr(pipeline, "text_encoder_2"):
        return made[0], None
    kept = torch.tensor([float(bool(caption)) for caption in captions])
    return made[0] * kept[:, None, None], made[2] * kept[:, None]


@pytest.mark.parametrize("family", ("sd15", pytest.param("sdxl", marks=pytest.mark.slow)))
@pytest.mark.usefixtures("cache")
def test_a_step_is_torchs(tiny, small, pictures, family):
    import torch

    folder, network, pipeline = small(family)
    setup = kinds.resolve(training(folder, pictures))
    state, batches = begun(setup), setup.batches()
    batch = next(batches)
    _, metrics = jax.jit(setup.train_step())(state, batch)

    def key(name):
        return rng.stream(2, name, 0)

    # The same latents, times, noise and dropped captions.
    indices = jnp.arange(4)
    x_0, _ = setup.space.read(jax.tree.map(jnp.asarray, batch), key=key, indices=indices)
    inputs = LossInputs(x_0, None, key, indices, 4, state.step)
    draws = setup.objective.draw(state.objective_state, inputs)
    dropped = rng.per_example(key("label"), indices, lambda k: jax.random.bernoulli(k, 0.5))
    assert 0 < dropped.sum() < 4
    source = data.load(f"folder:{pictures}", image_size=16)
    order = [next(data.batches(source, batch_size=4, seed=2))][0]
    captions = [source.captions[row] for row in order["caption"]]
    given = ["" if drop else caption for drop, caption in zip(dropped, captions, strict=True)]
    tokens, pooled = texts_of(pipeline, given)
    options = {}
    if pooled is not None:
        of = dict(zip(CAPTIONS, CROPS, strict=True))
        ids = torch.tensor([(*of[one], *CROPS[of[one]], 16, 16) for one in captions])
        options["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
    n = torch.tensor(np.asarray(draws.t)).long() - 1
    eps = tiny.nchw(np.asarray(draws.eps))
    x_t = pipeline.scheduler.add_noise(tiny.nchw(np.asarray(x_0)), eps, n)
    network.zero_grad()
    output = network(x_t, n, encoder_hidden_states=tokens, **options).sample
    loss = torch.nn.functional.mse_loss(output, eps)
    loss.backward()
    norm = torch.stack([p.grad.square().sum() for p in network.parameters()]).sum().sqrt()
    np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm.item(), rtol=1e-4)


@pytest.mark.parametrize(
    "layers", (None, pytest.param("conv[12]$|skip|mlp|time/", marks=pytest.mark.slow))
)
@pytest.mark.usefixtures("cache")
def test_a_step_of_adapters_is_torchs(tiny, small, pictures, layers):
    import torch

    folder, network, pipeline = small("sd15")
    options = "" if layers is None else f", layers={layers!r}"
    config = training(
        folder, pictures, model__lora=f"lora(rank=2, alpha=3.0{options})", train__grad_clip=0.0
    )
    setup = kinds.resolve(config)
    shapes = setup.state_shapes()
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    adapters = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape) / 4, shapes.params
    )
    base = setup.folder.unet_params()
    state = state._replace(
        params=adapters, objective_state=state.objective_state._replace(frozen=base)
    )
    batch = next(setup.batches())
    _, metrics = jax.jit(setup.train_step())(state, batch)

    x_0, draws, dropped = tiny.draws_of(setup, state, batch, seed=2)
    rows = next(data.batches(data.load(f"folder:{pictures}", image_size=16), batch_size=4, seed=2))
    captions = sorted(CAPTIONS)
    given = [
        "" if drop else captions[row] for drop, row in zip(dropped, rows["caption"], strict=True)
    ]
    # Adapters by torch: what each module returns plus that of two modules after another.
    factors, handles = [], []
    for path, one in lora.of_tree(adapters, alpha=3.0).items():
        ((name,),) = names.of_unet(2)("/".join(path[:-1]))
        factors += [torch.tensor(np.asarray(x), requires_grad=True) for x in one[:2]]
        handles.append(network.get_submodule(name).register_forward_hook(torch_path(*factors[-2:])))
    n = torch.tensor(np.asarray(draws.t)).long() - 1
    eps = tiny.nchw(np.asarray(draws.eps))
    x_t = pipeline.scheduler.add_noise(tiny.nchw(np.asarray(x_0)), eps, n)
    tokens, _ = texts_of(pipeline, given)
    try:
        output = network(x_t, n, encoder_hidden_states=tokens).sample
    finally:
        for handle in handles:
            handle.remove()
    loss = torch.nn.functional.mse_loss(output, eps)
    norm = torch.stack([g.square().sum() for g in torch.autograd.grad(loss, factors)]).sum().sqrt()
    np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm.item(), rtol=1e-4)


def torch_path(down, up):
    """A hook that adds an adapter of rank 2 and alpha 3."""
    import torch

    def hook(module, args, output):
        x = args[0]
        if down.ndim == 2:
            if isinstance(module, torch.nn.Conv2d):  # a linear map of pixels
                return output + 1.5 * torch.einsum("bchw,cr,ro->bohw", x, down, up)
            return output + 1.5 * (x @ down @ up)
        h = torch.nn.functional.conv2d(
            x, down.permute(3, 2, 0, 1), stride=module.stride, padding=module.padding
        )
        return output + 1.5 * torch.nn.functional.conv2d(h, up.permute(3, 2, 0, 1))

    return hook


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("lora(rank=0)", "rank must be at least 1"),
        ("lora(alpha=-1.0)", "alpha must be above 0"),
        ("lora(layers='(')", "is no regular expression"),
        ("lora(layers='nothing')", "matches none of the layers, such as"),
        ("adapter", "expected one of none, lora"),
    ),
)
@pytest.mark.usefixtures("cache")
def test_wrong_adapters(small, pictures, text, message):
    with pytest.raises(UserError, match=message) as error:
        kinds.resolve(training(small("sd15")[0], pictures, model__lora=text))
    assert str(error.value).startswith("config.model.lora") and "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_a_run_of_adapters(small, pictures, tmp_path):
    folder = shutil.copytree(small("sd21")[0], tmp_path / "folder")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    options = ["--config.model.lora=lora(rank=2)", "--config.train.ema_decay=0.5"]
    assert train(folder, pictures, whole, *options, "--config.train.steps=2") == 0
    assert train(folder, pictures, halves, *options, "--config.train.steps=1") == 0
    assert train(folder, pictures, halves, *options, "--config.train.steps=2") == 0
    stored = parameters(whole)
    jax.tree.map(np.testing.assert_array_equal, stored, parameters(halves))
    # Nothing but adapters is stored.
    base, model = diffjax.load(folder), diffjax.load(whole)
    size = sum(leaf.size for leaf in jax.tree.leaves(base.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(stored["params"])) < size / 20
    files = sum(path.stat().st_size for path in (whole / "checkpoints").rglob("*"))
    assert files < 4 * size / 2
    found = lora.of_tree(stored["ema_params"], alpha=2.0)
    assert all(np.any(one.up) for one in found.values())
    expected = lora.merge(base.params, found)
    jax.tree.map(np.testing.assert_array_equal, model.params, expected)
    drawn = [m.sample(["a cat"], steps=2, count=1, seed=1) for m in (base, model)]
    assert (drawn[0] != drawn[1]).any()
    # An exported run is adapters, too, and its folder is found from elsewhere.
    out = tmp_path / "out"
    assert train(folder, pictures, whole, f"--out={out}", *options, mode="export") == 0
    assert (out / "model.safetensors").stat().st_size < 4 * size / 10
    jax.tree.map(np.testing.assert_array_equal, diffjax.load(out).params, expected)
    # Adapters of other weights.
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    save_file({name: array * 2 for name, array in load_file(path).items()}, path)
    with pytest.raises(UserError, match="has adapters of other weights than those of"):
        diffjax.load(whole)


def test_crops_of_the_files(pictures):
    images = data.load(f"folder:{pictures}", image_size=16)
    found = sizes.with_sizes(images, images)
    for number, (size, corner) in enumerate(CROPS.items()):
        assert found[number]["sizes"].tolist() == [*size, *corner, 16, 16]
    streamed = data.load(f"folder:{pictures}", image_size=16, channels=3, memory_limit_mb=0)
    assert sizes.with_sizes(streamed, streamed)[2]["sizes"].tolist() == [40, 24, 5, 0, 16, 16]
    # Arrays have no files: they are whole.
    plain = data.ArraySource(np.zeros((2, 8, 6, 3), np.uint8))
    assert sizes.with_sizes(plain, plain)[1]["sizes"].tolist() == [8, 6, 0, 0, 8, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"data__name": "none"}, r"config\.data\.name = 'none': there is nothing to train on"),
        ({"data__name": "digits"}, r"config\.data\.name = 'digits' has no captions"),
        ({"data__flip": True}, r"config\.data\.flip = True"),
        ({"data__augment": ("crop",)}, r"config\.data\.augment changes images"),
        ({"data__image_size": 15}, "height is 15: expected a multiple of 2"),
        ({"diffusion__pairs": "ode"}, r"config\.diffusion\.pairs = 'ode': .* set it to 'none'"),
    ),
)
@pytest.mark.usefixtures("cache")
def test_wrong_configs(small, pictures, changes, message):
    with pytest.raises(UserError, match=message) as error:
        kinds.resolve(training(small("sd15")[0], pictures, **changes))
    assert "\n" not in str(error.value)


def train(folder, pictures, workdir, *arguments, mode="train"):
    return main([
        f"--config={EXPERIMENT}", f"--config.model.folder={folder}", f"--workdir={workdir}",
        "--config.model.dtype=float32", f"--config.data.name=folder:{pictures}", f"--mode={mode}",
        "--config.train.batch_size=2", "--config.sample.steps=2", "--config.sample.count=2",
        "--config.train.learning_rate=1e-3", "--config.train.warmup_steps=0", *arguments,
    ])  # fmt: skip


def parameters(workdir):
    from diffjax.checkpoints.parameters import read_parameters

    return read_parameters(workdir, wanted="latest", fields=["params", "ema_params"]).fields


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_a_run_is_resumed_loaded_and_needs_its_folder(small, pictures, tmp_path, capsys):
    folder = shutil.copytree(small("sdxl")[0], tmp_path / "folder")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert train(folder, pictures, whole, "--config.train.steps=2") == 0
    assert train(folder, pictures, halves, "--config.train.steps=1") == 0
    assert train(folder, pictures, halves, "--config.train.steps=2") == 0
    trained, resumed = parameters(whole), parameters(halves)
    jax.tree.map(np.testing.assert_array_equal, trained, resumed)

    model = diffjax.load(whole)
    jax.tree.map(np.testing.assert_array_equal, model.params, trained["ema_params"])
    changed = diffjax.load(folder).params
    assert any(
        (a != b).any() for a, b in zip(jax.tree.leaves(changed), jax.tree.leaves(model.params),
                                       strict=True)
    )  # fmt: skip
    how = {"seed": 1, "steps": 2, "count": 2, "batch_size": 2}
    drawn = model.sample(["a cat"], **how)
    assert model.sample(["a cat"], height=24, width=16, **how).shape == (2, 24, 16, 3)
    code = train(
        folder, pictures, whole, "--config.sample.prompt=a cat", "--config.sample.seed=1",
        "--config.train.steps=2", "--config.sample.batch_size=2", mode="sample",
    )  # fmt: skip
    assert code == 0
    (archive,) = (whole / "generated").glob("*.npz")
    with np.load(archive) as found:
        np.testing.assert_array_equal(found["images"], drawn)

    folder.rename(tmp_path / "moved")
    capsys.readouterr()
    assert train(folder, pictures, whole, mode="sample") == 2
    assert "there is no such folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="there is no such folder"):
        diffjax.load(whole)
    # Other text encoders at their place would be heard, too.
    shutil.copytree(tmp_path / "moved", folder)
    path = folder / "text_encoder_2/model.safetensors"
    save_file({name: array * 2 for name, array in load_file(path).items()}, path)
    with pytest.raises(UserError, match="was trained with another text encoder"):
        diffjax.load(whole)
