"""Changes of an image, against NumPy's and by what they keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import rng
from diffjax.augmentation import choices
from diffjax.augmentation.choices import augment, colour, crop, flip, rotate90, translate, window
from diffjax.images import to_model_range

IMAGE = np.random.default_rng(0).uniform(-0.7, 0.7, (6, 6, 3)).astype(np.float32)
WIDE = np.random.default_rng(1).uniform(-0.7, 0.7, (5, 9, 1)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 200)


def drawn(change, image, **options):
    return np.asarray(jax.vmap(lambda key: change(key, jnp.asarray(image), **options))(KEYS))


def counted(found, wanted):
    """How often each of the wanted images was found; all must be one of them."""
    equal = (found[:, None] == np.stack(wanted)).all(axis=(2, 3, 4))
    assert (equal.sum(axis=1) == 1).all()
    return equal.sum(axis=0)


def test_flip_is_numpys_for_half_of_the_images():
    for image in (IMAGE, WIDE):
        assert counted(drawn(flip, image), [image, np.fliplr(image)]).min() > 70


def test_rotate90_is_numpys_for_a_quarter_each():
    counts = counted(drawn(rotate90, IMAGE), [np.rot90(IMAGE, k) for k in range(4)])
    assert counts.min() > 25
    with pytest.raises(ValueError, match="square images, not 5x9"):
        rotate90(KEYS[0], jnp.asarray(WIDE))


@pytest.mark.parametrize("border", ["reflect", "edge", "black"])
def test_crop_is_one_of_all_windows(border):
    modes = {"reflect": {"mode": "reflect"}, "edge": {"mode": "edge"},
             "black": {"mode": "constant", "constant_values": -1}}  # fmt: skip
    padded = np.pad(WIDE, ((1, 1), (1, 1), (0, 0)), **modes[border])
    windows = [padded[i : i + 5, j : j + 9] for i in range(3) for j in range(3)]
    assert counted(drawn(crop, WIDE, padding=1, border=border), windows).min() > 5


def test_a_window_is_one_of_all_of_its_size():
    windows = [WIDE[i : i + 4, j : j + 4] for i in range(2) for j in range(6)]
    assert counted(drawn(window, WIDE, size=4), windows).min() > 2
    np.testing.assert_array_equal(drawn(window, WIDE[:, :5], size=5)[0], WIDE[:, :5])


def test_translate_reaches_its_share_of_each_side():
    found = drawn(translate, WIDE, fraction=0.4, border="black")  # 2 of 5 rows, 4 of 9 columns
    black = (found == -1).all(axis=-1)
    assert black[:, :, 4].sum(axis=1).max() == 2 and black[:, 2].sum(axis=1).max() == 4
    assert {tuple(row) for row in np.unique(black[:, 2].sum(axis=1, keepdims=True), axis=0)} == {
        (i,) for i in range(5)
    }


def test_colour_keeps_what_it_should():
    # Brightness alone moves all pixels alike.
    moved = drawn(colour, IMAGE, brightness=0.2, contrast=0.0, saturation=0.0) - IMAGE
    np.testing.assert_allclose(moved, moved[:, :1, :1, :1] + 0 * moved, atol=1e-6)
    assert 0.15 < moved.max() <= 0.2 and -0.2 <= moved.min() < -0.15
    # Contrast alone keeps the mean, and scales all distances to it.
    spread = drawn(colour, IMAGE, brightness=0.0, contrast=0.3, saturation=0.0)
    np.testing.assert_allclose(spread.mean(axis=(1, 2, 3)), IMAGE.mean(), atol=1e-6)
    ratios = spread.std(axis=(1, 2, 3)) / IMAGE.std()
    assert 0.7 <= ratios.min() < 0.75 and 1.25 < ratios.max() <= 1.3
    # Saturation alone keeps each pixel's mean, and does nothing to a grey image.
    pale = 0.4 * IMAGE  # not clipped
    tinted = drawn(colour, pale, brightness=0.0, contrast=0.0, saturation=1.0)
    np.testing.assert_allclose(tinted.mean(-1), pale.mean(-1) + 0 * tinted[..., 0], atol=1e-6)
    same = drawn(colour, WIDE, brightness=0.0, contrast=0.0, saturation=1.0)
    np.testing.assert_allclose(same, WIDE + 0 * same, atol=1e-6)
    assert np.abs(drawn(colour, 1.4 * IMAGE, brightness=1.0)).max() <= 1


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        (crop, {"padding": 6}, "less than the side"),
        (crop, {"padding": 0}, "at least 1"),
        (translate, {"fraction": 0.01}, "up to 0 and 0 pixels"),
        (crop, {"padding": 1, "border": "white"}, "one of reflect, edge, black"),
        (window, {"size": 7}, r"expected a size in \[1, 6\]"),
        (colour, {"contrast": 1.0}, r"contrast in \[0, 1\)"),
    ],
)
def test_options_out_of_range(change, options, match):
    with pytest.raises(ValueError, match=match):
        change(KEYS[0], jnp.asarray(IMAGE), **options)


def test_examples_differ_and_depend_on_their_place_alone():
    images = to_model_range(jnp.full((8, 6, 6, 1), 1, jnp.uint8).at[:, 0, 0].set(200))
    changes = choices.AUGMENTATIONS | {"window": functools.partial(window, size=5)}
    pairs = tuple((choices.stream_of(name), f) for name, f in changes.items())

    def key(name):
        return rng.stream(5, name, 3)

    whole = np.asarray(augment(pairs, key, jnp.arange(8), images))
    assert len({image.tobytes() for image in whole}) > 4
    parts = [augment(pairs, key, jnp.arange(i, i + 4), images[i : i + 4]) for i in (0, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_change_of_shape_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"'smaller' made \(2, 3, 6, 3\) of \(2, 6, 6, 3\)"):
        augment(
            [("smaller", lambda key, x: x[:3])], lambda name: jax.random.key(0), jnp.arange(2),
            jnp.stack([IMAGE, IMAGE]),
        )  # fmt: skip
