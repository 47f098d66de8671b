"""The denoiser, or flow map, and the decoder of a model as functions of named arrays.

A program takes a dictionary of parameters and one of inputs, and returns one of outputs, so that
its files need no class of diffjax's. The first axis of inputs and outputs is the batch.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.conditioning.conditions import Conditions, broadcast
from diffjax.grids import Grid
from diffjax.inference.sampling import apply_network
from diffjax.latent.first_stage import FirstStage, StageParams
from diffjax.models.condition import Condition
from diffjax.models.network import Network
from diffjax.prediction import Prediction

Arrays = dict[str, Any]

MEANINGS = {
    "x_t": "noisy data: signal_scale x_0 + noise_scale eps",
    "t": "its time, as in schedule.t",
    "s": "the earlier time, below t, to which the flow map goes",
    "label": "class, -1 for none",
    "text_tokens": "tokens of the text, as its encoder makes them",
    "text_mask": "true at tokens and false at padding; all false for no text",
    "text_pooled": "the encoder's vector of the whole text",
    "map_values": "the map",
    "map_present": "whether there is a map",
    "map_log_snr": "log-SNR of the map, which noise was added to",
    "augmentation": "height and width of the original, top and left of its crop, height and width",
    "embedding": "image embedding, zeros for none",
    "x_0": "estimate of the clean data",
    "eps": "estimate of the noise",
    "variance_mix": "log-variance of a step, from beta-tilde's (0) to beta's (1)",
    "x_s": "x at time s",
    "latents": "x_0 of the denoiser",
    "images": "images, about [-1, 1], (height, width, channels)",
}


class Program(NamedTuple):
    """A function of named arrays.

    Attributes:
      name: "denoiser", "flow_map" or "decoder".
      function: (parameters, inputs) -> outputs.
      params: the parameters, by their path.
      inputs: jax.ShapeDtypeStruct of a batch of one.
      times: of `example`.
    """

    name: str
    function: Callable[[Arrays, Arrays], Arrays]
    params: Arrays
    inputs: Arrays
    times: Mapping[str, float] = MappingProxyType({})

    @property
    def outputs(self) -> Arrays:
        """jax.ShapeDtypeStruct of a batch of one."""
        found = jax.eval_shape(self.function, self.params, self.inputs)
        return {name: found[name] for name in MEANINGS if name in found}

    def example(self, batch: int, *, seed: int = 0) -> Arrays:
        """Random inputs of a batch: standard normal, whole numbers of 0 and 1."""
        rng = np.random.default_rng(seed)

        def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
            shape = (batch, *leaf.shape[1:])
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                return rng.standard_normal(shape).astype(leaf.dtype)
            return rng.integers(0, 2, shape).astype(leaf.dtype)

        made = {name: draw(leaf) for name, leaf in self.inputs.items()}
        times = {name: np.full(batch, t, made[name].dtype) for name, t in self.times.items()}
        return made | times


def denoiser(
    network: Network,
    diffusion: Prediction,
    params: Any,
    *,
    shape: tuple[int, ...],
    conditions: Conditions,
    example: Condition | None,
    grid: Grid,
) -> Program:
    """(x_t, t, condition) -> x_0, eps without guidance or thresholding.

    A network of average velocities is a flow map, (x_t, t, s, condition) -> x_s, instead.

    Args:
      network, diffusion, params: the model.
      shape: of one x_0.
      conditions: of the network.
      example: one example's condition as jax.ShapeDtypeStruct.
      grid: that it is sampled with.
    """
    named, tree = _named(params)
    kind = jnp.int32 if np.issubdtype(grid.t.dtype, np.integer) else jnp.float32
    time = jax.ShapeDtypeStruct((1,), kind)
    inputs: Arrays = {"x_t": jax.ShapeDtypeStruct((1, *shape), jnp.float32), "t": time}
    jumps = diffusion.parametrisation.spans
    if jumps:
        inputs["s"] = time
    times = {"t": float(grid.t[grid.steps // 2]), "s": float(grid.t[-1])}
    inputs |= _condition_inputs(example, conditions)

    def function(given: Arrays, arrays: Arrays) -> Arrays:
        run = apply_network(network, jax.tree.unflatten(tree, [given[name] for name in named]))
        cond = _condition(example, arrays, conditions)
        if jumps:
            jump = diffusion.flow_map(run)
            return {"x_s": jump(arrays["x_t"], arrays["t"], arrays["s"], cond)}
        found = diffusion.denoiser(run)(arrays["x_t"], arrays["t"], cond)
        return {name: array for name, array in found._asdict().items() if array is not None}

    name = "flow_map" if jumps else "denoiser"
    return _without_unused(Program(name, function, dict(named), inputs, times))


def decoder(stage: FirstStage, params: StageParams) -> Program:
    """Latents -> images."""
    whole = stage._replace(tile=0)
    kept = params._replace(params={"decoder": params.params["decoder"]})
    named, tree = _named(kept)

    def function(given: Arrays, arrays: Arrays) -> Arrays:
        restored = jax.tree.unflatten(tree, [given[name] for name in named])
        return {"images": whole.decode(restored, arrays["latents"])}

    latents = jax.ShapeDtypeStruct((1, *stage.latent_shape), jnp.float32)
    return Program("decoder", function, dict(named), {"latents": latents})


def _named(tree: Any) -> tuple[Arrays, Any]:
    """The leaves by their paths, in the tree's order, and its structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    named: Arrays = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        while name in named:  # keys with dots may collide
            name += "_"
        named[name] = leaf
    return named, structure


def _condition_inputs(example: Condition | None, conditions: Conditions) -> Arrays:
    """The condition's arrays; those that are the same for all samples are no inputs."""
    arrays = {
        name: jax.ShapeDtypeStruct(
            leaf.shape, jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
        )
        for name, leaf in _leaves(example).items()
    }
    if not conditions.unchanged:
        arrays.pop("augmentation", None)
    return arrays


def _condition(example: Condition | None, arrays: Arrays, conditions: Conditions) -> Any:
    """The condition of given arrays, completed by constants."""
    if example is None:
        return None
    batch = arrays["x_t"].shape[0]
    leaves = [
        arrays[name] if name in arrays else broadcast(jnp.zeros(leaf.shape, leaf.dtype), batch)
        for name, leaf in _leaves(example).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(example), leaves)


def _leaves(example: Condition | None) -> Arrays:
    """ "label", "text_tokens", "map_values": the arrays of a condition, by name."""
    found = jax.tree_util.tree_leaves_with_path(example)
    return {jax.tree_util.keystr(path, simple=True, separator="_"): leaf for path, leaf in found}


def _without_unused(program: Program) -> Program:
    """A program without the inputs that change nothing, such as a mask that is not looked at."""
    jaxpr = jax.make_jaxpr(program.function)(program.params, program.inputs).jaxpr
    used = {id(var) for equation in jaxpr.eqns for var in equation.invars}
    of_inputs = jaxpr.invars[len(program.params) :]
    wanted = {
        name for name, var in zip(sorted(program.inputs), of_inputs, strict=True) if id(var) in used
    }
    kept = {name: leaf for name, leaf in program.inputs.items() if name in wanted}
    times = {name: t for name, t in program.times.items() if name in kept}
    return program._replace(inputs=kept, times=times)
