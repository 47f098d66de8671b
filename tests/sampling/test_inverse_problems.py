"""Inverse problems on Gaussian data, whose posteriors are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import grids, inverse_problems, process, samplers, schedules

SCHEDULE = schedules.linear_beta(1000)
KEY = jax.random.key(0)


def white_denoiser(x_t, t, cond=None):
    """E[x_0 | x_t] of standard normal data."""
    signal, noise = process.scales_like(SCHEDULE, t, x_t)
    share = 1 / (signal**2 + noise**2)
    return dj.Estimates(signal * share * x_t, noise * share * x_t)


def operator(x):
    """The mean of the first two of three pixels, and the third."""
    return jnp.stack([x[:, :2].mean(1), x[:, 2]], axis=1)


def spread(y):
    return jnp.stack([y[:, 0], y[:, 0], y[:, 1]], axis=1)


def test_pseudo_inverse_guidance_draws_from_the_posterior_of_white_data():
    n = 4000
    y = jnp.tile(jnp.array([[0.9, -0.6]]), (n, 1))
    denoise = inverse_problems.pseudo_inverse(
        white_denoiser, SCHEDULE,
        operator=operator, inverse=spread, y=y,
    )  # fmt: skip
    x = samplers.ddim(
        denoise, jax.random.normal(KEY, (n, 3)), grid=grids.trailing(SCHEDULE, 250), key=KEY,
        eta=1.0,
    ).x_0  # fmt: skip
    np.testing.assert_allclose(operator(x), y, atol=0.02)
    # Given their mean, two standard normal pixels differ by a normal of variance 2.
    difference = np.asarray(x[:, 0] - x[:, 1])
    assert abs(difference.mean()) < 4 * np.sqrt(2 / n)
    assert abs(difference.var() - 2) < 0.15


def test_posterior_sampling_fits_the_measurement():
    n = 200
    y = jnp.tile(jnp.array([[0.9, -0.6]]), (n, 1))
    x_T, grid = jax.random.normal(KEY, (n, 3)), grids.trailing(SCHEDULE, 200)
    fit = []
    for scale in (0.0, 10.0):
        denoise = inverse_problems.posterior_sampling(
            white_denoiser, SCHEDULE, operator=operator, y=y, scale=scale
        )
        x = samplers.ancestral(denoise, x_T, grid=grid, key=KEY).x_0
        fit.append(float(jnp.abs(operator(x) - y).mean()))
    assert fit[1] < 0.2 * fit[0]


OPERATORS = {
    "average_pool": inverse_problems.average_pool(4),
    "luminance": inverse_problems.luminance(),
    "blur": inverse_problems.blur(inverse_problems.gaussian_kernel(0.7)),
    "strong blur": inverse_problems.blur(inverse_problems.gaussian_kernel(2.0)),
    "one-sided blur": inverse_problems.blur(np.array([[0.0, 0.2, 0.8]])),
    "masking": inverse_problems.masking(np.arange(64).reshape(8, 8, 1) % 3 == 0),
}
SHAPE = (8, 12, 3)


def matrix(function, shape):
    """A linear function of images as a matrix, column by column."""
    size = int(np.prod(shape))
    columns = function(jnp.eye(size).reshape(size, *shape))
    return np.asarray(columns).reshape(size, -1).T.astype(np.float64)


@pytest.mark.parametrize("name", OPERATORS)
def test_pseudo_inverses_are_those_of_moore_and_penrose(name):
    shape = (8, 8, 3) if name == "masking" else (16, 16, 1) if "strong" in name else SHAPE
    operator = OPERATORS[name]
    a = matrix(operator.apply, shape)
    y_shape = jax.eval_shape(operator.apply, jnp.zeros((1, *shape))).shape[1:]
    inverse = matrix(operator.pseudo_inverse, y_shape)
    # NumPy's, by singular values; a blur drops those that it keeps less than 2 % of.
    cut = 0.02 if "blur" in name else 1e-9
    np.testing.assert_allclose(inverse, np.linalg.pinv(a, rcond=cut), atol=3e-4)
    lost = "blur" in name
    if not lost:
        np.testing.assert_allclose(a @ inverse @ a, a, atol=1e-5)


def test_a_blur_is_scipys():
    ndimage = pytest.importorskip("scipy.ndimage")
    kernel = np.random.default_rng(0).random((3, 5))
    x = jax.random.normal(KEY, (2, 9, 11, 2))
    ours = inverse_problems.blur(kernel).apply(x)
    theirs = [
        [ndimage.convolve(image[..., c], kernel, mode="wrap") for c in range(2)]
        for image in np.asarray(x)
    ]
    np.testing.assert_allclose(ours, np.moveaxis(theirs, 1, -1), atol=1e-4)


def test_a_gaussian_kernel_has_its_variance():
    kernel = inverse_problems.gaussian_kernel(1.5)
    place = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum() == pytest.approx(1)
    assert (kernel.sum(0) * place**2).sum() == pytest.approx(1.5**2, rel=0.03)


@pytest.mark.parametrize("name", ["average_pool", "luminance", "blur"])
def test_images_are_restored_to_what_was_measured(name):
    """Super-resolution, colourisation and deblurring of white images by both methods."""
    operator = OPERATORS[name]
    x_0, x_T = jax.random.normal(KEY, (2, 20, *SHAPE))
    y, grid = operator.apply(x_0), grids.trailing(SCHEDULE, 100)
    guided = inverse_problems.pseudo_inverse(
        white_denoiser, SCHEDULE, operator=operator.apply, inverse=operator.pseudo_inverse, y=y
    )
    fits = {}
    for kind, denoise in {
        "none": white_denoiser,
        "pseudo-inverse": guided,
        "DPS": inverse_problems.posterior_sampling(
            white_denoiser, SCHEDULE, operator=operator.apply, y=y, scale=20.0
        ),
    }.items():
        x = samplers.ddim(denoise, x_T, grid=grid, key=KEY, eta=1.0).x_0
        fits[kind] = float(jnp.sqrt(jnp.square(operator.apply(x) - y).mean()))
    assert fits["pseudo-inverse"] < 0.05 * fits["none"]
    assert fits["DPS"] < 0.5 * fits["none"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: inverse_problems.average_pool(0), "factor"),
        (
            lambda: inverse_problems.average_pool(5).apply(jnp.zeros((1, 8, 8, 1))),
            "does not divide",
        ),
        (lambda: inverse_problems.luminance((0.0, 0.0)), "not all 0"),
        (lambda: inverse_problems.luminance().apply(jnp.zeros((1, 8, 8, 1))), "1 channels"),
        (lambda: inverse_problems.blur(np.ones((2, 3))), "odd sides"),
        (lambda: inverse_problems.blur(np.ones((3, 3)), cutoff=0.0), "cutoff"),
        (lambda: inverse_problems.blur(np.ones((9, 9))).apply(jnp.zeros((1, 8, 8, 1))), "larger"),
        (lambda: inverse_problems.gaussian_kernel(0.0), "std must be in"),
    ],
)
def test_operators_that_can_not_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
