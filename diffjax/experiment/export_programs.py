"""`--mode=export --format=stablehlo` and `onnx`: programs, and model.json that describes them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffjax._version import __version__
from diffjax.errors import UserError
from diffjax.experiment import model_folder, restore, strategies
from diffjax.experiment.load import about_of, fitted
from diffjax.experiment.model import Model, resolve_model
from diffjax.files import atomic_write, new_folder
from diffjax.inference.programs import onnx as onnx_programs
from diffjax.inference.programs import stablehlo as stablehlo_programs
from diffjax.inference.programs.program import MEANINGS, Arrays, Program, decoder, denoiser
from diffjax.latent.space import LatentSpace

DESCRIPTION = "model.json"
# DDIM (Song et al. 2021a, equation 12), which every model can be sampled by.
DENOISER_LOOP = (
    "x = noise_scale[0] * normal noise; for i in range(len(t) - 1): x_0, eps = denoiser(x, t[i]); "
    "x = signal_scale[i + 1] * x_0 + noise_scale[i + 1] * eps"
)
FLOW_MAP_LOOP = (
    "x = noise_scale[0] * normal noise; for i in range(len(t) - 1): x = flow_map(x, t[i], t[i + 1])"
)

Write = Callable[[Program, Path], dict[str, Any]]


def stablehlo(config: Any, workdir: Path, out: Path) -> list[Path]:
    """Writes the denoiser, and a latent model's decoder, as `inference.programs.stablehlo` does.

    Args:
      config: complete; config.sample is described, config.sample.checkpoint the parameters.
      workdir: the run directory.
      out: a new or empty folder.

    Returns:
      The written files.

    Raises:
      UserError: no such run, or a network that jax.export does not write.
    """
    stablehlo_programs.check_installed()
    model, step, params = restored(config, workdir, kernels="xla", remat="none")
    more = {"expires": stablehlo_programs.expiry()}
    return _write(model, step, params, out, "stablehlo", stablehlo_programs.write, more)


def onnx(config: Any, workdir: Path, out: Path) -> list[Path]:
    """Writes them for onnxruntime, as `inference.programs.onnx` does; computation is float32.

    Arguments and errors are those of `stablehlo`; jax2onnx and onnxruntime must be installed.
    """
    onnx_programs.check_installed()
    model, step, params = restored(config, workdir, kernels="xla", remat="none", dtype="float32")
    return _write(model, step, params, out, "onnx", onnx_programs.write, {})


def restored(config: Any, workdir: Path, **changes: str) -> tuple[Model, int, Any]:
    """A model with its step and its parameters, which are its folder's if it was not trained.

    Args:
      config: of the run.
      workdir: the run directory.
      **changes: other values of those keys of `config.model` that the network has.

    Raises:
      UserError: no such run, or one of a token alone.
    """
    if "inversion" in config.model and config.model.inversion != "none":
        raise UserError(
            f"config.model.inversion = {config.model.inversion!r} trained a token alone, and no "
            "network that another --format writes: use --format=token"
        )
    changed = _changed(config, changes)
    if any((workdir / "checkpoints").glob("[0-9]*")):
        model = resolve_model(changed, about_of(workdir, config))
        found = restore.read(model, workdir)
        return model, found.step, strategies.to_compute(fitted(model, found), changed)
    if not model_folder.is_named(config):
        raise restore.untrained(workdir)
    model = resolve_model(changed, model_folder.about(config))
    assert model.folder is not None
    return model, 0, model.folder.unet_params()


def _changed(config: Any, values: dict[str, str]) -> Any:
    changed = config.copy_and_resolve_references()
    for key, value in values.items():
        if key in changed.model:
            changed.model[key] = value
    return changed


def _write(
    model: Model,
    step: int,
    params: Any,
    out: Path,
    form: str,
    write: Write,
    more: dict[str, Any],
) -> list[Path]:
    grid = model.generator().sampling.grid
    programs = [
        denoiser(
            model.network, model.diffusion, params, shape=model.space.shape,
            conditions=model.conditions, example=model.example_condition(), grid=grid,
        )
    ]  # fmt: skip
    if isinstance(model.space, LatentSpace):
        programs.append(decoder(model.space.stage, model.space.params))
    with new_folder(out) as aside:
        described = {
            program.name: write(program, aside) | _arrays_of(program, model) for program in programs
        }
        about = _about(model, step, form) | more | {"programs": described}
        about["schedule"] = _schedule(model, grid, is_map=programs[0].name == "flow_map")
        text = _in_lines(about) + "\n"
        atomic_write(aside / DESCRIPTION, lambda file: file.write(text.encode()))
        written = sorted(path.name for path in aside.iterdir())
    return [out / name for name in written]


def _about(model: Model, step: int, form: str) -> dict[str, Any]:
    config, about = model.config, model.about
    found = {
        "format": form,
        "written_by": f"diffjax {__version__}",
        "data": about.name,
        "step": step,
        "network": config.model.name,
        "dtype": config.model.get("dtype", "float32"),
    }
    if about.class_names and model.conditions.num_classes:
        found["class_names"] = list(about.class_names)
    if model.conditions.texts is not None:
        found["text_encoder"] = config.condition.text
    if about.vocabulary:
        found["vocabulary"] = about.vocabulary
    if model.folder is not None:
        found["folder"] = model.folder.name
    return found


def _schedule(model: Model, grid: Any, *, is_map: bool) -> dict[str, Any]:
    c = model.config.sample
    return {
        "sampler": c.sampler,
        "grid": c.grid,
        "guidance": c.guidance,
        "note": "the program has neither guidance nor thresholding; the loop is "
        + ("the flow map's" if is_map else "DDIM's"),
        "loop": FLOW_MAP_LOOP if is_map else DENOISER_LOOP,
        "t": grid.t.tolist(),
        "signal_scale": grid.signal_scale.tolist(),
        "noise_scale": grid.noise_scale.tolist(),
    }


def _in_lines(values: dict[str, Any]) -> str:
    """JSON with a line for each key, and lists of numbers or names in one."""
    text = json.dumps(values, indent=2)
    return re.sub(r"\[[^][{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)


def _arrays_of(program: Program, model: Model) -> dict[str, Any]:
    def described(arrays: Arrays) -> dict[str, Any]:
        return {
            name: {
                "shape": ["batch", *leaf.shape[1:]], "dtype": leaf.dtype.name,
                "meaning": MEANINGS[name],
            }
            for name, leaf in arrays.items()
        }  # fmt: skip

    inputs = described(program.inputs)
    if "augmentation" in inputs:
        inputs["augmentation"]["default"] = list(model.conditions.unchanged)
    return {"inputs": inputs, "outputs": described(program.outputs)}
