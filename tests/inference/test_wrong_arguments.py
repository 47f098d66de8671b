"""What a trained model says of wrong arguments: one line that names the argument."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import diffjax
from diffjax.errors import UserError
from tests.messages import refuses

PIXELS = np.zeros((2, 8, 8, 1), np.uint8)
NOISE = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 8, 8, 1)
LEVELS = np.arange(128, dtype=np.float32).reshape(2, 8, 8, 1)  # uint8 images as floats
NAN = np.where(NOISE > 0.9, np.nan, NOISE).astype(np.float32)
KEEP = np.ones((8, 8))


@pytest.fixture(scope="module")
def model(tiny_run):
    return diffjax.load(tiny_run)


WHOLE = (None, "3", 2.0, 1.5, True, -1, np.nan, [1])
NOT_SEEDS = (None, "0", 1.5, -1, 2**32, True, np.int64(-1), [1])
CHECKPOINTS = (None, "newest", 1.5, -1, True, [1], 99)

LOADS = [
    *[(f"path={path!r}", dict(workdir=path), ("workdir",)) for path in (None, 3, b"run", [1])],
    *[
        (f"checkpoint={c!r}", dict(checkpoint=c), ("checkpoint" if c != 99 else "step 99",))
        for c in CHECKPOINTS
    ],
    *[(f"first_stage={p!r}", dict(first_stage=p), ("first_stage",)) for p in (3, b"a", [1], "a")],
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"), [case[1:] for case in LOADS], ids=[c[0] for c in LOADS]
)
def test_load(tiny_run, changes, words):
    refuses(lambda: diffjax.load(**{"workdir": tiny_run, **changes}), *words)


def test_load_of_what_is_no_run(tiny_run, tmp_path):
    for path in ("", tmp_path, tmp_path / "missing", tiny_run / "config.json"):
        refuses(lambda path=path: diffjax.load(path), "run")


def test_load_takes_numpy_steps_and_strings(tiny_run):
    for checkpoint in (np.int64(6), 6, "6"):
        assert diffjax.load(str(tiny_run), checkpoint=checkpoint).step == 6


BAD_LABELS = (
    None,
    3,
    "3",
    [1.5],
    ["3"],
    [10],
    [-2],
    [True],
    np.array([[1]]),
    np.array([1.0]),
    {1: 2},
)
BAD_PROMPTS = (None, 3, "text", [3], ["a red apple"], b"a", {"a": 1})
BAD_HOW = (
    dict(steps="5"), dict(steps=0), dict(steps=2.5), dict(steps=None), dict(steps=[5]),
    dict(steps=True), dict(sampler=None), dict(sampler=3), dict(sampler="nosuch"), dict(sampler=[]),
    dict(grid=np.linspace(0, 1, 5)), dict(guidance=3.0), dict(guidance="classifier_free(scale=)"),
    dict(batch_size=0), dict(batch_size="8"), dict(threshold=None), dict(negative_prompt=3),
    dict(negative_prompt="a cat"), dict(temperature=1.0), dict(sampler=len),
)  # fmt: skip

SAMPLES = [
    *[(dict(labels=labels), "labels") for labels in BAD_LABELS],
    *[(dict(prompts=prompts), "prompts") for prompts in BAD_PROMPTS],
    *[(dict(count=count), "count") for count in (0, *WHOLE[1:])],
    *[(dict(seed=seed), "seed") for seed in NOT_SEEDS],
    *[(dict(map_images=images), "map_images") for images in (3, "a", [1], PIXELS, NOISE)],
    *[(how, next(iter(how))) for how in BAD_HOW],
]  # fmt: skip

BAD_IMAGES = (
    None, 3, "text", [[1.0]], [PIXELS, PIXELS[:1]], PIXELS[0], PIXELS[:0], PIXELS[:, :7], NOISE,
    LEVELS, PIXELS.astype(int), PIXELS.repeat(3, -1), NAN, PIXELS > 0, PIXELS.astype(object),
)  # fmt: skip
BAD_FLOATS = (
    None, 3, 0.5, "text", [["a"]], NOISE[0], NOISE[:0], NOISE[:, :7], PIXELS, PIXELS.astype(int),
    NAN, NOISE > 0, NOISE * 1j, NOISE.astype(object), [NOISE, NOISE[:1]], np.inf * NOISE, LEVELS,
)  # fmt: skip
COMMON = [
    *[(dict(labels=labels), "labels") for labels in (*BAD_LABELS, [1, 2, 3])],
    *[(dict(prompts=prompts), "prompts") for prompts in BAD_PROMPTS],
]  # fmt: skip
HAVE_MAPS = [(dict(map_images=images), "map_images") for images in (3, "a", [1], PIXELS)]
SOME_HOW = [(how, next(iter(how))) for how in (dict(steps="5"), dict(steps=[5]), dict(heat=1.0))]

EDITS = [
    *[(dict(images=images), "images") for images in BAD_IMAGES],
    *[(dict(task=task), "task") for task in (None, 3, "nosuch", "vary(strength=", ["vary"])],
    (dict(task="vary(strength=2.0)"), "strength"), (dict(task="vary(strength='a')"), "strength"),
    *[
        (dict(task="inpaint", mask=mask), "mask")
        for mask in (None, "text", 3, KEEP[:7], KEEP[None], np.nan * KEEP, KEEP * 1j, [["a"]],
                     KEEP * 0, -KEEP, 255 * KEEP.astype(object), KEEP.reshape(4, 16))
    ],
    (dict(mask=KEEP), "mask"), (dict(task="upscale"), "low-resolution"),
    *COMMON, *SOME_HOW,
    *[(dict(count=count), "count") for count in (0, *WHOLE)],
    *[(dict(seed=seed), "seed") for seed in NOT_SEEDS],
]  # fmt: skip
ENCODES = [
    *[(dict(x=images), "x") for images in BAD_IMAGES],
    *[(dict(iterations=value), "iterations") for value in WHOLE],
    *COMMON, *HAVE_MAPS, *SOME_HOW,
]  # fmt: skip
DECODES = [*[(dict(noise=value), "noise") for value in BAD_FLOATS], *COMMON, *HAVE_MAPS, *SOME_HOW]
DENOISES = [
    *[(dict(x_t=value), "x_t") for value in BAD_FLOATS],
    *[
        (dict(t=t), "t")
        for t in (None, "5", -1, 1e9, np.nan, [1, 2, 3], [[1, 2]], True, ["a"], 5j, [], {})
    ],
    *COMMON, *HAVE_MAPS, *SOME_HOW,
]  # fmt: skip
LIKELIHOODS = [
    *[(dict(x=images), "x") for images in BAD_IMAGES],
    *[(dict(seed=seed), "seed") for seed in NOT_SEEDS],
    *[(dict(rtol=value), "rtol") for value in (None, "a", 0, -1e-3, np.nan, np.inf, True, [1e-3])],
    *[(dict(atol=value), "atol") for value in (None, "a", 0, -1e-3, np.nan, np.inf, True, [1e-3])],
    *[(dict(divergence=value), "divergence") for value in (None, "nosuch", 3, [1])],
    *COMMON, *HAVE_MAPS,
]  # fmt: skip
CALLS = [
    *[("sample", {}, *case) for case in SAMPLES],
    *[("edit", dict(images=PIXELS, task="vary"), *case) for case in EDITS],
    *[("encode", dict(x=PIXELS), *case) for case in ENCODES],
    *[("decode", dict(noise=NOISE), *case) for case in DECODES],
    *[("denoise", dict(x_t=NOISE, t=5), *case) for case in DENOISES],
    *[("log_likelihood", dict(x=PIXELS), *case) for case in LIKELIHOODS],
    *[("generator", {}, how, next(iter(how))) for how in BAD_HOW],
    *[("denoiser", {}, how, next(iter(how))) for how in BAD_HOW],
]  # fmt: skip


def shown(value):
    text = f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else repr(value)
    return text if len(text) < 40 else text[:37] + "..."


def named(method, right, changes, word):
    text = ",".join(f"{name}={shown(value)}" for name, value in changes.items())
    return pytest.param(method, right, changes, word, id=f"{method}({text})")


@pytest.mark.parametrize(("method", "right", "changes", "word"), [named(*call) for call in CALLS])
def test_a_wrong_argument_is_named(model, method, right, changes, word):
    refuses(lambda: getattr(model, method)(**{**right, **changes}), word)


@pytest.mark.usefixtures("compile_quickly")
def test_numpy_scalars_and_arrays_are_as_good_as_numbers_and_lists(model):
    one = model.sample(labels=[3, 4], count=2, seed=7, steps=2)
    for labels in (np.array([3, 4]), (np.int32(3), np.uint8(4)), jnp.array([3, 4]), range(3, 5)):
        other = model.sample(labels=labels, count=np.int64(2), seed=np.uint32(7), steps=np.int64(2))
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one[:1], model.sample(labels=[np.int64(3)], seed=7, steps=2))


@pytest.mark.usefixtures("compile_quickly")
def test_what_can_be_an_array_is_one(model):
    encoded = model.encode(PIXELS, steps=2)
    for images in (PIXELS.tolist(), jnp.asarray(PIXELS), list(PIXELS)):
        if isinstance(images, list) and isinstance(images[0], list):
            images = np.array(images, np.uint8)  # a list of numbers would be int64
        np.testing.assert_array_equal(
            model.encode(images, steps=np.int32(2), iterations=np.int64(0)), encoded
        )
    whole = model.denoise(NOISE, 5).x_0
    for x_t in (NOISE.tolist(), jnp.asarray(NOISE), NOISE.astype(np.float64)):
        for t in (np.int64(5), np.array([5, 5]), [5, 5], jnp.array(5), 5.0, np.float32(5.0)):
            np.testing.assert_allclose(model.denoise(x_t, t).x_0, whole, atol=1e-5)


def test_a_discrete_schedule_has_no_time_between_two_steps(model):
    refuses(lambda: model.denoise(NOISE, 5.5), "t", "5.5", "whole")


LOAD = """
import sys
import diffjax
model = diffjax.load(sys.argv[1])
assert model.step == 6
"""


def test_loading_prints_nothing(tiny_run):
    ran = subprocess.run(
        [sys.executable, "-c", LOAD, tiny_run], capture_output=True, text=True, check=True
    )
    assert ran.stdout == ""
    assert ran.stderr == ""


def test_a_wrong_argument_leaves_the_model_as_it_was(model):
    before = model.generator()
    with pytest.raises(UserError):
        model.sample(steps=0)
    assert model.generator() is before
