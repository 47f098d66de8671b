"""A trained model whose samplers run in Python, step by step, around a compiled network.

    stepwise = StepByStep(diffjax.load("runs/digits"))
    with stepwise.running(on_step=print) as model:
        images = model.sample(labels=[3], seed=1, sampler="ddim", steps=25)

`Pipeline.sample` compiles the loop over all steps into one program for every sampler, number of
steps and scale of guidance. Here the network alone is compiled, once for a batch size, and the
loop runs under `jax.disable_jit`: another setting costs no compilation, each estimate can be looked
at while the picture is made, and an exception from the function that looks at it ends the run. The
images are those of `Pipeline.sample` up to the rounding of float32.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.inference.generator import Generator
from diffjax.inference.pipeline import Pipeline
from diffjax.parametrisations import Estimates
from diffjax.types import Array


class Step(NamedTuple):
    """One evaluation of a sampler's denoiser, or of its flow map.

    Attributes:
      t: the time, a number of the schedule's.
      x_t: (B, ...) where it was evaluated.
      x_0: (B, ...) the estimate of x_0 with guidance and thresholding; of a flow map, where its
        step ends.
      eps: (B, ...) the estimate of the noise; None of a flow map.
    """

    t: float
    x_t: np.ndarray
    x_0: np.ndarray
    eps: np.ndarray | None


OnStep = Callable[[Step], None]


class StepByStep:
    """A model to run step by step; see the module.

    Attributes:
      evaluations: the network's evaluations since `running` was entered: images, not calls.
    """

    def __init__(self, model: Pipeline) -> None:
        """Takes a loaded model, which stays as it is. Nothing is compiled yet."""
        self.evaluations = 0
        self._on_step: OnStep | None = None
        self._on_evaluation: Callable[[], None] | None = None
        self._compiled: dict[int, tuple[Any, Callable[..., Array]]] = {}
        make = model._make_generator
        self._model = copy.copy(model)
        self._model._make_generator = lambda how: self._stepping(make(how))
        self._model._generators, self._model._compiled = {}, {}

    @contextlib.contextmanager
    def running(
        self, on_step: OnStep | None = None, *, on_evaluation: Callable[[], None] | None = None
    ) -> Iterator[Pipeline]:
        """Within it the model's methods run step by step, on this thread alone.

        Args:
          on_step: called with each evaluation of a sampler's denoiser. Tasks of `Pipeline.edit`
            that have a sampler of their own call `on_evaluation` alone.
          on_evaluation: called before each call of the network.

        Yields:
          The model. What either function raises ends its method.
        """
        self.evaluations = 0
        self._on_step, self._on_evaluation = on_step, on_evaluation
        try:
            with jax.disable_jit():
                yield self._model
        finally:
            self._on_step = self._on_evaluation = None

    def _stepping(self, generator: Generator) -> Generator:
        """The generator with a compiled network and a sampler that reports."""
        stepping = generator.around(_Network(generator.network, self))
        if generator.weak is not None:
            network = _Network(generator.weak.network, self)
            stepping.weak = generator.weak._replace(network=network)
        sampler = generator.sampling.sampler

        def reporting(denoise: Any, x_T: Array, **options: Any) -> Any:
            seen = self._flow_map if generator.sampling.jumps else self._denoiser
            return sampler(seen(denoise), x_T, **options)

        stepping.sampling = generator.sampling._replace(sampler=reporting)
        return stepping

    def _denoiser(self, denoise: Denoiser) -> Denoiser:
        def seen(x_t: Array, t: Any, cond: Any = None) -> Estimates:
            pair = denoise(x_t, t, cond)
            if self._on_step is not None and not isinstance(x_t, jax.core.Tracer):
                eps = np.asarray(pair.eps)
                self._on_step(Step(_time(t), np.asarray(x_t), np.asarray(pair.x_0), eps))
            return pair

        return seen

    def _flow_map(self, jump: Callable[..., Array]) -> Callable[..., Array]:
        def seen(x_t: Array, t: Any, s: Any, cond: Any = None) -> Array:
            x_s = jump(x_t, t, s, cond)
            if self._on_step is not None and not isinstance(x_t, jax.core.Tracer):
                self._on_step(Step(_time(t), np.asarray(x_t), np.asarray(x_s), None))
            return x_s

        return seen

    def apply(self, network: Any, *arguments: Any, **options: Any) -> Array:
        """The network's output by its compiled function."""
        if options or any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arguments)):
            traced: Array = network.apply(*arguments, **options)
            return traced
        if self._on_evaluation is not None:
            self._on_evaluation()
        self.evaluations += len(arguments[1])
        # By identity: a network need not be hashable. The entry keeps it alive.
        if id(network) not in self._compiled:
            self._compiled[id(network)] = network, jax.jit(network.apply)
        with jax.disable_jit(False):
            return self._compiled[id(network)][1](*arguments)


class _Network:
    """A network whose `apply` is compiled on its own; other attributes are the network's."""

    def __init__(self, network: Any, runner: StepByStep) -> None:
        self._network, self._runner = network, runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def apply(self, params: Any, x: Array, t: Array, cond: Any, **options: Any) -> Array:
        return self._runner.apply(self._network, params, x, t, cond, **options)

    def perturbed(self, blocks: tuple[str, ...]) -> "_Network":
        return _Network(self._network.perturbed(blocks), self._runner)


def _time(t: Any) -> float:
    return float(np.asarray(t).flat[0])
