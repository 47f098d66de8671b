"""Edits of embeddings by a decoder that is known: x_0 is a linear function of the embedding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, schedules
from diffjax.inference.edit_tasks import Row
from diffjax.inference.unclip import interpolate_embeddings, text_difference, variations
from diffjax.models.condition import Condition
from diffjax.parametrisations import Estimates
from diffjax.sampling import samplers

SCHEDULE = schedules.cosine(T=100)
GRID = grids.trailing(SCHEDULE, 10)
DECODE = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32) / 4
COUNT = 5


def decoded(z):
    return (np.asarray(z) @ DECODE).reshape(-1, 2, 2, 3)


def denoise(x_t, t, cond=None):
    """The best denoiser where x_0 follows from the embedding."""
    x_0 = (cond.embedding @ DECODE).reshape(x_t.shape)
    signal, noise = SCHEDULE(jnp.asarray(t))
    return Estimates(x_0, (x_t - signal * x_0) / noise)


def row_of(z, *, places=None):
    z = jnp.asarray(z, jnp.float32)
    return Row(
        images=jnp.asarray(decoded(z)),
        mask=None,
        eps=jax.random.normal(jax.random.key(1), (COUNT, 2, 2, 3)),
        keys=jax.random.split(jax.random.key(2), COUNT),
        condition=Condition(embedding=z[:1]),
        guided=denoise,
        threshold=lambda denoise: denoise,
        schedule=SCHEDULE,
        sampler=samplers.dpm_solver_pp_2m,
        grid=GRID,
        embeddings=z,
        places=None if places is None else jnp.asarray(places, jnp.float32),
    )


def angle(a, b):
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return np.arccos(np.clip(cosine, -1, 1))


def embedding_of(images):
    """The inverse of `decoded`."""
    return np.asarray(images).reshape(len(images), -1) @ np.linalg.pinv(DECODE)


def test_variations_decode_the_image_s_own_embedding():
    z = np.array([[1.0, -2.0, 0.5, 0.3]])
    task = variations()
    found = task.run(row_of(z))
    assert task.columns(COUNT)[0] == "image" and len(task.columns(COUNT)) == len(found)
    np.testing.assert_allclose(found, np.repeat(decoded(z), COUNT + 1, axis=0), atol=1e-4)


def test_embeddings_are_interpolated_along_the_great_circle():
    a, b = np.array([1.0, -2.0, 0.5, 0.3]), np.array([0.2, 1.0, 1.9, -0.9])
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    task = interpolate_embeddings()
    found = embedding_of(task.run(row_of(np.stack([a, b]))))
    assert len(found) == COUNT + 2 == len(task.columns(COUNT)) and task.images == 2
    # Equal steps of the angle, at one length, in the plane of both.
    steps = [angle(p, q) for p, q in itertools.pairwise(found)]
    np.testing.assert_allclose(steps, angle(a, b) / (COUNT + 1), rtol=1e-2)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(a), rtol=1e-3)
    assert np.linalg.matrix_rank(found, tol=1e-2) == 2


def test_a_text_difference_turns_the_embedding_towards_it():
    z = np.array([[1.0, -2.0, 0.5, 0.3]])
    places = np.array([[1.0, 0.0, 0.0, 3.0], [0.0, 2.0, 0.5, 3.0]])
    way = places[1] - places[0]
    task = text_difference(start="a cat", end="a dog", most=0.4)
    found = embedding_of(task.run(row_of(z, places=places)))[1:]
    assert task.columns(COUNT)[1:] == ("0.00", "0.10", "0.20", "0.30", "0.40")
    np.testing.assert_allclose(found[0], z[0], atol=1e-3)
    whole = angle(z[0], way)
    np.testing.assert_allclose(
        [angle(each, way) / whole for each in found], [1.0, 0.9, 0.8, 0.7, 0.6], atol=2e-3
    )
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(z), rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "", "end": "a"}, "start must be a caption"),
        ({"start": "a", "end": 3}, "end must be a caption"),
        ({"start": "a", "end": "a"}, "must differ"),
        ({"start": "a", "end": "b", "most": 1.5}, r"most must be in \(0, 1\]"),
        ({"start": "a", "end": "b", "iterations": -1}, "iterations"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        text_difference(**options)
