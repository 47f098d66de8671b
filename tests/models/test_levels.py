"""Logits over levels: one linear map, whose first rows are orthogonal, for every channel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models.levels import LevelHead

KEY = jax.random.key(0)


def head(h, *, channels, levels):
    module = LevelHead(channels, levels)
    return module, module.init(KEY, h)


def test_channels_share_a_map_and_keep_their_places():
    h = jax.random.normal(KEY, (2, 3, 4, 3 * 5))
    module, params = head(h, channels=3, levels=11)
    out = module.apply(params, h)
    assert out.shape == (2, 3, 4, 3 * 11) and out.dtype == jnp.float32
    assert jax.tree.map(jnp.shape, params["params"]) == {"kernel": (5, 11), "bias": (11,)}
    alone = LevelHead(1, 11)
    for c in range(3):
        np.testing.assert_allclose(
            out[..., 11 * c : 11 * (c + 1)],
            alone.apply(params, h[..., 5 * c : 5 * (c + 1)]),
            rtol=1e-5, atol=1e-5,
        )  # fmt: skip


def test_it_is_linear_and_alike_for_all_levels_at_zero():
    a, b = jax.random.normal(KEY, (2, 4, 8))
    module, params = head(a, channels=2, levels=6)
    apply = lambda h: module.apply(params, h)  # noqa: E731
    np.testing.assert_allclose(apply(2 * a - b), 2 * apply(a) - apply(b), atol=1e-4)
    np.testing.assert_array_equal(apply(0 * a), np.zeros((4, 12)))


@pytest.mark.parametrize(("features", "levels"), [(3, 2), (5, 17), (32, 256)])
def test_rows_start_as_orthogonal_waves_and_the_two_ends(features, levels):
    _, params = head(jnp.zeros((1, features)), channels=1, levels=levels)
    rows = np.asarray(params["params"]["kernel"], np.float64)
    assert rows.shape == (features, levels)
    waves, ends = rows[:-2], rows[-2:]
    np.testing.assert_allclose(waves @ waves.T, levels * np.eye(features - 2), atol=1e-3)
    np.testing.assert_allclose(ends @ ends.T, levels * np.eye(2), atol=1e-3)
    np.testing.assert_allclose(waves.sum(1), 0, atol=1e-3)  # no wave is for all levels alike
    assert [np.flatnonzero(row).tolist() for row in ends] == [[0], [levels - 1]]
    # Slow ones first: wave k changes its sign k times.
    signs = [int((np.diff(np.sign(row[np.abs(row) > 1e-6])) != 0).sum()) for row in waves]
    assert signs == list(range(1, features - 1))


@pytest.mark.parametrize("features", [1, 2])
def test_too_few_features_are_refused(features):
    with pytest.raises(ValueError, match=f"level_features must be at least 3, not {features}"):
        head(jnp.zeros((1, 3 * features)), channels=3, levels=4)
