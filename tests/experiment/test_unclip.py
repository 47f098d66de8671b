"""A prior and its decoder from end to end: squares of three colours, embedded by their quarters."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax.conditioning.image_embedding import Fitted, cosine
from diffjax.experiment.diffusion import resolve
from diffjax.inference.unclip import Prior
from diffjax.main import main
from diffjax.models.condition import drop, drop_embedding
from tests.embeddings import quarters, write_squares
from tests.messages import refuses

PRIOR = """
from diffjax.experiment import defaults

def get_config(data):
    c = defaults.diffusion()
    c.data.update(name=data, embedding="tests.embeddings:quarters")
    c.embedding.dimensions = 3
    c.condition.text = "tests.embeddings:letters"
    c.model.update(name="prior", width=16, layers=1, head_channels=8, dtype="float32", dropout=0.0)
    c.model.class_conditional = False
    c.diffusion.parametrisation = "x0"
    c.train.update(steps=60, batch_size=32, learning_rate=5e-3, warmup_steps=2, ema_decay=0.9)
    c.train.update(log_every=20, eval_every=30, checkpoint_every=30, sample_every=60)
    c.sample.update(threshold="none", steps=6, count=6, batch_size=6)
    return c
"""


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def prior(tmp_path_factory, own_caches, compile_quickly, squares):
    folder = tmp_path_factory.mktemp("prior")
    (folder / "config.py").write_text(PRIOR)
    flags = [f"--config={folder / 'config.py'}:folder:{squares}", f"--workdir={folder / 'run'}"]
    assert main(flags) == 0
    return folder / "run", flags


def decoder_flags(squares, *more):
    return [
        f"--config.data.name=folder:{squares}", "--config.model.class_conditional=False",
        "--config.condition.text=tests.embeddings:letters", "--config.model.multipliers=(1,)",
        "--config.condition.embedding=tests.embeddings:quarters", "--config.model.blocks=1",
        "--config.embedding.dimensions=3", "--config.diffusion.condition_dropout=0.5",
        "--config.model.attention_resolutions=()", "--config.sample.count=4", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def decoder(tmp_path_factory, own_caches, compile_quickly, tiny_flags, squares):
    folder = tmp_path_factory.mktemp("decoder") / "run"
    flags = [*tiny_flags, *decoder_flags(squares, f"--workdir={folder}")]
    assert main(flags) == 0
    return folder, flags


def arrays_of(folder, kind):
    (archive,) = (folder / kind).glob("*.npz")
    with np.load(archive) as found:
        arrays = dict(found)
    archive.unlink()
    return arrays


def test_the_prior_finds_the_colours(prior, squares):
    """Its embedding of a caption is nearest to those of the images of that colour."""
    pipeline = diffjax.load(prior[0])
    images = [Image.open(path) for path in sorted((squares / "test").glob("*.png"))]
    images = np.stack([np.asarray(image) for image in images])
    rows = [json.loads(line) for line in (squares / "test/metadata.jsonl").open()]
    captions = [row["text"] for row in rows]
    draw = Prior(pipeline)
    network = quarters()
    features = np.asarray(network.apply(network.params, images / 127.5 - 1))
    each = np.asarray(draw.fitted.normalise(features))
    by_colour = [
        np.mean([z for z, text in zip(each, captions, strict=True) if text == wanted], 0)
        for wanted in sorted(set(captions))
    ]
    drawn = draw(sorted(set(captions)) * 4, seed=1)
    assert drawn.shape == (12, 3) and drawn.dtype == np.float32
    found = cosine(drawn, np.stack(by_colour)).argmax(1)
    assert (found == np.tile(np.arange(3), 4)).mean() > 0.8
    # So is the linear projection.
    linear = cosine(draw.of_text(sorted(set(captions))), np.stack(by_colour)).argmax(1)
    assert linear.tolist() == [0, 1, 2]


def test_a_number_s_embedding_depends_on_nothing_else(prior):
    draw = Prior(diffjax.load(prior[0]))
    texts = ["a red square", "a blue square", "a green square", "a red square"]
    whole = draw(texts, seed=3)
    np.testing.assert_allclose(draw(texts[2:], start=2, seed=3), whole[2:], atol=1e-5)
    assert np.abs(draw(texts, seed=4) - whole).max() > 0.01
    # The two candidates of text i are the samples 2i and 2i + 1: the better one is kept.
    pipeline = diffjax.load(prior[0])
    pairs = pipeline.sample([t for t in texts for _ in range(2)], seed=3).reshape(4, 2, 3)
    wanted = draw.of_text(texts)
    products = [
        [float(z @ w / np.linalg.norm(z)) for z in pair]
        for pair, w in zip(pairs, wanted, strict=True)
    ]
    np.testing.assert_allclose(whole, pairs[np.arange(4), np.argmax(products, 1)], atol=1e-5)


def test_a_prior_resumes_samples_and_exports(prior, tmp_path):
    folder, flags = prior
    shutil.copytree(folder, tmp_path / "run")
    for checkpoint in (tmp_path / "run/checkpoints").glob("60*"):
        shutil.rmtree(checkpoint)
    assert main([flags[0], f"--workdir={tmp_path / 'run'}"]) == 0
    again = diffjax.load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again.params, diffjax.load(folder).params)
    assert main([*flags, "--mode=sample"]) == 0
    assert arrays_of(folder, "generated")["x_0"].shape == (6, 3)
    assert main([*flags, "--mode=export", f"--out={tmp_path / 'exported'}"]) == 0
    exported = diffjax.load(tmp_path / "exported")
    texts = ["a red square", "a blue square"]
    np.testing.assert_array_equal(Prior(exported)(texts), Prior(again)(texts))


def test_a_decoder_is_trained_on_its_images_embeddings(decoder, squares):
    """Batches have the embedding of their own image, dropped by itself."""
    from diffjax import flags

    config, *_ = flags.parse(decoder[1])
    setup = resolve(config)
    batch = next(setup.batches())
    embedding = setup.conditions.embedding
    np.testing.assert_allclose(batch["embedding"], embedding.of_images(batch["image"]), atol=1e-3)
    held_out = setup.held_out()[0]
    np.testing.assert_allclose(
        held_out["embedding"], embedding.of_images(held_out["image"]), atol=1e-3
    )
    cond = setup.conditions.of_batch(batch, None)
    dropped = drop_embedding(drop(cond, np.arange(16) % 2 == 0), np.arange(16) % 4 == 0)
    assert dropped.text.mask.any(1).tolist() == [False, True] * 8
    assert dropped.embedding.any(1).tolist() == [False, True, True, True] * 4
    # All of the training set: unit variance.
    found = embedding.of_images(np.stack([setup.source[i]["image"] for i in range(40)]))
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(3), atol=1e-2)


def test_the_chain_on_the_command_line_and_in_python(prior, decoder):
    folder, flags = decoder
    sample = [
        *flags, "--mode=sample", "--config.sample.prompt=a red square | a blue square",
        f"--config.sample.prior={prior[0]}",
    ]  # fmt: skip
    assert main(sample) == 0
    found = arrays_of(folder, "generated")
    assert found["prompts"].tolist() == ["a red square", "a blue square"] * 2
    model = diffjax.load(folder)
    texts = ["a red square", "a blue square"] * 2
    np.testing.assert_array_equal(model.sample(texts, prior=str(prior[0])), found["images"])
    embeddings = Prior(diffjax.load(prior[0]))(texts)
    np.testing.assert_array_equal(model.sample(texts, embeddings=embeddings), found["images"])
    other = model.sample(texts, embeddings=-embeddings)
    assert (other != found["images"]).any()
    # Every method of a model takes the prior; without it, a denoiser is given no embedding.
    x_t = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    how = {"t": 500, "prompts": texts}
    drawn, given, none = (
        model.denoise(x_t, **how, **more).x_0
        for more in ({"prior": str(prior[0])}, {"prior": str(prior[0]), "candidates": 1}, {})
    )
    assert (drawn != none).any() and (drawn != given).any()
    # Without a prior, samples have the embeddings of held-out images.
    assert main([*flags, "--mode=sample"]) == 0
    assert len(arrays_of(folder, "generated")["images"]) == 4


def test_edits_of_embeddings(decoder, squares, tmp_path):
    folder, flags = decoder
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("00", "01", "02"):
        shutil.copy(squares / "test" / f"{name}.png", pictures)
    edit = [*flags, "--mode=edit", f"--config.edit.images={pictures}", "--config.edit.count=3"]
    assert main([*edit, "--config.edit.task=variations"]) == 0
    varied = arrays_of(folder, "edited")["images"]
    assert varied.shape == (3, 4, 8, 8, 3)
    model = diffjax.load(folder)
    np.testing.assert_array_equal(model.edit(varied[:, 0], "variations", count=3), varied)
    # The same by hand, with a text of no words: samples 3, 4 and 5 are those of the second image.
    z = np.repeat(model.embed(varied[:, 0]), 3, axis=0)
    by_hand = model.sample([" "], embeddings=z, count=9)[3:6].astype(int)
    assert not model.generator().conditions.text([" "]).mask.any()
    assert np.abs(by_hand - varied[1, 1:]).max() <= 1

    assert main([*edit, "--config.edit.task=interpolate_embeddings"]) == 0
    between = arrays_of(folder, "edited")
    assert between["images"].shape == (2, 5, 8, 8, 3)
    assert between["columns"].tolist() == ["image", "0.25", "0.50", "0.75", "image"]
    np.testing.assert_array_equal(between["images"][:, 0], varied[:2, 0])
    np.testing.assert_array_equal(between["images"][:, -1], varied[1:, 0])

    task = "text_difference(start='a red square', end='a blue square', most=0.4)"
    assert main([*edit, f"--config.edit.task={task}"]) == 0
    moved = arrays_of(folder, "edited")
    assert moved["columns"].tolist() == ["image", "0.00", "0.20", "0.40"]
    assert (moved["images"][0, 1] != moved["images"][0, 3]).any()
    same = model.edit(varied[:1, 0], task.replace("0.4", "0.2"), count=2)
    np.testing.assert_array_equal(same[0, 1:], moved["images"][0, 1:3])


def test_wrong_runs_and_weights(prior, decoder, squares, tmp_path, tiny_run):
    folder, flags = decoder
    model = diffjax.load(folder)
    text = ["a red square"]
    refuses(lambda: model.sample(text, prior="nowhere"), "config.sample.prior", "holds no run")
    refuses(lambda: model.sample(text, prior=str(folder)), "draws no image embeddings")
    refuses(lambda: model.sample(text, embeddings=np.zeros((1, 4))), "(1, 4)", "(n, 3)")
    refuses(lambda: model.sample(text), "nothing to condition on", "embeddings")
    plain = diffjax.load(tiny_run)
    refuses(lambda: plain.sample(prior=str(prior[0])), "is given no image embedding")
    refuses(lambda: plain.embed(np.zeros((1, 8, 8, 1), np.uint8)), "condition.embedding")
    refuses(lambda: plain.edit(np.zeros((1, 8, 8, 1), np.uint8), "variations"), "condition")
    refuses(lambda: Prior(plain), "draws no image embeddings")
    # A prior of other weights, and of other dimensions.
    stored = json.loads((prior[0] / "identity.json").read_text())
    assert stored["embedding"] == model.generator().conditions.model.embedding.fitted.identity
    draw = Prior(diffjax.load(prior[0]))
    for other in ({"digest": "other"}, {"dimensions": 2}, {"data": "other"}):
        refuses(
            lambda other=other: draw.check(draw.fitted._replace(**other)),
            "an embedding function of another run",
        )
    # The run goes on with the same function alone.
    other = "--config.condition.embedding=tests.embeddings:quarters(scale=2.0)"
    assert main([*flags, other]) == 2


@pytest.fixture
def config(tiny_config, squares):
    with tiny_config.unlocked():
        tiny_config.data.name = f"folder:{squares}"
        tiny_config.data.embedding = "tests.embeddings:quarters"
        tiny_config.embedding.dimensions = 3
        tiny_config.model.class_conditional = False
    return tiny_config.unlock()


def test_bad_configs(config, squares, tmp_path):
    def with_(**changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return lambda: resolve(changed)

    refuses(with_(), "'unet' needs data (H, W, C), not (3,)", "'prior'")
    refuses(with_(condition__embedding="clip(folder='x')"), "are both set")
    refuses(with_(data__flip=True), "config.data.flip = True", "as it is")
    refuses(with_(data__embedding="clip(folder='nowhere')"), "found no folder")
    refuses(with_(data__embedding="fractions:Fraction"), "is a Fraction", "EmbeddingNetwork")
    refuses(with_(data__embedding="efficientnet"), "expected one of none, efficientnet_lite0")
    refuses(with_(embedding__dimensions=13), "config.embedding.dimensions = 13", "at most 12")
    refuses(with_(data__name="digits"), "config.data.embedding", "8, 8, 1")
    refuses(with_(data__name="digits", condition__text="minilm"), "config.data.embedding")
    other = squares / "train" / "metadata.jsonl"
    bare = tmp_path / "bare"
    shutil.copytree(squares, bare)
    for split in ("train", "test"):
        (bare / split / other.name).unlink()
    refuses(
        with_(data__name=f"folder:{bare}", condition__text="tests.embeddings:letters"),
        "has no captions",
    )


def test_an_embedding_of_full_length_has_length_sqrt_d(config):
    config.embedding.dimensions = 0
    config.model = {"name": "prior", "class_conditional": False, "width": 16, "head_channels": 8}
    config.sample.threshold = "none"
    setup = resolve(config)
    np.testing.assert_allclose(np.square(setup.source.images).mean(1), 1, rtol=1e-3)
    fitted = Fitted.from_json(setup.about.embedding)
    assert fitted.whitening is None and fitted.dimensions == 12 and fitted.text is None
