"""Programs for onnxruntime, through jax2onnx, with their parameters inside.

import onnxruntime
session = onnxruntime.InferenceSession("denoiser.onnx")
x_0, eps = session.run(["x_0", "eps"], {"x_t": x_t, "t": t})

Each is run by onnxruntime and compared with JAX before it is kept.
"""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from diffjax.errors import UserError
from diffjax.inference.programs.program import Arrays, Program

NEEDED = ("jax2onnx", "onnxruntime")
# Largest difference from JAX, over the largest value but at least 1.
TOLERANCE = 1e-4
BATCH = "batch"

_logger = logging.getLogger("diffjax")


def check_installed() -> None:
    """Raises UserError unless what converts and runs is installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'--format=onnx needs {" and ".join(missing)}: pip install "diffjax[onnx]"')


def write(program: Program, folder: Path) -> dict[str, Any]:
    """Writes <name>.onnx, and <name>.onnx.data with large parameters; returns what describes them.

    The batch may be of any size, where the converted program gives JAX's numbers so; else it is 1.

    Raises:
      UserError: a network that jax2onnx can't convert, or whose numbers are others than JAX's.
    """
    path = folder / f"{program.name}.onnx"
    failures = []
    for batch in (None, 1):
        try:
            _convert(program, path, batch)
            difference = _difference(program, path, batch or 2)
        except Exception as error:  # of any kind, from either library
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            failures.append(f"{type(error).__name__}: {line[:200]}")
        else:
            if difference <= TOLERANCE:
                break
            failures.append(f"its numbers differ from JAX's by {difference:.2g}")
        for file in (path, path.with_name(f"{path.name}.data")):
            file.unlink(missing_ok=True)
        if batch is None:
            _logger.info(
                "the %s is for batches of 1: no other size can be converted: %s",
                program.name, failures[-1],
            )  # fmt: skip
    else:
        raise UserError(
            f"jax2onnx can't convert the {program.name}: {failures[-1]}; expected operations that "
            "it knows; use --format=stablehlo"
        )
    return {
        "file": path.name,
        "call": "onnxruntime.InferenceSession(file).run(outputs, inputs)",
        "batch": "any" if batch is None else batch,
        "largest_difference_from_jax": difference,
    }


def _positional(program: Program) -> Any:
    """The program as a function of its inputs in order, with parameters as constants."""
    names = list(program.inputs)
    params = {name: jnp.asarray(leaf) for name, leaf in program.params.items()}

    def function(*arrays: Any) -> tuple[Any, ...]:
        found = program.function(params, dict(zip(names, arrays, strict=True)))
        return tuple(found[name] for name in program.outputs)

    return function


def _convert(program: Program, path: Path, batch: int | None) -> None:
    from jax2onnx import to_onnx

    size = export.symbolic_shape(BATCH)[0] if batch is None else batch
    inputs = [
        jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)
        for leaf in program.inputs.values()
    ]
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # one line a primitive
    try:
        to_onnx(
            _positional(program), inputs, model_name=program.name, return_mode="file",
            output_path=str(path), input_names=list(program.inputs),
            output_names=list(program.outputs),
        )  # fmt: skip
    finally:
        logging.disable(level)


def _difference(program: Program, path: Path, batch: int) -> float:
    """The largest difference between onnxruntime's outputs and JAX's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = program.example(batch)
    names = list(program.outputs)
    found = session.run(names, inputs)
    expected: Arrays = jax.jit(program.function)(program.params, inputs)
    worst = 0.0
    for name, array in zip(names, found, strict=True):
        wanted = np.asarray(expected[name])
        if array.shape != wanted.shape:
            raise ValueError(f"{name} is of {array.shape}, not {wanted.shape}")
        scale = max(1.0, float(np.abs(wanted).max()))
        worst = max(worst, float(np.abs(array - wanted).max()) / scale)
    return worst if np.isfinite(worst) else float("inf")
