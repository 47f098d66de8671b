"""The pages of concepts name every function that they are about, and count evaluations rightly."""

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.sampling import guidance

PAGES = Path(__file__).resolve().parents[2] / "docs" / "concepts"


def load(name):
    """A module of docs/concepts, which is no package."""
    spec = importlib.util.spec_from_file_location(name, PAGES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


catalogue = load("catalogue")
EXACT = {name for name, e in catalogue.ENTRIES.items() if e.evaluations in catalogue.EVALUATIONS}
ABOUT = {
    "schedules": (dj.schedules, "schedules"),
    "parametrisations": (dj.parametrisations, "parametrisations"),
    "weightings": (dj.weightings, "parametrisations"),
    "time_sampling": (dj.time_sampling, "parametrisations"),
    "grids": (dj.grids, "samplers"),
    "guidance": (guidance, "guidance"),
    "editing": (dj.editing, "editing"),
    "inverse_problems": (dj.inverse_problems, "editing"),
    "likelihood": (dj.likelihood, "likelihoods"),
    "flow_maps": (dj.flow_maps, "few_steps"),
    "ema": (dj.ema, "averages"),
    "posthoc_ema": (dj.posthoc_ema, "averages"),
}
# Parts of the machinery and of PixelCNN's likelihood, which the API's pages have.
ELSEWHERE = {
    "add_score", "discretised_logistic_log_prob", "eps_from_x0", "interpolated_log_variance",
    "logistic_mixture_log_prob", "mixture_from_outputs", "number_of_outputs",
    "sample_logistic_mixture", "scale_at", "together", "x0_from_eps",
}  # fmt: skip


def public(module):
    """The functions of a module, or of a package's __all__."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and inspect.unwrap(value).__module__ == module.__name__
    ]
    return sorted(
        name
        for name in names
        if not name.startswith("_")
        and name not in ELSEWHERE
        and inspect.isfunction(getattr(module, name))
    )


@pytest.mark.parametrize("name", ABOUT)
def test_a_page_names_every_function_of_its_module(name):
    module, page = ABOUT[name]
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", text))
    missing = [function for function in public(module) if function not in named]
    assert public(module)
    assert not missing, f"docs/concepts/{page}.md does not name {', '.join(missing)}"


def test_the_catalogue_has_every_sampler():
    catalogue.check()
    families = re.findall(
        r"catalogue\.table\((.*?)\)", (PAGES / "samplers.md").read_text(encoding="utf-8")
    )
    shown = set(re.findall(r'"(\w+)"', " ".join(families)))
    assert shown == {entry.family for entry in catalogue.ENTRIES.values()}


def test_a_new_sampler_is_not_forgotten(monkeypatch):
    monkeypatch.delitem(catalogue.ENTRIES, "unipc")
    with pytest.raises(ValueError, match="unipc"):
        catalogue.table("one_step")


def test_families_are_the_modules():
    for name, entry in catalogue.ENTRIES.items():
        module = inspect.unwrap(getattr(dj.samplers, name)).__module__
        assert module.rsplit(".", 1)[-1] == entry.family, name


def counted(name, steps):
    """(evaluations, whether two keys give two results) of a sampler with its defaults."""
    flow = catalogue.ENTRIES[name].family == "runge_kutta"
    # Noise from 0.03 of the signal to 20 times it: all of a step's stages are at finite log-SNR.
    schedule = dj.schedules.rectified_flow() if flow else dj.schedules.karras(sigma_max=20.0)
    grid = dj.grids.trailing(schedule, steps) if flow else dj.grids.karras(schedule, steps)
    if catalogue.ENTRIES[name].family == "inversion":
        grid = dj.grids.karras(schedule, steps, sigma_min=0.03)
    asked = 0

    def denoise(x_t, t, cond=None):
        nonlocal asked
        asked += 1
        signal, noise = schedule(jnp.asarray(t, jnp.float32))
        x_0 = 0.25 * signal / (0.25 * signal**2 + noise**2) * x_t  # of N(0, 0.25)
        return dj.Estimates(x_0, (x_t - signal * x_0) / jnp.maximum(noise, 1e-6))

    def jump(x_t, t, s, cond=None):
        nonlocal asked
        asked += 1
        return x_t

    sampler = getattr(dj.samplers, name)
    options = {"schedule": schedule} if "schedule" in inspect.signature(sampler).parameters else {}
    first = next(iter(inspect.signature(sampler).parameters))
    results = []
    for seed in range(2):
        if "key" in inspect.signature(sampler).parameters:
            options["key"] = jax.random.key(seed)
        with jax.disable_jit():
            x = jnp.ones((1, 2))
            found = sampler(jump if first == "jump" else denoise, x, grid=grid, **options)
        results.append(np.asarray(found.x_0))
    return asked / 2, not np.array_equal(*results)


@pytest.mark.parametrize("name", sorted(EXACT))
def test_evaluations_and_noise_are_as_the_catalogue_says(name):
    entry = catalogue.ENTRIES[name]
    evaluations, noisy = counted(name, 6)
    assert evaluations == catalogue.EVALUATIONS[entry.evaluations](6)
    assert noisy == (entry.noise == "yes")


@pytest.mark.parametrize("name", sorted(set(catalogue.ENTRIES) - EXACT))
def test_where_it_depends_it_is_more_than_one_a_step(name):
    assert counted(name, 6)[0] > 6
