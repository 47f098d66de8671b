"""Schedules, times and steps against diffusers' schedulers."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import Estimates, grids, parametrisations
from diffjax.errors import UserError
from diffjax.sampling import samplers
from diffjax.stable_diffusion import scheduler

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False, **SD}


def read(folder, config):
    (folder / "scheduler_config.json").write_text(json.dumps(config))
    return scheduler.read(folder)


@pytest.mark.parametrize(
    "changes",
    (
        {},
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500},
        {"trained_betas": np.linspace(0.001, 0.02, 100).tolist(), "num_train_timesteps": 100},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ),
)
def test_the_schedule_is_diffusers(tiny, tmp_path, changes):
    import diffusers

    theirs = diffusers.DDIMScheduler.from_config({**DDIM, **changes})
    ours = read(tmp_path, {**DDIM, **changes})
    alpha_bar = ours.prediction.schedule.alpha_bar
    assert alpha_bar[0] == 1
    np.testing.assert_allclose(alpha_bar[1:], theirs.alphas_cumprod, rtol=2e-4, atol=1e-7)


def times(sampling, steps):
    """The times that a network is given on the grid of a config's text."""
    name, _, rest = sampling.grid.partition("(")
    options = eval(f"dict({rest.rstrip(')')})")
    grid = getattr(grids, name)(sampling.prediction.schedule, steps, **options)
    return grid, scheduler.step_number(jnp.asarray(grid.t[:-1]), None)


@pytest.mark.parametrize("steps", (4, 7, 50))
@pytest.mark.parametrize(
    "changes",
    (
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"timestep_spacing": "leading"},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace"},
    ),
)
def test_the_grid_is_diffusers(tiny, tmp_path, steps, changes):
    import diffusers

    theirs = diffusers.DDIMScheduler.from_config({**DDIM, **changes})
    theirs.set_timesteps(steps)
    _, found = times(read(tmp_path, {**DDIM, **changes}), steps)
    # A half is rounded to the even step, and theirs are counted from 0.
    halves = changes["timestep_spacing"] == "linspace"
    np.testing.assert_allclose(found, theirs.timesteps, rtol=0, atol=1.0 if halves else 0.0)


def trajectory(theirs, steps, x, prediction):
    """diffusers' solution with a network that is a fixed function."""
    import torch

    theirs.set_timesteps(steps)
    x = torch.tensor(x)
    for n in theirs.timesteps:
        out = prediction(theirs.scale_model_input(x, n), n)
        x = theirs.step(out, n, x).prev_sample
    return x.numpy()


@pytest.mark.parametrize("predicted", ("epsilon", "v_prediction", "sample"))
@pytest.mark.parametrize(
    "changes",
    (
        {"steps_offset": 1, "set_alpha_to_one": False},
        {"set_alpha_to_one": False},
        {"set_alpha_to_one": True},
        {"timestep_spacing": "trailing", "set_alpha_to_one": False},
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1},
        {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1},
    ),
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_steps_end_where_diffusers_end(tiny, tmp_path, changes, predicted):
    import diffusers
    import torch

    config = {**DDIM, **changes, "prediction_type": predicted}
    if predicted != "epsilon" and config["_class_name"] == "PNDMScheduler":
        pytest.skip("diffusers extrapolates what is predicted there, and not eps")
    if predicted == "sample" and config["_class_name"] == "EulerDiscreteScheduler":
        pytest.skip("diffusers has no such prediction there")
    theirs = getattr(diffusers, config["_class_name"]).from_config(config)
    ours = read(tmp_path, config)
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)

    def network(x, n):
        return 0.3 * torch.sin(3 * x) + 0.1 * x + n / 2000

    # Euler's samples are x_t / signal_scale.
    grid, _ = times(ours, 5)
    scaled = 1 / grid.signal_scale[0] if ours.sampler == "euler" else 1.0
    expected = trajectory(theirs, 5, np.float32(scaled) * x, network)
    prediction = ours.prediction

    def apply(x, t, cond):
        return 0.3 * jnp.sin(3 * x) + 0.1 * x + t[:, None, None, None] / 2000

    denoise = prediction.denoiser(apply)
    found = getattr(samplers, ours.sampler)(denoise, jnp.asarray(x), grid=grid).x_0
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "sampler", "grid", "threshold"),
    (
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1},
         "plms", "leading(offset=1, last=1)", "none"),
        ({"_class_name": "PNDMScheduler"}, "pndm", "leading(last=1)", "none"),
        ({"_class_name": "EulerDiscreteScheduler"}, "euler", "linspace", "none"),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True},
         "euler", "karras", "none"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3,
          "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
         "dpm_solver_3m", "linspace(last=1)", "none"),
        ({"_class_name": "DDIMScheduler"}, "ddim", "leading", "clip"),
        ({"_class_name": "DDIMScheduler", "clip_sample_range": 2.5},
         "ddim", "leading", "clip(low=-2.5, high=2.5)"),
        ({"_class_name": "DDPMScheduler", "timestep_spacing": "trailing", "clip_sample": False},
         "ancestral", "trailing", "none"),
    ),
)  # fmt: skip
def test_settings(tmp_path, config, sampler, grid, threshold):
    found = read(tmp_path, config)
    assert (found.sampler, found.grid, found.threshold) == (sampler, grid, threshold)


def test_diffusers_own_defaults_are_all_read(tiny, tmp_path):
    import diffusers

    for name in scheduler._SAMPLERS:
        if name == "KDPM2AncestralDiscreteScheduler":
            continue
        made = getattr(diffusers, name)()
        made.save_pretrained(tmp_path)
        found = scheduler.read(tmp_path)
        assert found.prediction.parametrisation is parametrisations.eps
        np.testing.assert_allclose(
            found.prediction.schedule.alpha_bar[1:], made.alphas_cumprod, rtol=2e-4
        )


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"_class_name": "LCMScheduler"}, "_class_name='LCMScheduler' .*expected DDIMScheduler"),
        ({"_class_name": None}, "_class_name=None"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({"beta_start": 0}, "beta_start=0"),
        ({"trained_betas": [0.1, 2.0]}, "cannot make the noise schedule"),
        ({"thresholding": True}, "thresholding=True"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True .*v_prediction"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas=True"),
        ({"sparkle": 1}, "sparkle=1"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}, "solver_order=4"),
    ),
)
def test_what_is_not_supported(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, DDIM | change)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_scheduler(tmp_path):
    with pytest.raises(UserError, match=r"found no scheduler_config\.json"):
        scheduler.read(tmp_path)


def test_estimates_are_exact_where_a_network_is(tmp_path):
    """A DDIM grid that ends with noise returns x_1, not x_0."""
    ours = read(tmp_path, DDIM | {"set_alpha_to_one": False, "steps_offset": 1})
    grid, _ = times(ours, 10)
    x_0, eps = jnp.full((1, 2, 2, 1), 0.5), jnp.full((1, 2, 2, 1), -1.0)
    x_T = float(grid.signal_scale[0]) * x_0 + float(grid.noise_scale[0]) * eps
    found = samplers.ddim(lambda x, t, cond: Estimates(x_0, eps), x_T, grid=grid).x_0
    signal, noise = ours.prediction.schedule(1)
    np.testing.assert_allclose(found, signal * x_0 + noise * eps, atol=1e-6)
