"""Weights in prompts by hand, and long prompts in chunks against transformers' encoder."""

import numpy as np
import pytest

import diffjax
from diffjax.errors import UserError
from diffjax.inference.sample_conditions import Choice
from diffjax.stable_diffusion import text
from diffjax.stable_diffusion.prompts import chunked, count_chunks, scaled, weighted
from diffjax.stable_diffusion.tokenizer import Prompts


@pytest.mark.parametrize(
    ("prompt", "expected"),
    (
        ("", [("", 1)]),
        ("a cat", [("a cat", 1)]),
        ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
        ("((word))", [("word", 1.21)]),
        ("[word]", [("word", 1 / 1.1)]),
        ("([word])", [("word", 1)]),
        ("(a (b:2) c)", [("a ", 1.1), ("b", 2.2), (" c", 1.1)]),
        ("((a:2) b:3)", [("a", 6), (" b", 3)]),
        ("(a: 0.5 )b", [("a", 0.5), ("b", 1)]),
        ("(a:-.5)", [("a", -0.5)]),
        ("(a:+2.)", [("a", 2)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:b:2)", [("a:b", 2)]),
        ("a:1.5", [("a:1.5", 1)]),
        ("[a:0.5]", [("a:0.5", 1 / 1.1)]),
        (r"a \(red\) cat", [("a (red) cat", 1)]),
        (r"(\(:2)", [("(", 2)]),
        (r"\[a\] \\ (b)", [(r"[a] \ ", 1), ("b", 1.1)]),
        ("back\\slash\\", [("back\\slash\\", 1)]),
        ("()", [("", 1)]),
        ("a () b", [("a  b", 1)]),
        (":1.2", [(":1.2", 1)]),
        ("line\n(two:2)\n", [("line\n", 1), ("two", 2), ("\n", 1)]),
        ("é(猫🙂:1.5)", [("é", 1), ("猫🙂", 1.5)]),
        ("(" * 50 + "a" + ")" * 50, [("a", 1.1**50)]),
    ),
)
def test_spans_and_their_weights(prompt, expected):
    found = weighted(prompt)
    assert [span.text for span in found] == [text for text, _ in expected]
    np.testing.assert_allclose([span.weight for span in found], [w for _, w in expected])


@pytest.mark.parametrize(
    ("prompt", "message"),
    (
        ("a (red cat", r"'\(' at character 3 that is not closed"),
        ("a red) cat", r"'\)' at character 6 that is not opened"),
        ("a [red) cat", r"'\)' at character 7 that is not opened"),
        ("([a)]", r"'\)' at character 4 that is not opened"),
        ("a red:1.2) cat", r"'\)' at character 10 that is not opened"),
        ("[red:1.2)", r"'\)' at character 9 that is not opened"),
        ("]", r"'\]' at character 1 that is not opened"),
        ("((a)", r"'\(' at character 1 that is not closed"),
        (r"(a\)", r"'\(' at character 1 that is not closed"),
    ),
)
def test_unbalanced_weights(prompt, message):
    with pytest.raises(UserError, match=message) as error:
        weighted(prompt)
    assert "\n" not in str(error.value) and "write \\" in str(error.value)


def test_chunks_have_their_special_tokens():
    made = chunked(range(10, 15), [2, 3, 4, 5, 6], chunks=3, ends=(1, 2), padding=0, length=5)
    assert made.ids.tolist() == [[1, 10, 11, 12, 2], [1, 13, 14, 2, 0], [1, 2, 0, 0, 0]]
    assert made.weights.tolist() == [[1, 2, 3, 4, 1], [1, 5, 6, 1, 1], [1] * 5]
    cut = chunked(range(10, 15), [1] * 5, chunks=1, ends=(1, 2), padding=0, length=5)
    assert cut.ids.tolist() == [[1, 10, 11, 12, 2]]
    assert [count_chunks(n, length=5) for n in (0, 1, 3, 4, 6, 7)] == [1, 1, 1, 2, 2, 3]


def test_states_are_scaled_and_their_mean_is_restored():
    states = np.array([[[1.0, 3.0], [2.0, 2.0]], [[5.0, -5.0], [0.0, 0.0]]])
    weights = np.array([[1.0, 2.0], [1.0, 1.0]])
    assert scaled(states, weights, keep_mean=False)[0].tolist() == [[1, 3], [4, 4]]
    # By hand: the mean was 2 and is 3, so all are multiplied by 2 / 3.
    found = scaled(states, weights, keep_mean=True)
    np.testing.assert_allclose(found[0], [[2 / 3, 2], [8 / 3, 8 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(found[1], states[1])  # with a mean of 0


def encoding(folder, how, chunks, *, xl=False):
    places = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
    parts = []
    for encoder, tokenizer in places[: 1 + xl]:
        read = text.read(folder / encoder, penultimate=xl)
        params = text.load(read, folder / encoder)
        parts.append(text.Part(read, params, text.read_tokenizer(folder / tokenizer, read)))
    return parts, text.texts(
        parts, zeros_for_none=xl, identity="tiny", how=how, chunks=chunks
    )  # fmt: skip


def in_torch(encoder, tokenizer, prompt, chunks, *, penultimate):
    """The states and the first pooled vector of 75 tokens at a time, by transformers."""
    import torch

    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    states, pooled = [], None
    for i in range(chunks):
        part = ids[75 * i : 75 * i + 75]
        row = [tokenizer.bos_token_id, *part, tokenizer.eos_token_id]
        row += [tokenizer.pad_token_id] * (77 - len(row))
        with torch.no_grad():
            made = encoder(torch.tensor([row]), output_hidden_states=True)
        states.append(made.hidden_states[-2] if penultimate else made.last_hidden_state)
        pooled = made[0] if pooled is None else pooled
    return torch.cat(states, dim=1)[0].numpy(), pooled[0].numpy()


PROMPTS = ["cat " * 80 + "dog on a red cat", "a red cat", "cat " * 75]


@pytest.mark.parametrize("family", ("sd15", "sd21", "sdxl"))
def test_long_prompts_in_chunks(folders, family):
    folder, pipeline = folders(family)
    xl = family == "sdxl"
    how = Prompts(long="chunks")
    parts, texts = encoding(folder, how, 2, xl=xl)
    counts = [[part.ids.count([prompt], how) for prompt in PROMPTS] for part in parts]
    assert counts == [[2, 1, 1]] * len(parts)
    found = texts.encode(PROMPTS)
    assert found.tokens.shape == (3, 154, 64 if xl else 32) and texts.length == 154
    for i, prompt in enumerate(PROMPTS):
        made = [
            in_torch(encoder, tokenizer, prompt, 2, penultimate=xl)
            for encoder, tokenizer in (
                (pipeline.text_encoder, pipeline.tokenizer),
                *([(pipeline.text_encoder_2, pipeline.tokenizer_2)] if xl else []),
            )
        ]
        expected = np.concatenate([states for states, _ in made], axis=-1)
        np.testing.assert_allclose(found.tokens[i], expected, atol=1e-5, rtol=1e-5)
        if xl:
            np.testing.assert_allclose(found.pooled[i], made[-1][1], atol=1e-5, rtol=1e-5)
    # One that fits in a chunk begins as it does alone.
    alone = encoding(folder, how, 1, xl=xl)[1].encode(PROMPTS[1:])
    np.testing.assert_allclose(found.tokens[1:, :77], alone.tokens, atol=1e-6)


def test_weights_multiply_the_states(folders):
    folder, _ = folders("sd15")
    plain = encoding(folder, Prompts(), 1)[1].encode(["a red cat", "a (red:1.5) cat"])
    scale = encoding(folder, Prompts(weights="scale"), 1)[1]
    found = scale.encode(["a red cat", "a (red:1.5) cat", r"a \(red:1.5\) cat"]).tokens
    np.testing.assert_array_equal(found[0], plain.tokens[0])
    factors = found[1] / found[0]  # "red" and "cat" are tokens: 1 begin, 1 a, 1 red, 1 cat
    np.testing.assert_allclose(factors[2], 1.5, rtol=1e-5)
    np.testing.assert_allclose(np.delete(factors, 2, axis=0), 1.0, rtol=1e-5)
    # Parentheses are text without the option, and with an escape.
    np.testing.assert_array_equal(found[2], plain.tokens[1])
    kept = encoding(folder, Prompts(weights="scale_keep_mean"), 1)[1].encode(["a (red:1.5) cat"])
    np.testing.assert_allclose(kept.tokens.mean(), found[0].mean(), rtol=1e-4)
    factor = found[0].mean() / found[1].mean()
    assert abs(factor - 1) > 1e-3
    np.testing.assert_allclose(kept.tokens[0], factor * found[1], atol=1e-5)


@pytest.fixture(scope="module")
def chunking(folders):
    return diffjax.load(folders("sd15")[0], long_prompts="chunks", prompt_weights="scale")


def test_prompts_and_the_negative_one_have_as_many_chunks(chunking):
    for prompt, negative in ((PROMPTS[0], "a dog"), ("a dog", PROMPTS[0])):
        how = {"negative_prompt": negative}
        choice = Choice(prompts=(prompt,))
        conditions = chunking._fitting([prompt], how).generator(**how).of(choice).conditions
        condition = conditions.batch(0, 1)
        assert condition.text.tokens.shape == (1, 154, 32)
        assert conditions.null(condition).text.tokens.shape == (1, 154, 32)
    assert chunking._fitting(["a dog"], {}) is chunking


def test_what_comes_after_75_tokens_is_heard(chunking):
    x, how = np.ones((1, 8, 8, 4), np.float32) / 3, {"guidance": "none"}
    ending = PROMPTS[0].replace("dog", "(dog:1.3)")
    one, other = (chunking.denoise(x, 500, prompts=[p], **how).x_0 for p in (PROMPTS[0], ending))
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.slow
def test_samples_and_edits_of_long_prompts(chunking):
    how = {"steps": 2, "seed": 1, "guidance": "classifier_free(scale=3.0)"}
    drawn = chunking.sample([*PROMPTS[:1], "(a cat:1.3)"], **how)
    alone = chunking.sample(PROMPTS[:1], **how)
    assert np.abs(drawn[:1].astype(int) - alone).max() <= 1
    negative = chunking.sample(["a cat"], negative_prompt=PROMPTS[0], **how)
    assert negative.shape == (1, 16, 16, 3)
    edited = chunking.edit(drawn[:1], "vary(strength=0.5)", prompts=PROMPTS[:1], count=1, **how)
    assert edited.shape == (1, 2, 16, 16, 3)


def test_wrong_prompts_and_options(folders):
    folder, _ = folders("sd15")
    for options, message in (
        ({"long_prompts": "pad"}, "long_prompts is 'pad': expected cut or refuse or chunks"),
        ({"prompt_weights": True}, "prompt_weights is True: expected none or scale"),
        ({"tile": -1}, "tile is -1"),
        ({"sparkle": 1}, "sparkle is not a setting of Stable Diffusion: expected dtype"),
    ):
        with pytest.raises(UserError, match=message) as error:
            diffjax.load(folder, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="tile is a setting of Stable Diffusion"):
        diffjax.load(folder / "unet", tile=8)
    model = diffjax.load(folder, long_prompts="refuse", prompt_weights="scale")
    for how, message in (
        ({"prompts": PROMPTS[:1]}, r"'cat cat .* has more than 75 tokens: shorten it, or load"),
        ({"prompts": ["(a"]}, r"'\(' at character 1 that is not closed"),
        ({"prompts": ["a"], "negative_prompt": "b)"}, "that is not opened"),
    ):
        with pytest.raises(UserError, match=message) as error:
            model.sample(steps=2, **how)
        assert "\n" not in str(error.value)
