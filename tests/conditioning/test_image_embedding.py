"""Whitened embeddings, and the place of a text among them."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.conditioning.image_embedding import (
    Fitted,
    ImageEmbedding,
    check_network,
    cosine,
    fit_text_projection,
    fit_whitening,
)
from diffjax.errors import UserError
from diffjax.models.embedding_network import EmbeddingNetwork

RNG = np.random.default_rng(0)


def features(count=400, width=12, *, rank=None):
    """Normal features with variances over three orders of magnitude, in a rotated basis."""
    scales = np.logspace(0, -1.5, width)
    scales[width if rank is None else rank :] = 0
    turned, _ = np.linalg.qr(RNG.normal(size=(width, width)))
    return RNG.normal(size=(count, width)) * scales @ turned + RNG.normal(size=width)


def test_whitened_features_have_unit_variance_and_span_the_largest_components():
    x = features()
    z = fit_whitening(x, dimensions=5)(x)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(5), atol=1e-4)
    # The least squares reconstruction is that of the truncated SVD, an independent route.
    centred = x - x.mean(0)
    u, s, vh = np.linalg.svd(centred, full_matrices=False)
    best = (u[:, :5] * s[:5]) @ vh[:5]
    found = z @ np.linalg.lstsq(z, centred, rcond=None)[0]
    np.testing.assert_allclose(found, best, atol=1e-4)


def test_signs_are_the_same_for_shuffled_data():
    x = features()
    first, second = (fit_whitening(y, dimensions=6).kernel for y in (x, x[RNG.permutation(400)]))
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "dimensions", "most"),
    [(features(), 13, 12), (features(rank=4), 5, 4), (features(count=6), 6, 5)],
)
def test_more_dimensions_than_the_data_vary_in(x, dimensions, most):
    fit_whitening(x, dimensions=most)
    with pytest.raises(ValueError, match=f"dimensions must be at most {most} for"):
        fit_whitening(x, dimensions=dimensions)


def test_the_text_projection_finds_a_linear_map_and_shrinks_noise():
    pooled = RNG.normal(size=(300, 20)) + 3
    truth = RNG.normal(size=(20, 4))
    exact = fit_text_projection(pooled, pooled @ truth + 1)
    np.testing.assert_allclose(exact(pooled), pooled @ truth + 1, atol=1e-3)
    # Of embeddings that have nothing to do with the text, the mean is the best prediction.
    noise = RNG.normal(size=(300, 4)) + 2
    found, fresh = fit_text_projection(pooled, noise), RNG.normal(size=(500, 20)) + 3
    plain = np.linalg.lstsq(np.c_[pooled, np.ones(300)], noise, rcond=None)[0]
    spread = np.std(found(fresh) - 2)
    assert spread < 0.5 * np.std(np.c_[fresh, np.ones(500)] @ plain - 2)


def network(apply=None, dimensions=3, digest="a"):
    def corners(params, images):
        return images[:, 0, :3, 0] * params

    return EmbeddingNetwork("corners", jnp.float32(2), apply or corners, dimensions, digest)


def test_images_are_embedded_in_batches():
    images = RNG.integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
    x = 2 * (images[:, 0, :3, 0] / 127.5 - 1)
    whitening = fit_whitening(x, dimensions=2)
    fitted = Fitted("corners", "a", "data", 2, whitening)
    found = ImageEmbedding(network(), fitted).of_images(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whitening(x), atol=5e-3)
    by_length = ImageEmbedding(network(), Fitted("corners", "a", "data", 3)).of_images(images)
    np.testing.assert_allclose(np.square(by_length).mean(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.diag(cosine(by_length, x)), 1, atol=1e-5)


def test_json_keeps_everything():
    x, pooled = features(), RNG.normal(size=(400, 6))
    whitening = fit_whitening(x, dimensions=4)
    text = fit_text_projection(pooled, whitening(x))
    for fitted in (Fitted("n", "a", "d", 4, whitening, text), Fitted("n", "a", "d", 7)):
        again = Fitted.from_json(fitted.to_json())
        assert again.identity == fitted.identity and again.dimensions == fitted.dimensions
        np.testing.assert_array_equal(
            again.normalise(x[:, : again.dimensions] if again.whitening is None else x),
            fitted.normalise(x[:, : again.dimensions] if again.whitening is None else x),
        )
        if fitted.text is not None:
            np.testing.assert_array_equal(again.of_text(pooled), fitted.of_text(pooled))
    for broken in ("", "{}", '{"whitening": {"mean": 3}, "text": null}', "[1]"):
        with pytest.raises(UserError, match="stored image embedding can't be read"):
            Fitted.from_json(broken)


def test_identities_tell_network_data_and_dimensions_apart():
    whitening = fit_whitening(features(), dimensions=2)
    base = Fitted("n", "a", "d", 2, whitening)
    others = [base._replace(digest="b"), base._replace(data="e"), base._replace(dimensions=3)]
    assert len({fitted.identity for fitted in (base, *others)}) == 4
    # Without a fit the data are of no consequence.
    assert Fitted("n", "a", "d", 2).identity == Fitted("n", "a", "e", 2).identity


def test_a_run_without_captions_has_no_place_for_texts():
    with pytest.raises(UserError, match="no projection of texts"):
        Fitted("n", "a", "d", 2).of_text(np.zeros((1, 3)))


def test_a_network_of_another_output_than_it_says():
    check_network(network(), (4, 4, 1))
    with pytest.raises(ValueError, match=r"corners returns \(1, 3\).*not \(1, 5\)"):
        check_network(network(dimensions=5), (4, 4, 1))
