"""What each public function of the core says of a wrong argument: one line that names it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import checks, types
from diffjax.losses import learned_variance
from diffjax.prediction import Prediction

MODULES = (
    dj.schedules, dj.process, dj.parametrisations, dj.grids, dj.denoisers, dj.losses.denoising,
    dj.weightings, dj.time_sampling, dj.importance_sampling, dj.learned_schedules,
    learned_variance, dj.learned_weighting, dj.offset_noise, dj.autoencoding, dj.guidance,
    dj.thresholding, dj.adversarial, dj.likelihood, dj.self_conditioning,
)  # fmt: skip
TABLE, FLOW = dj.schedules.linear_beta(100), dj.schedules.rectified_flow()
X, KEY = jnp.ones((3, 4, 4, 2)), jax.random.key(0)
SCALES = dj.Scales(jnp.array(0.8), jnp.array(0.6))
PAIR = dj.Estimates(X, X, X)
OUTPUTS = jnp.zeros((3, 4, 4, dj.likelihood.number_of_outputs(channels=2, components=1)))


def network(x, t, cond=None):
    return jnp.concatenate([x, x], -1)


def denoise(x_t, t, cond=None):
    return PAIR


# A right value for each parameter, by its name and, where names are not enough, by its function.
RIGHT = {
    "schedule": TABLE, "t": jnp.array([1, 2, 3]), "s": 0, "x": X, "x_0": X, "x_t": X, "x_s": X,
    "eps": X, "eps_0": X, "scales": SCALES, "scales_s": SCALES, "scales_t": SCALES, "value": X,
    "source": dj.parametrisations.eps, "target": dj.parametrisations.v, "steps": 5,
    "grid": dj.grids.trailing(TABLE, 5), "network": network, "denoise": denoise, "weak": denoise,
    "perturbed": denoise, "parametrisation": dj.parametrisations.v, "log_snr_min": -5.0,
    "log_snr_max": 5.0, "prediction": Prediction(TABLE, dj.parametrisations.v), "key": KEY,
    "indices": jnp.arange(3), "batch_size": 3, "scale": 2.0, "pair": PAIR, "more": X,
    "conds": (jnp.arange(3), jnp.arange(3)), "conditions": [(1.0, jnp.arange(3))],
    "labels": jnp.arange(3), "log_prob": lambda x, t: x.sum((1, 2, 3)), "change": jnp.tanh,
    "score": lambda x: x.sum((1, 2, 3)), "beta": np.array([0.1, 0.2]), "times": np.array([3, 2]),
    "alpha_bar": np.array([1.0, 0.5]), "log_snr": jnp.zeros(3), "shift": 1.0, "nats": jnp.ones(3),
    "dimensions": 2, "per_image": jnp.ones(3), "use_estimate": jnp.ones(3, bool), "mix": X,
    "log_small": X, "log_large": X, "a": jnp.ones(3), "T": 10, "strength": 0.1,
    "history": dj.importance_sampling.empty(5), "losses": jnp.ones(3), "loss": jnp.ones(3),
    "log_variance": jnp.ones(3), "params": {}, "form": dj.learned_schedules.fixed(),
    "schedule_params": {}, "mean": X, "log_std": X, "moments": X, "real_logits": X,
    "fake_logits": X, "reconstruction_slope": X, "adversarial_slope": X, "y": X, "step":
    jnp.array([0, 1, 2]), "features": lambda x: [x], "parameters": lambda x, t: (x, x),
    "dequantise": dj.likelihood.uniform(TABLE), "cond": None, "log_scale": X, "channels": 2,
    "components": 1, "outputs": OUTPUTS, "logits_of": lambda x: x.sum((1, 2, 3)),
    "mixture": dj.likelihood.mixture_from_outputs(OUTPUTS, channels=2), "directions": {},
}  # fmt: skip
CONTINUOUS = {"shift_log_snr"}


def public(module):
    for name, function in vars(module).items():
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        home = inspect.getmodule(inspect.unwrap(function)).__name__
        if home == module.__name__ or home.startswith(f"{module.__name__}."):
            yield f"{module.__name__.removeprefix('diffjax.')}.{name}", function


FUNCTIONS = {name: function for module in MODULES for name, function in public(module)}
FREE = (inspect.Parameter.empty, types.Any)


def arguments(function):
    """The function's required arguments, right ones."""
    parameters = inspect.signature(function).parameters
    given = {
        n: X if p.annotation == types.Data else RIGHT[n]
        for n, p in parameters.items()
        if p.default is p.empty
    }
    if function is dj.learned_schedules.value_and_grad:
        given["loss"] = lambda params, log_snr, fall: (log_snr, None)
    if function.__name__.startswith("relativistic"):
        given |= {"real_logits": jnp.ones(3), "fake_logits": jnp.ones(3)}
    if function.__name__ in CONTINUOUS:
        given["schedule"] = FLOW
    return given


def wrong_values():
    for name, function in FUNCTIONS.items():
        for argument, parameter in inspect.signature(function).parameters.items():
            annotation = parameter.annotation
            if annotation in FREE or argument == "null" or "params" in argument:
                continue
            for value in (None, "text"):
                if value is None and "None" in str(annotation):
                    continue
                if value == "text" and "str" in str(annotation):
                    continue
                yield pytest.param(function, argument, value, id=f"{name}({argument}={value!r})")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("function", "argument", "value"), wrong_values())
def test_a_wrong_type_is_named(function, argument, value):
    call = arguments(function) | {argument: value}
    with pytest.raises((TypeError, ValueError, dj.UserError), match=rf"\b{argument}\b") as caught:
        function(**call)
    message = str(caught.value)
    assert "\n" not in message and "NoneType" not in message and len(message) < 250
    assert repr(value) in message


def with_arrays():
    for name, function in FUNCTIONS.items():
        parameters = inspect.signature(function).parameters
        shaped = [n for n, p in parameters.items() if p.annotation == types.Data]
        for argument in shaped[1:]:
            if parameters[argument].default is inspect.Parameter.empty:
                yield pytest.param(function, argument, id=f"{name}({argument})")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("function", "argument"), with_arrays())
def test_arrays_that_would_broadcast_are_refused(function, argument):
    for other in (X[:1], X[..., :1]):
        with pytest.raises(ValueError, match=f"{argument} of shape .* does not fit"):
            function(**(arguments(function) | {argument: other}))
    with pytest.raises(TypeError, match=f"{argument} of .* must be a floating-point array"):
        function(**(arguments(function) | {argument: X.astype(jnp.uint8)}))


def with_times():
    for name, function in FUNCTIONS.items():
        required = arguments(function)
        if {"schedule", "prediction"} & set(required):
            for argument in sorted({"t", "s"} & set(required)):
                yield pytest.param(function, argument, id=f"{name}({argument})")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("function", "argument"), with_times())
def test_times_out_of_the_schedules_range_are_refused(function, argument):
    for t in (-1, 101):
        value = jnp.full(3, t)
        with pytest.raises(ValueError, match=rf"{argument} must be in \[0, 100\], .* not {t}"):
            function(**(arguments(function) | {argument: value}))


@pytest.mark.parametrize("t", [-0.1, 1.1, np.nan, np.array([0.5, 2.0]), jnp.array([0.5, -1.0])])
def test_a_continuous_schedule_has_times_in_the_unit_interval(t):
    with pytest.raises(ValueError, match=r"t must be in \[0, 1\], the schedule's times, not"):
        FLOW(t)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("t", [-1, 101, 100.5, np.array([5, 200])])
def test_a_table_has_times_up_to_T(t):
    with pytest.raises(ValueError, match=r"t must be in \[0, 100\], the schedule's times, not"):
        TABLE(t)
    with pytest.raises(TypeError, match="t must be a number, or one time an example"):
        TABLE("5")


def test_traced_times_out_of_a_tables_range_are_its_ends():
    for t in (jnp.array([-3, 0, 100, 140]), jnp.array([-3.0, 0.0, 100.0, 140.0])):
        signal = jax.jit(TABLE)(t).signal_scale
        ends = TABLE.signal_scale[np.array([0, 0, 100, 100])]
        np.testing.assert_allclose(signal, ends, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_numpy_and_numbers_are_as_good_as_before():
    x = np.ones((3, 4, 4, 2), np.float32)
    for t in (5, np.int64(5), np.array([5, 6, 7]), [5, 6, 7], 5.5):
        assert dj.q_sample(TABLE, x, t=t, eps=x).shape == x.shape
    assert dj.guidance.autoguidance(denoise, denoise, scale=np.float32(2)) is not None
    assert dj.grids.trailing(TABLE, np.int64(5)).steps == 5


def test_a_compiled_call_costs_nothing(monkeypatch):
    sample = jax.jit(lambda x, t: dj.q_sample(TABLE, x, t=t, eps=x))
    plain = jax.jit(lambda x, t: dj.q_sample.__wrapped__(TABLE, x, t=t, eps=x))
    t = jnp.array([1, 2, 3])
    assert str(jax.make_jaxpr(sample)(X, t)).replace("sample", "") == str(
        jax.make_jaxpr(plain)(X, t)
    ).replace("plain", "")
    sample(X, t)

    def fails(*args, **options):
        raise AssertionError("a compiled function looks at its arguments again")

    monkeypatch.setattr(checks, "check_times", fails)
    monkeypatch.setattr(checks, "_check_shapes", fails)
    sample(X, t)


@pytest.mark.usefixtures("unchecked")
def test_python_says_what_is_missing():
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'eps'"):
        dj.q_sample(TABLE, X, t=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'gama'"):
        dj.weightings.min_snr(gama=3)
