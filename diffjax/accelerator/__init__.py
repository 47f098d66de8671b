"""Convolutions, normalisation and attention for CPUs, with oneDNN and a few loops in C++.

XLA has no fast convolution gradients for CPUs. This package has the operations of `models.ops` as
XLA custom calls; `pip install "diffjax[cpu]"` installs oneDNN and `python -m diffjax.accelerator`
compiles the library for this machine. GPUs and TPUs do not need it.
"""

from diffjax.accelerator.choice import Kernels, auto, onednn, xla
from diffjax.accelerator.library import build, load

__all__ = ["Kernels", "auto", "build", "load", "onednn", "xla"]
