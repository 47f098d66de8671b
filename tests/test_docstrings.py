"""Every public function of the core has a summary, an example that runs, and its errors."""

import ast
import importlib
import inspect
import pkgutil
import textwrap

import pytest

from diffjax import losses

MODULES = [
    "categorical",
    "denoisers",
    "ema",
    "flow_maps",
    "grids",
    "likelihood",
    "parametrisations",
    "posthoc_ema",
    "prediction",
    "process",
    "rng",
    "sampling.editing",
    "sampling.guidance",
    "sampling.inverse_problems",
    "sampling.memory",
    "sampling.samplers",
    "sampling.thresholding",
    "schedules",
    "self_conditioning",
    *(f"losses.{module.name}" for module in pkgutil.iter_modules(losses.__path__)),
]
# What a helper that looks at arguments is called, here or in the module that it is imported from.
CHECKS = ("_", "check_", "require_", "needs_", "one_scale", "start_time", "step_table")


def public(module):
    """(name, function) of what a module exports: `__all__`, or what it defines."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    for name in names:
        if inspect.isfunction(getattr(module, name)):
            yield name, getattr(module, name)


FUNCTIONS = {
    f"{module}.{name}": function
    for module in MODULES
    for name, function in public(importlib.import_module(f"diffjax.{module}"))
}


def raises(function):
    """The errors that a function, or a helper that checks its arguments, raises by name."""
    function = inspect.unwrap(function)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found.add(ast.unparse(node.exc.func))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            helper = function.__globals__.get(node.func.id)
            is_check = node.func.id.startswith(CHECKS) and helper is not function
            if is_check and inspect.isfunction(helper):
                found |= raises(helper)
    return found


def faults(function):
    """What is missing from a docstring."""
    text = inspect.getdoc(function) or ""
    first, *rest = text.splitlines() or [""]
    missing = []
    if not first.strip() or (rest and rest[0].strip()):
        missing.append("a summary of one line, and an empty one after it")
    if ">>> " not in text:
        missing.append("an example")
    says = "Raises" in text or "errors" in text.lower()
    missing += [f"that it raises {error}" for error in sorted(raises(function)) if not says]
    return missing


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_is_complete(name):
    assert not faults(FUNCTIONS[name]), f"the docstring of {name} lacks"


def test_all_rooms_are_looked_at():
    # A function of each kind, so that a module that is moved is not left out in silence.
    assert {
        "denoisers.gaussian_denoiser",
        "losses.denoising.diffusion_loss",
        "losses.weightings.min_snr",
        "sampling.guidance.classifier_free",
        "sampling.samplers.ddim",
        "likelihood.vlb",
    } <= set(FUNCTIONS)


def _check(x):
    if x < 0:
        raise ValueError("x must be at least 0")


def _undocumented(x):
    """Two lines
    of summary."""
    _check(x)


def test_a_fault_is_found():
    assert faults(_undocumented) == [
        "a summary of one line, and an empty one after it",
        "an example",
        "that it raises ValueError",
    ]
