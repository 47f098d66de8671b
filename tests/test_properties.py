"""What holds for any text a user types, and for the pure functions on any shape."""

import ast
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffjax as dj
from diffjax import flags, grids, parametrisations, process, schedules
from diffjax.errors import UserError
from diffjax.experiment.objective import WEIGHTINGS
from diffjax.experiment.optimisation import OPTIMIZERS
from diffjax.experiment.process import PARAMETRISATIONS, SCHEDULES
from diffjax.experiment.sampling import EDITS, GUIDANCE, SAMPLERS, THRESHOLDS
from diffjax.experiment.schema import check
from diffjax.experiment.spec import from_spec
from tests.conftest import TINY_FLAGS
from tests.sampling.samplers.cases import ALL, LEAST_STEPS, OTHERS, find
from tests.sampling.samplers.known import gaussian_denoiser

# The same examples in every run; a slow machine is no failure.
settings.register_profile("diffjax", derandomize=True, deadline=None, database=None)
settings.load_profile("diffjax")

KEYS = ("seed", "train.steps", "train.learning_rate", "train.ema_snapshots", "data.flip",
        "data.name", "model.multipliers", "sample.labels", "sample.checkpoint",
        "diffusion.log_snr_shift")  # fmt: skip
# Any text; and what looks like a value, where errors hide.
LITERALS = st.one_of(
    st.integers().map(repr),
    st.floats().map(repr),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3))).map(tuple).map(repr),
    st.sampled_from(["True", "none", "()", "(,)", "((", "{}", "1e999", "0x", "1_0", "[1", "'"]),
)
TYPED = st.one_of(st.text(), LITERALS)


def one_line_or_accepted(function, *arguments):
    """Calls it; the only exception that may come out is a UserError."""
    try:
        return function(*arguments)
    except UserError as error:
        assert str(error)
        return None


@pytest.mark.parametrize("key", KEYS)
@settings(max_examples=15)
@given(text=TYPED)
def test_any_text_for_a_typed_key(key, text):
    def parse():
        config = flags.parse([*TINY_FLAGS, f"--config.{key}={text}"]).config
        check(config)
        return config

    config = one_line_or_accepted(parse)
    if config is None or isinstance(config[key], str):
        return
    # What is accepted is what was typed, as Python reads it.
    value = config[key]
    if isinstance(value, bool):
        assert text.lower() in ("true", "false", "t", "f", "1", "0")
    elif isinstance(value, tuple):
        typed = ast.literal_eval(text)
        assert value == (tuple(typed) if isinstance(typed, tuple | list) else (typed,))
    else:
        assert value == float(text)


@settings(max_examples=60)
@given(arguments=st.lists(st.one_of(st.text(), st.text().map("--config.".__add__),
                                    st.text().map("--".__add__)), max_size=3))  # fmt: skip
def test_any_arguments(arguments):
    one_line_or_accepted(flags.parse, [TINY_FLAGS[0], *arguments])


TABLES = {"schedule": SCHEDULES, "parametrisation": PARAMETRISATIONS, "weighting": WEIGHTINGS,
          "optimizer": OPTIMIZERS, "sampler": SAMPLERS, "guidance": GUIDANCE,
          "threshold": THRESHOLDS, "task": EDITS}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
@settings(max_examples=30)
@given(data=st.data())
def test_any_choice_with_any_arguments(table, data):
    import inspect

    makers = TABLES[table]
    name = data.draw(st.sampled_from(sorted(makers)))
    parameters = sorted(inspect.signature(makers[name]).parameters) or ["x"]
    small = st.one_of(st.integers(-3, 50), st.floats(), st.text(max_size=3), st.none(),
                      st.booleans(), st.tuples(st.integers(0, 3)))  # fmt: skip
    options = data.draw(st.dictionaries(st.sampled_from(parameters), small, max_size=2))
    said = ", ".join(f"{k}={repr(v).replace('inf', '1e999')}" for k, v in options.items())
    one_line_or_accepted(functools.partial(from_spec, key="some.key"), f"{name}({said})", makers)


@settings(max_examples=100)
@given(text=st.text())
def test_any_choice(text):
    one_line_or_accepted(functools.partial(from_spec, key="some.key"), text, SCHEDULES)


# Shapes and types of the pure functions. Nothing is compiled as a whole: shapes are traced.

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
DTYPES = st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16])
DISCRETE = schedules.cosine(20)
CONTINUOUS = {"flow": schedules.rectified_flow(), "edm": schedules.karras()}


def traced(function, *arrays):
    """The shapes and types of what a function returns, of ShapeDtypeStructs."""
    return jax.eval_shape(function, *arrays)


@settings(max_examples=15)
@given(shape=SHAPES, each=st.booleans(), discrete=st.booleans())
def test_q_sample_and_q_posterior(shape, each, discrete):
    schedule = DISCRETE if discrete else CONTINUOUS["flow"]
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    kind = jnp.int32 if discrete else jnp.float32
    t = jax.ShapeDtypeStruct(shape[:1] if each else (), kind)
    sampled = traced(lambda x, t: process.q_sample(schedule, x, t=t, eps=x), x, t)
    assert (sampled.shape, sampled.dtype) == (shape, jnp.float32)
    posterior = traced(lambda x, t: process.q_posterior(schedule, x, x_0=x, s=t - 1, t=t), x, t)
    assert (posterior.mean.shape, posterior.mean.dtype) == (shape, jnp.float32)
    # Broadcasts against the mean, one variance an example.
    expected = (shape[0],) + (1,) * (len(shape) - 1) if each else ()
    assert posterior.variance.shape == posterior.log_variance.shape == expected


@settings(max_examples=15)
@given(
    shape=SHAPES,
    source=st.sampled_from(["x0", "eps", "v", "score", "velocity", "edm"]),
    target=st.sampled_from(["x0", "eps", "v", "score", "velocity", "edm"]),
    noise=st.floats(0.1, 0.9),
)
def test_convert_keeps_shapes_and_comes_back(shape, source, target, noise):
    make = {name: PARAMETRISATIONS[name]() for name in (source, target)}
    scales = dj.Scales(jnp.float32((1 - noise**2) ** 0.5), jnp.float32(noise))
    rng = np.random.default_rng(0)
    value, x_t = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))

    def convert(value, a, b):
        return parametrisations.convert(value, x_t, source=make[a], target=make[b], scales=scales)

    there = convert(value, source, target)
    assert there.shape == shape and there.dtype == jnp.float32
    np.testing.assert_allclose(convert(there, target, source), value, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", [*ALL, *OTHERS])
@settings(max_examples=3)
@given(shape=SHAPES, dtype=DTYPES, steps=st.integers(1, 4), kept=st.booleans())
def test_x_0_has_the_shape_and_type_of_x_T(name, shape, dtype, steps, kept):
    schedule = CONTINUOUS["flow"]
    least = LEAST_STEPS | {"restart": 12}  # a step in the interval that is gone through again
    grid = grids.trailing(schedule, max(steps, least.get(name, 1)))
    exact = gaussian_denoiser(schedule)

    def denoise(x_t, t, cond=None):
        # A network answers in x_t's type, whatever the schedule's numbers are kept in.
        return dj.Estimates(*(part.astype(x_t.dtype) for part in exact(x_t, t)[:2]))

    def sample(x_T):
        return find(name, schedule)(
            denoise, x_T, grid=grid, key=jax.random.key(0), keep_trajectory=kept
        )

    found = traced(sample, jax.ShapeDtypeStruct(shape, dtype))
    assert (found.x_0.shape, found.x_0.dtype) == (shape, dtype)
    if kept:
        assert found.trajectory.shape[1:] == shape and found.trajectory.dtype == dtype
        assert found.trajectory.shape[0] > grid.steps
    else:
        assert found.trajectory is None
