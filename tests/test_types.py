"""Calls of the core are held against its signatures, by the hook in conftest.py."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

import diffjax as dj
from diffjax import categorical

pytest.importorskip("beartype", reason="without it types and shapes are not checked in tests")

FLOW = dj.schedules.rectified_flow()
X = jnp.ones((3, 4, 4, 1))


@pytest.mark.parametrize("t", [0.5, jnp.asarray(0.5), jnp.full(3, 0.5)])
def test_what_fits_passes(t):
    assert dj.q_sample(FLOW, X, t=t, eps=X).shape == X.shape


@pytest.mark.parametrize(
    ("t", "eps", "argument"),
    [
        (0.5, X[:1], "eps"),  # would broadcast
        (0.5, X[..., 0], "eps"),
        (0.5, X.astype(int), "eps"),
        (jnp.full(1, 0.5), X, "t"),
        (jnp.full((3, 1), 0.5), X, "t"),
    ],
)
def test_another_shape_or_type_is_caught(t, eps, argument):
    with pytest.raises(TypeCheckError, match=f"parameter '{argument}'"):
        dj.q_sample.__wrapped__(FLOW, X, t=t, eps=eps)  # without diffjax's own checks


def test_a_result_of_another_shape_is_caught():
    with pytest.raises(TypeCheckError, match="return value"):
        dj.diffusion_loss(
            lambda x, time, cond: x, X, t=jnp.full(3, 0.5), eps=X,
            prediction=dj.Prediction(FLOW, dj.parametrisations.v),
            weighting=lambda *_: jnp.ones((3, 1)),
        )  # fmt: skip


def test_a_denoiser_that_was_made_is_checked():
    denoise = dj.denoiser(lambda x, t, cond: x, FLOW, parametrisation=dj.parametrisations.v)
    with pytest.raises(TypeCheckError, match="parameter 't'"):
        denoise(X, jnp.full(2, 0.5))


def test_an_old_key_is_caught():
    """By jaxtyping, where the function's own check is not around it."""
    with pytest.raises(TypeError, match=r"key of per_example must be jax\.random\.key\(seed\)"):
        dj.rng.per_example(jax.random.PRNGKey(0), jnp.arange(3), jax.random.normal)
    with pytest.raises(TypeCheckError, match="parameter 'key'"):
        dj.rng.per_example.__wrapped__(jax.random.PRNGKey(0), jnp.arange(3), jax.random.normal)


@pytest.mark.usefixtures("unchecked")
def test_a_user_gets_the_error_of_diffjax():
    with pytest.raises(ValueError, match="times must be a scalar or one an example"):
        dj.q_sample(FLOW, X, t=jnp.full(2, 0.5), eps=X)


def test_a_checked_function_is_compiled_once():
    draw = jax.jit(dj.q_sample, static_argnums=0)
    for t in (0.25, 0.75):
        draw(FLOW, X, t=t, eps=X)
    assert draw._cache_size() == 1


def test_a_rule_for_gradients_stays():
    """`categorical` has one of its own."""
    assert isinstance(categorical._moments, jax.custom_vjp)
