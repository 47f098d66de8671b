"""UniPC: what it refuses; its order and numbers are tested with all samplers' and with peers'."""

import jax.numpy as jnp
import pytest

from diffjax import grids, samplers
from tests.sampling.samplers.known import FLOW, gaussian_denoiser


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "orders 1 to 3"),
        ({"variant": "bh3"}, "bh1"),
    ],
)
def test_what_unipc_refuses(options, message):
    grid = grids.trailing(FLOW, 6)
    with pytest.raises(ValueError, match=message):
        samplers.unipc(gaussian_denoiser(FLOW), jnp.ones((2, 3)), grid=grid, **options)
