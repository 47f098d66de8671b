"""Low-resolution images as maps: against Pillow's and SciPy's filters, and over many draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from diffjax import rng
from diffjax.conditioning import maps
from diffjax.conditioning.super_resolution import gaussian_blur, log_snr, scales, super_resolution

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 24, 16, 3)), jnp.float32)
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def key(name):
    return rng.stream(0, name, 5)


def pillow(images, size, method):
    """Pillow's resize of each channel in float32, within the range of a file's values."""
    height, width = size
    resized = [
        np.asarray(Image.fromarray(np.asarray(plane)).resize((width, height), FILTERS[method]))
        for plane in np.moveaxis(np.asarray(images), -1, 1).reshape(-1, *images.shape[1:3])
    ]
    planes = np.stack(resized).reshape(len(images), images.shape[-1], height, width)
    return np.clip(np.moveaxis(planes, 1, -1), -1, 1)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("method", FILTERS)
def test_without_augmentation_the_map_is_the_image_that_pillow_resizes(factor, method):
    make = super_resolution(factor=factor, resize=method, downsample=method)
    low = pillow(IMAGES, (24 // factor, 16 // factor), method)
    np.testing.assert_allclose(make.low_resolution(IMAGES), low, atol=2e-6)
    wanted = pillow(low, (24, 16), method)
    np.testing.assert_allclose(make(IMAGES), wanted, atol=3e-6)
    indices = jnp.arange(3)
    at_zero = make.at_level(make(IMAGES), jnp.zeros(3), key=key("x"), indices=indices)
    np.testing.assert_array_equal(at_zero.values, make(IMAGES))
    quiet = super_resolution(factor=factor, resize=method, downsample=method, noise=False)
    drawn = quiet.draw(IMAGES, key=key, indices=indices)
    np.testing.assert_array_equal(drawn.values, make(IMAGES))
    assert drawn.log_snr is None and drawn.present.all()


def test_the_mean_of_squares_is_pillow_s_box():
    make = super_resolution(factor=4, downsample="area")
    plane = np.asarray(IMAGES[0, ..., 0])
    box = np.asarray(Image.fromarray(plane).resize((4, 6), Image.Resampling.BOX))
    np.testing.assert_allclose(make.low_resolution(IMAGES)[0, ..., 0], box, atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.25, 0.7, 1.0])
def test_noised_maps_have_the_marginals_of_the_forward_process(level):
    """E z_s and Var z_s over 4,000 draws; SNR(s) = E[z_s]^2 / Var z_s at |z| = 1."""
    make, count = super_resolution(factor=2), 4000
    values = jnp.ones((count, 2, 2, 1)).at[:, 0].set(-0.5)
    drawn = make.at_level(
        values, jnp.full(count, level), key=jax.random.key(1), indices=jnp.arange(count)
    )
    signal, noise = np.cos(np.pi * level / 2), np.sin(np.pi * level / 2)
    z = np.asarray(drawn.values, np.float64)
    error = 4.5 * noise / np.sqrt(count) + 1e-6
    np.testing.assert_allclose(z.mean(0)[1], signal, atol=error)
    np.testing.assert_allclose(z.mean(0)[0], -0.5 * signal, atol=error)
    np.testing.assert_allclose(z.var(0), noise**2, atol=6 * noise**2 / np.sqrt(count) + 1e-9)
    if 0 < level < 1:
        ratio = np.square(z.mean(0)[1]) / z.var(0)[1]
        np.testing.assert_allclose(drawn.log_snr[0], np.log(ratio).mean(), atol=0.3)
    pairs = np.corrcoef(z[:, 1, 0, 0], z[:, 1, 1, 0])[0, 1] if noise else 0.0
    assert abs(pairs) < 0.08  # noise of neighbouring pixels is independent


def test_the_log_snr_falls_from_15_to_minus_15():
    levels = jnp.linspace(0, 1, 201)
    values = np.asarray(log_snr(levels))
    assert values[0] == 15.0 and values[-1] == -15.0
    assert (np.diff(values) < 0).all()
    np.testing.assert_allclose(values, -values[::-1], atol=2e-4)  # cos and sin change places
    signal, noise = scales(levels)
    np.testing.assert_allclose(np.square(signal) + np.square(noise), 1, atol=1e-6)


def test_levels_in_training_are_uniform_and_follow_from_the_example():
    make = super_resolution(factor=2)
    images = jnp.zeros((500, 2, 2, 1))
    drawn = make.draw(images, key=key, indices=jnp.arange(500))
    levels = 2 / np.pi * np.arctan(np.exp(-np.asarray(drawn.log_snr, np.float64) / 2))
    counts = np.histogram(levels, bins=5, range=(0, 1))[0]
    assert counts.min() > 70 and counts.max() < 130  # 100 each, standard deviation 9
    some = make.draw(images[:4], key=key, indices=jnp.array([7, 3, 499, 0]))
    np.testing.assert_array_equal(some.values, drawn.values[jnp.array([7, 3, 499, 0])])
    np.testing.assert_array_equal(some.log_snr, drawn.log_snr[jnp.array([7, 3, 499, 0])])
    other = make.draw(images, key=lambda name: rng.stream(0, name, 6), indices=jnp.arange(500))
    assert (other.values != drawn.values).mean() > 0.99


@pytest.mark.parametrize("std", [0.4, 0.6, 1.0])
def test_the_blur_is_scipy_s_gaussian_of_three_pixels(std):
    image = np.asarray(IMAGES[0])
    wanted = ndimage.gaussian_filter(image, (std, std, 0), mode="nearest", radius=(1, 1, 0))
    np.testing.assert_allclose(gaussian_blur(image, jnp.float32(std)), wanted, atol=1e-5)


def test_a_share_of_the_training_images_is_blurred():
    options = {"factor": 2, "noise": False}
    make, sharp = super_resolution(blur=0.3, **options), super_resolution(**options)
    images = jnp.broadcast_to(IMAGES[:1], (300, *IMAGES.shape[1:]))
    drawn = np.asarray(make.draw(images, key=key, indices=jnp.arange(300)).values)
    change = np.abs(drawn - np.asarray(sharp(images))).max((1, 2, 3))
    assert 60 < (change > 1e-6).sum() < 120  # 90, standard deviation 8
    assert len(np.unique(change[change > 1e-6])) > 50  # a standard deviation each
    np.testing.assert_array_equal(make(images[:2]), sharp(images[:2]))  # in training alone


def test_other_maps_have_no_level():
    make = maps.silhouette()
    drawn = maps.in_training(make, IMAGES, key=key, indices=jnp.arange(3))
    np.testing.assert_array_equal(drawn.values, make(IMAGES))
    assert drawn.log_snr is None and not maps.has_level(make)
    same = maps.at_level(make, make(IMAGES), 0.0, key=key("x"), indices=jnp.arange(3))
    assert same.log_snr is None


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 1}, {"factor": 2.0}, {"resize": "nearest"}, {"downsample": "box"},
        {"noise": 0.5}, {"blur": 1.5}, {"blur": -0.1}, {"blur_std": (0.6, 0.4)},
        {"blur_std": (0.4,)},
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        super_resolution(**options)


def test_a_factor_that_does_not_divide_the_size_is_named():
    with pytest.raises(ValueError, match="factor = 5 does not divide images of 24x16"):
        super_resolution(factor=5)(IMAGES)
