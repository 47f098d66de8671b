"""Convolutions and normalisation for CPUs, by oneDNN and a few loops in C++.

XLA has no fast convolution gradients for CPUs. This room has the operations of `models.ops` as XLA
custom calls; `pip install "diffjax[cpu]"` brings oneDNN and `python -m diffjax.accelerator`
compiles the library for the machine at hand. Nothing here is needed on a GPU or a TPU.
"""

from diffjax.accelerator.choice import Kernels, auto, onednn, xla
from diffjax.accelerator.library import build, load

__all__ = ["Kernels", "auto", "build", "load", "onednn", "xla"]
