"""Textual inversion: a train step against torch's, files against diffusers', runs and their use."""

import copy
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import diffjax
from diffjax import data
from diffjax.data import dreambooth
from diffjax.errors import UserError
from diffjax.experiment import kinds, plan_sampling
from diffjax.experiment import model_folder as folders_of
from diffjax.experiment import plan as plans
from diffjax.main import main
from diffjax.stable_diffusion import learned_tokens
from diffjax.stable_diffusion.folder import load_folder
from diffjax.stable_diffusion.learned_tokens import Learned
from tests.stable_diffusion.test_config import EXPERIMENT
from tests.stable_diffusion.test_fine_tuning import cache, small, training

INVERSION = "inversion(token='<toy>', word='red cat', vectors=3)"
FIXTURES = cache, small


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A folder of images without captions."""
    folder = tmp_path_factory.mktemp("toys")
    draw = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def with_tokens(text_encoder, tokenizer, vectors):
    """transformers' encoder and tokenizer with <toy>, <toy>_1 and so on: new ones."""
    import torch

    encoder, tokenizer = copy.deepcopy(text_encoder), copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<toy>", *(f"<toy>_{i}" for i in range(1, len(vectors)))])
    table = encoder.get_input_embeddings().weight.detach()
    grown = torch.nn.Embedding(len(table) + len(vectors), table.shape[1])
    grown.weight = torch.nn.Parameter(torch.cat([table, torch.tensor(np.array(vectors))]))
    encoder.set_input_embeddings(grown)
    return encoder, tokenizer


@pytest.mark.usefixtures("cache")
def test_a_step_is_torchs(tiny, small, toys):
    import torch

    folder, network, pipeline = small("sd15")
    setup = kinds.resolve(training(folder, toys, model__inversion=INVERSION, train__grad_clip=0.0))
    state = setup.init_state()
    # The vectors begin as those of "red", "cat" and "red".
    ids = pipeline.tokenizer("red cat red").input_ids[1:4]
    table = pipeline.text_encoder.get_input_embeddings().weight.detach().numpy()
    (vectors,) = state.params.values()
    np.testing.assert_array_equal(vectors, table[ids])
    vectors = vectors + jax.random.normal(jax.random.key(1), vectors.shape) / 8
    state = state._replace(params={"text_encoder": vectors})
    batch = next(setup.batches())
    _, metrics = jax.jit(setup.train_step())(state, batch)

    x_0, draws, dropped = tiny.draws_of(setup, state, batch, seed=2)
    assert 0 < dropped.sum() < 4
    rows = next(data.batches(setup.source, batch_size=4, seed=2))["caption"]
    captions = [setup.source.captions[row] for row in rows]
    assert len(setup.source.captions) == 12 and all("<toy>" in one for one in captions)
    given = ["" if drop else caption for drop, caption in zip(dropped, captions, strict=True)]
    given = [caption.replace("<toy>", "<toy> <toy>_1 <toy>_2") for caption in given]
    encoder, tokenizer = with_tokens(pipeline.text_encoder, pipeline.tokenizer, vectors)
    tokens = tokenizer(given, padding="max_length", max_length=77, return_tensors="pt").input_ids
    n = torch.tensor(np.asarray(draws.t)).long() - 1
    eps = tiny.nchw(np.asarray(draws.eps))
    x_t = pipeline.scheduler.add_noise(tiny.nchw(np.asarray(x_0)), eps, n)
    output = network(x_t, n, encoder_hidden_states=encoder(tokens)[0]).sample
    loss = torch.nn.functional.mse_loss(output, eps)
    (gradient,) = torch.autograd.grad(loss, [encoder.get_input_embeddings().weight])
    np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], gradient[-3:].norm().item(), rtol=1e-4)


@pytest.mark.parametrize("family", ("sd15", pytest.param("sdxl", marks=pytest.mark.slow)))
def test_diffusers_loads_the_file(folders, tmp_path, family):
    path, pipeline = folders(family)
    folder = load_folder(path)
    draw = np.random.default_rng(0)
    vectors = tuple(draw.normal(size=(2, 32)).astype(np.float32) for _ in folder.texts)
    file = learned_tokens.save(tmp_path / "token.safetensors", Learned("<toy>", vectors))
    found = learned_tokens.opened(file, folder)
    assert found[0].token == "<toy>"
    np.testing.assert_array_equal(found[0].vectors, vectors)
    ours = learned_tokens.with_tokens(folder, found)
    encoded = ours.conditions((16, 16)).texts.encode(["a red <toy>, dog", "cat"])

    names = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    kept = {name: getattr(pipeline, name, None) for name in names}
    try:
        for name, part in kept.items():
            if part is not None:
                setattr(pipeline, name, copy.deepcopy(part))
        if family == "sd15":
            pipeline.load_textual_inversion(str(file))
        else:
            stored = load_file(file)
            for key, end in (("clip_l", ""), ("clip_g", "_2")):
                pipeline.load_textual_inversion(
                    {"<toy>": __import__("torch").tensor(stored[key])}, token="<toy>",
                    text_encoder=getattr(pipeline, f"text_encoder{end}"),
                    tokenizer=getattr(pipeline, f"tokenizer{end}"),
                )  # fmt: skip
        theirs = pipeline.encode_prompt(
            ["a red <toy>, dog", "cat"], device="cpu", num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )  # fmt: skip
    finally:
        for name, part in kept.items():
            if part is not None:
                setattr(pipeline, name, part)
    np.testing.assert_allclose(encoded.tokens, theirs[0].detach(), atol=1e-5)
    if family == "sdxl":
        np.testing.assert_allclose(encoded.pooled, theirs[2].detach(), atol=1e-5)
    # Other prompts are as they were.
    before = folder.conditions((16, 16)).texts.encode(["cat"])
    np.testing.assert_allclose(encoded.tokens[1:], before.tokens, atol=1e-5)


def test_other_files(folders, tmp_path):
    torch = pytest.importorskip("torch")
    folder = load_folder(folders("sd15")[0])
    vectors = np.arange(64, dtype=np.float32).reshape(2, 32)
    torch.save({"<toy>": torch.tensor(vectors[0])}, tmp_path / "one.bin")
    save_file({"emb_params": vectors}, tmp_path / "of-others.safetensors")
    one, two = learned_tokens.opened([tmp_path / "one.bin", tmp_path / "of-others.safetensors"],
                                     folder)  # fmt: skip
    assert (one.token, two.token) == ("<toy>", "of-others")
    np.testing.assert_array_equal(one.vectors[0], vectors[:1])
    np.testing.assert_array_equal(two.vectors[0], vectors)
    both = learned_tokens.with_tokens(folder, (one, two))
    assert both.texts[0].ids.pieces("<toy>of-others")[0] == [
        folder.texts[0].encoder.module.vocabulary + i for i in range(3)
    ]
    for tensors, message in (
        ({"<a>": vectors, "<b>": vectors}, "found 2 tensors"),
        ({"clip_l": vectors, "clip_g": vectors}, "vectors of 2 text encoders"),
        ({"<a>": vectors[:, :8]}, r"<a> of shape \(2, 8\)"),
    ):
        save_file(
            {k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "x.safetensors"
        )
        with pytest.raises(UserError, match=message) as error:
            learned_tokens.opened(tmp_path / "x.safetensors", folder)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="'cat</w>' is known already"):
        learned_tokens.with_tokens(folder, [Learned("cat</w>", one.vectors)])


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("inversion(token='a b', word='cat')", "token = 'a b': expected a word without spaces"),
        ("inversion(token='<a>')", "word"),
        ("inversion(token='<a>', word='cat', vectors=0)", "vectors must be at least 1"),
        ("inversion(token='cat</w>', word='cat')", "is known already"),
        ("token", "expected one of none, inversion"),
    ),
)
@pytest.mark.usefixtures("cache")
def test_wrong_inversions(small, toys, text, message):
    with pytest.raises(UserError, match=message) as error:
        kinds.resolve(training(small("sd15")[0], toys, model__inversion=text))
    assert str(error.value).startswith("config.model.inversion") and "\n" not in str(error.value)


@pytest.mark.usefixtures("cache")
def test_wrong_companions(small, toys, tmp_path):
    folder = small("sd15")[0]
    for changes, message in (
        ({"model__lora": "lora(rank=2)"}, r"set config\.model\.lora to 'none'"),
        ({"data__prompt": "a cat"}, r"no caption of .* has '<toy>'"),
    ):
        with pytest.raises(UserError, match=message):
            kinds.resolve(training(folder, toys, model__inversion=INVERSION, **changes))


def test_a_set_with_several_prompts():
    images = np.arange(2, dtype=np.uint8).reshape(2, 1, 1, 1)
    source = dreambooth.prompted(data.ArraySource(images), "a", "b", "c")
    seen = [(int(e["image"].squeeze()), source.captions[e["caption"]]) for e in source]
    assert sorted(seen) == [(i, text) for i in (0, 1) for text in "abc"]


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_a_plan(folders, toys):
    folder, pipeline = folders("sd15")
    changes = {"model__inversion": INVERSION, "parallel__compile": False}
    config = folders_of.settled(training(folder, toys, **changes))
    found = plans.plan_here(config)
    assert found.parameters == 3 * 32
    size = sum(p.numel() for n in (pipeline.unet, pipeline.text_encoder) for p in n.parameters())
    assert 4 * size < found.of_others < 4.1 * size
    assert plan_sampling.without_weights(config).conditions.texts.null().tokens.dtype == np.int32


def train(folder, toys, workdir, *arguments, mode="train"):
    return main([
        f"--config={EXPERIMENT}:textual_inversion", f"--config.model.folder={folder}",
        f"--workdir={workdir}", "--config.model.dtype=float32", f"--mode={mode}",
        f"--config.data.name=folder:{toys}", f"--config.model.inversion={INVERSION}",
        "--config.train.batch_size=2", "--config.sample.steps=2", "--config.sample.count=2",
        "--config.sample.batch_size=2", *arguments,
    ])  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("family", ("sd15", "sdxl"))
def test_a_run(small, toys, tmp_path, capsys, family):
    from diffjax.checkpoints.parameters import read_parameters

    folder = shutil.copytree(small(family)[0], tmp_path / "folder")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for workdir, steps in ((whole, 2), (halves, 1), (halves, 2)):
        assert train(folder, toys, workdir, f"--config.train.steps={steps}") == 0
    fields = [read_parameters(w, wanted="latest", fields=["params", "ema_params"]).fields
              for w in (whole, halves)]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *fields)
    names = ("text_encoder", "text_encoder_2")[: 2 if family == "sdxl" else 1]
    assert set(fields[0]["ema_params"]) == set(names)
    steps = "--config.train.steps=2"
    out = tmp_path / "out"
    assert train(folder, toys, whole, steps, f"--out={out}", "--format=token", mode="export") == 0
    file = out / "learned_embeds.safetensors"
    (token,) = learned_tokens.opened(file, load_folder(folder, reads_unet=False))
    for found, name in zip(token.vectors, names, strict=True):
        np.testing.assert_array_equal(found, fields[0]["ema_params"][name])
    # The run, the run as a folder, and the folder with the file draw the same.
    how = {"count": 2, "steps": 2, "seed": 1, "batch_size": 2}
    drawn = diffjax.load(whole).sample(["a <toy>"], **how)
    np.testing.assert_array_equal(
        drawn, diffjax.load(folder, tokens=file).sample(["a <toy>"], **how)
    )
    assert (drawn != diffjax.load(folder).sample(["a <toy>"], **how)).any()
    sampling = ("--config.sample.prompt=a <toy>", "--config.sample.seed=1", steps)
    assert train(folder, toys, whole, *sampling, mode="sample") == 0
    (archive,) = (whole / "generated").glob("*.npz")
    with np.load(archive) as found:
        assert np.abs(found["images"].astype(int) - drawn).max() <= 1
    code = main([
        f"--config={EXPERIMENT}", f"--config.model.folder={folder}", "--mode=sample",
        f"--workdir={tmp_path / 'plain'}", "--config.model.dtype=float32", *sampling[:2],
        f"--config.sample.tokens={file}", "--config.sample.steps=2", "--config.sample.count=2",
        "--config.sample.batch_size=2",
    ])  # fmt: skip
    assert code == 0
    (archive,) = (tmp_path / "plain/generated").glob("*.npz")
    with np.load(archive) as found:
        np.testing.assert_array_equal(found["images"], drawn)
    capsys.readouterr()
    assert train(folder, toys, whole, *sampling, f"--config.sample.tokens={file}",
                 mode="sample") == 2  # fmt: skip
    assert "config.sample.tokens" in capsys.readouterr().err
    out = tmp_path / "diffusers"
    code = train(folder, toys, whole, steps, f"--out={out}", "--format=diffusers", mode="export")
    assert code == 2 and "use --format=token" in capsys.readouterr().err
    assert json.loads((folder / "model_index.json").read_text())
