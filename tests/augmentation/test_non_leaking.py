"""Geometric transformations against NumPy's and SciPy's, their inverses and their distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.augmentation.non_leaking import (
    PARAMETERS,
    NonLeaking,
    Transformation,
    sample,
    transform,
)

ROWS, COLUMNS = np.mgrid[0:16, 0:16] / 15
# Smooth, and alike at no two places.
SMOOTH = np.stack([np.sin(4 * ROWS + 1) * np.cos(3 * COLUMNS), ROWS * COLUMNS], -1)
IMAGE = jnp.asarray(SMOOTH, jnp.float32)
ZEROS = Transformation(*jnp.zeros((8, 1)))


def change(**values):
    return ZEROS._replace(**{name: jnp.full(1, value) for name, value in values.items()})


def transformed(image, **values):
    return np.asarray(transform(jnp.asarray(image)[None], change(**values))[0])


def test_no_transformation_changes_no_bit_and_has_no_parameters():
    for shape in ((16, 16, 3), (5, 8, 1)):
        x = jax.random.normal(jax.random.key(0), (1, *shape))
        np.testing.assert_array_equal(transform(x, ZEROS), x)
    np.testing.assert_array_equal(ZEROS.parameters(), np.zeros((1, PARAMETERS)))


def test_right_angles_mirrors_and_whole_pixels_are_numpys():
    for k in range(4):
        found = transformed(IMAGE, angle=k * np.pi / 2)
        np.testing.assert_allclose(found, np.rot90(IMAGE, k), atol=1e-5)
    np.testing.assert_array_equal(transformed(IMAGE, flip_x=1.0), np.fliplr(IMAGE))
    np.testing.assert_array_equal(transformed(IMAGE, flip_y=1.0), np.flipud(IMAGE))
    # 0.125 of 16 pixels are 2: to the right, and downwards; reflected at the border.
    padded = np.pad(np.asarray(IMAGE), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    moved = transformed(IMAGE, shift_x=1.0, shift_y=-1.5)
    np.testing.assert_allclose(moved, padded[4 + 3 : 4 + 3 + 16, 4 - 2 : 4 - 2 + 16], atol=1e-5)


def test_scaling_and_stretching_are_scipys():
    """Enlarged by 2 from the middle: the pixel at p is what was at p / 2."""
    ndimage = pytest.importorskip("scipy.ndimage")
    middle = np.array([7.5, 7.5])

    def theirs(matrix):
        offset = middle - matrix @ middle
        channels = [
            ndimage.affine_transform(SMOOTH[..., c], matrix, offset, order=1, mode="mirror")
            for c in range(2)
        ]
        return np.stack(channels, -1)

    for factor in (2.0, 0.6):
        found = transformed(IMAGE, log_scale=np.log2(factor) / 0.2)
        np.testing.assert_allclose(found, theirs(np.eye(2) / factor), atol=1e-5)
    # Wider by 1.5 and lower by 1.5; and at a right angle the other way round.
    wide = np.diag([1.5, 1 / 1.5])  # (row, column)
    stretch = np.log2(1.5) / 0.2
    np.testing.assert_allclose(transformed(IMAGE, log_stretch=stretch), theirs(wide), atol=1e-5)
    found = transformed(IMAGE, log_stretch=stretch, stretch_angle=np.pi / 2)
    np.testing.assert_allclose(found, theirs(np.linalg.inv(wide)), atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"angle": 0.3},
        {"log_scale": 0.5},
        {"log_stretch": 0.7, "stretch_angle": 0.4},
        {"shift_x": 0.3, "shift_y": -0.2},
    ],
)
def test_there_and_back_is_the_image_inside(values):
    back = {name: value if name == "stretch_angle" else -value for name, value in values.items()}
    there = transformed(IMAGE, **values)
    inner = (slice(5, 11), slice(5, 11))
    assert np.abs(there - IMAGE)[inner].max() > 0.02
    again = transformed(there, **back)
    assert np.abs(again - IMAGE)[inner].max() < 0.012


def test_the_order_is_scale_turn_stretch_move():
    """A bright pixel right of the middle, followed by hand."""
    image = np.zeros((33, 33, 1), np.float32)
    image[15:18, 19:22] = 1  # around 4 pixels right of the middle, 16
    found = transformed(
        image, log_scale=1 / 0.2, angle=np.pi / 2, log_stretch=-0.5 / 0.2,
        shift_x=4 / (0.125 * 33),
    )  # fmt: skip
    # Scaled: 8 right. Turned counter-clockwise: 8 up. Narrower, and higher by 2^0.5: 11.3 up.
    # Moved: 4 right.
    rows, columns = np.mgrid[0:33, 0:33]
    weight = found[..., 0] / found.sum()
    assert (rows * weight).sum() - 16 == pytest.approx(-8 * 2**0.5, abs=0.1)
    assert (columns * weight).sum() - 16 == pytest.approx(4, abs=0.1)


def test_the_distribution():
    count = 20_000
    found = sample(jax.random.key(1), jnp.arange(count), probability=0.12)
    a = np.asarray(found.parameters())
    assert a.shape == (count, PARAMETERS)
    share = (a != 0).mean(axis=0)
    expected = [0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.12 / 2, 0.12, 0.12]
    np.testing.assert_allclose(share, expected, atol=4 * np.sqrt(0.25 / count))
    for column in (2, 7, 8):
        used = a[a[:, column] != 0, column]
        assert abs(used.mean()) < 0.1 and used.std() == pytest.approx(1, abs=0.06)
    np.testing.assert_array_equal(a[:, 7] != 0, a[:, 8] != 0)
    angle = np.asarray(found.angle)
    assert angle[angle != 0].std() == pytest.approx(np.pi / 3**0.5, abs=0.1)
    # The parameters are of one transformation each: the stretch follows from a_5 and a_6.
    sign = np.where(a[:, 5] < 0, -1, 1)
    np.testing.assert_allclose(sign * np.hypot(a[:, 5], a[:, 6]), found.log_stretch, atol=1e-5)


def test_without_probability_there_is_mirroring_alone_and_with_1_all():
    never = np.asarray(sample(jax.random.key(2), jnp.arange(100), probability=0.0).parameters())
    assert (never[:, 1:] == 0).all() and set(never[:, 0]) == {0.0, 1.0}
    always = np.asarray(sample(jax.random.key(2), jnp.arange(100), probability=1.0).parameters())
    assert (always[:, [2, 3, 4, 5, 7, 8]] != 0).all()


def test_examples_are_transformed_by_their_place():
    augment = NonLeaking(0.8)
    x = jax.random.normal(jax.random.key(3), (6, 8, 10, 3))
    key = jax.random.key(4)
    whole = augment.apply(x, augment.draw(key, jnp.arange(6)))
    part = augment.apply(x[4:], augment.draw(key, jnp.arange(4, 6)))
    np.testing.assert_allclose(whole[4:], part, atol=1e-6)
    assert whole.shape == x.shape and bool(jnp.isfinite(whole).all())
