"""A prompt for all images, and every second image of another folder."""

import jax
import numpy as np
import pytest
from PIL import Image

from diffjax import data
from diffjax.data import dreambooth
from diffjax.errors import UserError
from diffjax.experiment import defaults
from diffjax.experiment.dataset import load_train
from diffjax.latent.sizes import with_sizes


def folder(path, values, sides=(8, 8)):
    path.mkdir()
    for value in values:
        pixels = np.full((*sides, 3), value, np.uint8)
        pixels[0, 0] = (value, 0, 255)  # colour
        Image.fromarray(pixels).save(path / f"{value:03}.png")
    return path


@pytest.fixture
def config(tmp_path):
    made = defaults.diffusion()
    made.data.name = f"folder:{folder(tmp_path / 'dogs', (10, 20))}"
    made.data.prompt = "a sks dog"
    made.data.prior = str(folder(tmp_path / "class", (100, 110, 120, 130, 140), (12, 16)))
    made.data.prior_prompt = "a dog"
    return made


def value(example):
    return int(example["image"][4, 4, 0])


def test_examples_alternate(config):
    source = load_train(config)
    assert len(source) == 10 and source.captions == ("a dog", "a sks dog")
    found = [(value(source[i]), source.captions[source[i]["caption"]]) for i in range(10)]
    assert found[::2] == [(v, "a sks dog") for v in (10, 20, 10, 20, 10)]
    assert found[1::2] == [(v, "a dog") for v in (100, 110, 120, 130, 140)]
    with pytest.raises(IndexError):
        source[10]
    # SDXL is given the size of each file.
    sizes = with_sizes(source, source)
    assert sizes[0]["sizes"].tolist() == [8, 8, 0, 0, 8, 8]
    assert sizes[3]["sizes"][:2].tolist() == [12, 16]


def test_batches_are_of_both_and_resumed(config):
    source = load_train(config)
    batches = data.batches(source, batch_size=10, seed=3)
    first, state = next(batches), batches.get_state()
    assert sorted(first["caption"].tolist()) == [0] * 5 + [1] * 5
    again = data.batches(load_train(config), batch_size=10, seed=3)
    again.set_state(state)
    jax.tree.map(np.testing.assert_array_equal, next(again), next(batches))


def test_another_prior_is_no_continuation(config, tmp_path):
    state = data.batches(load_train(config), batch_size=2, seed=3).get_state()
    folder(tmp_path / "other", (100, 110, 120, 130))
    config.data.prior = str(tmp_path / "other")
    with pytest.raises(UserError):
        data.batches(load_train(config), batch_size=2, seed=3).set_state(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"prior_prompt": ""}, r"config\.data\.prior = .* has no captions: give a prompt"),
        ({"prior": "/no/such"}, r"config\.data\.prior = '/no/such': "),
        ({"prompt": ""}, r"dogs has no captions: give a prompt"),
    ),
)
def test_wrong_configs(config, changes, message):
    config.data.update(changes)
    with pytest.raises(UserError, match=message) as error:
        load_train(config)
    assert "\n" not in str(error.value)


def test_a_set_with_captions_takes_no_prompt():
    source = data.ArraySource(
        np.zeros((1, 2, 2, 3), np.uint8), captions=("a",), caption_numbers=np.zeros(1, np.int32)
    )
    with pytest.raises(UserError, match="has captions, and a prompt for all images was given"):
        dreambooth.prompted(source, "b")
