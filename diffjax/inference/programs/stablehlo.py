"""Programs by `jax.export`: StableHLO for CPU, GPU and TPU, its parameters apart.

from jax import export
from safetensors.numpy import load_file
denoiser = export.deserialize(bytearray(open("denoiser.stablehlo", "rb").read()))
estimates = denoiser.call(load_file("denoiser.safetensors"), {"x_t": x_t, "t": t})

Parameters are apart since the program is then small, and serves every checkpoint of the run.
"""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
from jax import export

from diffjax.errors import UserError
from diffjax.files import atomic_write
from diffjax.inference.programs.program import Program

PLATFORMS = ("cpu", "cuda", "tpu")

_logger = logging.getLogger("diffjax")


def check_installed() -> None:
    """Raises UserError unless what jax.export serialises with is installed."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError('--format=stablehlo needs flatbuffers: pip install "diffjax[stablehlo]"')


def expiry() -> str:
    """What jax.export promises, for how long."""
    return (
        f"written with jax {jax.__version__} and jaxlib {jaxlib.__version__}: jax.export promises "
        "that versions up to 6 months newer, or up to 3 weeks older, run it; keep the run, or "
        "--format=diffjax, and export again after that"
    )


def write(program: Program, folder: Path) -> dict[str, Any]:
    """Writes <name>.stablehlo and <name>.safetensors, and returns what describes them.

    The batch may be of any size, where the network can be traced so; else it is 1.

    Raises:
      UserError: a network with operations that can't be serialised, such as kernels of its own.
    """
    name = program.name
    for batch in (None, 1):
        try:
            content = exported(program, batch=batch).serialize()
            break
        except Exception as error:  # of any kind, from a user's network
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            if batch is not None:
                raise UserError(
                    f"jax.export can't write the {name}: {type(error).__name__}: {line[:200]}; "
                    "expected operations of JAX alone; use --format=diffjax"
                ) from error
            _logger.info("the %s is for batches of 1: no other size can be traced: %s", name, line)
    atomic_write(folder / f"{name}.stablehlo", lambda file: file.write(content))
    write_params(program, folder / f"{name}.safetensors")
    return {
        "file": f"{name}.stablehlo",
        "parameters": f"{name}.safetensors",
        "call": "jax.export.deserialize(file).call(parameters, inputs) -> outputs",
        "platforms": list(PLATFORMS),
        "batch": "any" if batch is None else batch,
    }


def exported(program: Program, *, batch: int | None = None) -> export.Exported:
    """The traced program, for a batch of any size for None."""
    size = export.symbolic_shape("batch")[0] if batch is None else batch
    inputs = {
        name: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in program.inputs.items()
    }
    params = {
        name: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)
        for name, leaf in program.params.items()
    }
    return export.export(jax.jit(program.function), platforms=PLATFORMS)(params, inputs)


def write_params(program: Program, path: Path) -> None:
    """Writes a program's parameters as safetensors, by their names."""
    from safetensors.numpy import save

    arrays = {name: np.asarray(leaf, order="C") for name, leaf in program.params.items()}
    content = save(arrays)
    atomic_write(path, lambda file: file.write(content))
