"""Maps made of images."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.conditioning import maps

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 6, 9, 3)), jnp.float32)


def test_low_resolution_keeps_means_and_nothing_finer():
    made = maps.low_resolution(factor=3)(IMAGES)
    assert made.shape == IMAGES.shape
    cells = np.asarray(made).reshape(2, 2, 3, 3, 3, 3)
    assert np.ptp(cells, axis=(2, 4)).max() < 1e-6
    np.testing.assert_allclose(made.mean((1, 2)), IMAGES.mean((1, 2)), atol=1e-6)


def test_low_resolution_of_an_odd_size_and_of_itself():
    made = maps.low_resolution(factor=4)(IMAGES)
    assert made.shape == IMAGES.shape and np.isfinite(made).all()
    even = IMAGES[:, :4, :8]
    once = maps.low_resolution(factor=4)(even)
    np.testing.assert_allclose(maps.low_resolution(factor=4)(once), once, atol=1e-6)


def test_a_silhouette_is_where_something_stands_before_the_background():
    image = np.ones((1, 5, 5, 3), np.float32)
    image[0, 1:3, 2] = (1.0, 1.0, 0.5)  # differs in one channel
    image[0, 4, 4] = 0.95  # within the tolerance
    found = np.asarray(maps.silhouette()(jnp.asarray(image)))[0, ..., 0]
    assert set(np.unique(found)) == {-1.0, 1.0}
    assert np.argwhere(found > 0).tolist() == [[1, 2], [2, 2]]


@pytest.mark.parametrize("channels", [1, 3])
def test_edges_are_where_a_step_is_in_either_direction(channels):
    image = np.full((1, 8, 8, channels), -1.0, np.float32)
    image[:, :, 4:] = 1.0
    upright = np.asarray(maps.edges()(jnp.asarray(image)))[0, ..., 0] > 0
    assert upright[:, 3:5].all() and not upright[:, :3].any() and not upright[:, 5:].any()
    across = np.asarray(maps.edges()(jnp.asarray(image.transpose(0, 2, 1, 3))))[0, ..., 0] > 0
    np.testing.assert_array_equal(across, upright.T)
    assert not (np.asarray(maps.edges(threshold=2.0)(jnp.asarray(image))) > 0).any()


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (maps.low_resolution, {"factor": 1}), (maps.low_resolution, {"factor": 2.0}),
        (maps.silhouette, {"background": 2.0}), (maps.silhouette, {"tolerance": -1}),
        (maps.edges, {"threshold": 0}), (maps.edges, {"threshold": "x"}),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_named(make, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make(**options)
