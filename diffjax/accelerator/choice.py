"""The choice of a network's kernels."""

from typing import NamedTuple

import jax

from diffjax.accelerator.library import load
from diffjax.accelerator.ops import NATIVE
from diffjax.errors import UserError
from diffjax.models.ops import XLA, Ops


class Kernels(NamedTuple):
    """An implementation of convolutions, normalisation and attention.

    Attributes:
      ops: the functions.
      line: its description for the log.
    """

    ops: Ops
    line: str


def xla() -> Kernels:
    """XLA's kernels."""
    return Kernels(XLA, "kernels: XLA's own")


def onednn() -> Kernels:
    """The accelerator's kernels.

    Raises:
      UserError: JAX's backend is not the CPU, or as in `library.load`.
    """
    backend = jax.default_backend()
    if backend != "cpu":
        raise UserError(f"the accelerator is for CPUs, but JAX's backend is {backend}")
    return Kernels(NATIVE, f"kernels: {load()}")


def auto() -> Kernels:
    """The accelerator's kernels if available, else XLA's with the reason."""
    if jax.default_backend() != "cpu":
        return xla()
    try:
        return onednn()
    except UserError as error:
        return Kernels(XLA, f"kernels: XLA's own, which are slower on a CPU, since {error}")
