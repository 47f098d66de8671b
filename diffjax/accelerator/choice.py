"""Which kernels a network runs on, and the line that says so."""

from typing import NamedTuple

import jax

from diffjax.accelerator.library import load
from diffjax.accelerator.ops import NATIVE
from diffjax.errors import UserError
from diffjax.models.ops import XLA, Ops


class Kernels(NamedTuple):
    """What computes convolutions and normalisations.

    Attributes:
      ops: the functions.
      line: what they are and why, for the log.
    """

    ops: Ops
    line: str


def xla() -> Kernels:
    """XLA's own, everywhere."""
    return Kernels(XLA, "kernels: XLA's own")


def onednn() -> Kernels:
    """The accelerator.

    Raises:
      UserError: JAX does not compute on a CPU, or what `library.load` says.
    """
    backend = jax.default_backend()
    if backend != "cpu":
        raise UserError(f"the accelerator is for CPUs, and JAX computes on a {backend}")
    return Kernels(NATIVE, f"kernels: {load()}")


def auto() -> Kernels:
    """The accelerator where there is one, else XLA's own with the reason."""
    if jax.default_backend() != "cpu":
        return xla()
    try:
        return onednn()
    except UserError as error:
        return Kernels(XLA, f"kernels: XLA's own, which are slower on a CPU, since {error}")
