"""What averages, random streams and augmentation say of wrong arguments: the core's one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import augmentation, ema, posthoc_ema, rng
from tests.messages import refuses

KEY, X, ROWS = jax.random.key(0), jnp.zeros((2, 4, 4, 1)), jnp.arange(2)
PROFILES = [posthoc_ema.Profile(5, 0.1), posthoc_ema.Profile(9, 0.1)]
NOT_NUMBERS = (None, "text")
CASES = [
    *[(ema.constant_decay, dict(step=3, decay=0.9), name) for name in ("step", "decay")],
    *[(ema.warmed_up_decay, dict(step=3, decay=0.9), name) for name in ("step", "decay")],
    *[(ema.inverse_decay, dict(step=3, power=0.5, inv_gamma=1.0), n) for n in ("step", "power")],
    *[(ema.power_decay, dict(step=3, sigma_rel=0.1), name) for name in ("step", "sigma_rel")],
    (ema.gamma_from_sigma_rel, dict(sigma_rel=0.1), "sigma_rel"),
    (ema.sigma_rel_from_gamma, dict(gamma=1.0), "gamma"),
    (ema.update, dict(average=X, params=X, decay=0.9), "decay"),
    (posthoc_ema.posthoc_weights, dict(snapshots=PROFILES, wanted=PROFILES[0]), "snapshots"),
    (posthoc_ema.posthoc_weights, dict(snapshots=PROFILES, wanted=PROFILES[0]), "wanted"),
    *[(rng.stream, dict(seed=0, name="noise", step=1), name) for name in ("seed", "step")],
    *[(rng.per_example, dict(key=KEY, indices=ROWS, draw=jax.random.normal), name)
      for name in ("key", "indices", "draw")],
    *[(augmentation.choices.flip, dict(key=KEY, image=X[0]), name) for name in ("key", "image")],
    *[(augmentation.choices.crop, dict(key=KEY, image=X[0], padding=1), name)
      for name in ("key", "image", "padding")],
    *[(augmentation.choices.window, dict(key=KEY, image=X[0], size=1), name)
      for name in ("key", "image", "size")],
    *[(augmentation.choices.colour, dict(key=KEY, image=X[0], contrast=0.1), name)
      for name in ("key", "image", "contrast")],
    *[(augmentation.non_leaking.sample, dict(key=KEY, indices=ROWS, probability=0.1), name)
      for name in ("key", "indices", "probability")],
]  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("value", NOT_NUMBERS)
@pytest.mark.parametrize(("function", "right", "name"), CASES)
def test_a_wrong_type_is_named(function, right, name, value):
    call = {**right, name: value}
    first = [call.pop(n) for n in list(right)[:1]]
    if (
        function in (ema.update, rng.stream, rng.per_example)
        or "augmentation" in function.__module__
    ):
        first += [
            call.pop(n) for n in list(right)[1:3] if n in ("params", "name", "indices", "image")
        ]
    if function is rng.per_example:
        first.append(call.pop("draw"))
    refuses(lambda: function(*first, **call), name, repr(value), errors=(TypeError, ValueError))


@pytest.mark.usefixtures("unchecked")
def test_numpy_scalars_are_as_good():
    assert float(ema.warmed_up_decay(np.int64(0), decay=np.float32(0.9))) == pytest.approx(0.1)
    assert rng.stream(np.uint32(3), "noise", np.int64(2)) == rng.stream(3, "noise", 2)
