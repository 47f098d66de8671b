"""What a worker times, whichever side it is."""

from collections.abc import Callable
from typing import NamedTuple


class Workload(NamedTuple):
    """A task, ready to be repeated.

    Attributes:
      step: starts one repetition: a training step, or the sampling of a batch.
      wait: returns when all that was started is done.
      parameters: of the network.
      forward_flops: of one pass of one image, or None where the side does not count them.
      device: where it runs, in words.
      steps: how many steps a repetition is.
      step_flops: of one training step, by XLA's cost analysis of the program before it is
        optimised; None where nobody counts them.
      compile_seconds: that XLA took for the step, None where it is not known apart.
    """

    step: Callable[[], None]
    wait: Callable[[], None]
    parameters: int
    forward_flops: float | None
    device: str
    steps: int = 1
    step_flops: float | None = None
    compile_seconds: float | None = None
