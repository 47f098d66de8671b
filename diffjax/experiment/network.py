"""`config.model`: the network.

`config.model.name` is a network of diffjax or a path into user code. The section's other fields,
except `class_conditional`, are the maker's arguments, as are those in the name's parentheses. A
maker's parameters named in `GIVEN` are set from the data and the diffusion, even if they have
defaults.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffjax import accelerator
from diffjax.conditioning.conditions import UNCONDITIONAL, Conditions
from diffjax.errors import UserError
from diffjax.experiment.backbones import AXES, NETWORKS
from diffjax.experiment.spec import Spec, call_maker, from_table, import_path, is_path, parse_spec
from diffjax.models.network import Network, as_network, is_nnx
from diffjax.models.ops import XLA, Ops
from diffjax.prediction import Prediction

GIVEN = {
    "shape": "of one x_0",
    "num_classes": "0 for a network without classes",
    "out_channels": "channels of the output",
    "text_width": "features of a token of text, 0 for none",
    "text_encoder": "a Linen module that is trained with the network, or None",
    "map_channels": "channels of the map, 0 for none",
    "map_level": "whether it is given the map's noise level, cond.map.log_snr",
    "augmentation_width": "parameters of the augmentation that it is given, 0 for none",
    "embedding_width": "length of the image embedding that it is given, 0 for none",
    "spans": "whether t is (B, 2), a time and the span of a step, instead of (B,)",
}


KERNELS: Mapping[str, Callable[..., Any]] = {
    "auto": lambda: accelerator.auto,
    "onednn": lambda: accelerator.onednn,
    "xla": lambda: accelerator.xla,
}


def network(
    config: Any,
    *,
    diffusion: Prediction,
    shape: tuple[int, ...],
    conditions: Conditions = UNCONDITIONAL,
    map_channels: int = 0,
    ops: Ops = XLA,
) -> Network:
    """The network of `config.model`; nothing is traced.

    Args:
      config: the config.
      diffusion: what the network predicts.
      shape: of one x_0.
      conditions: the network's conditions.
      map_channels: channels of the map at the network's input.
      ops: the backend of convolutions and normalisations.

    Raises:
      UserError: an unknown name or path, or fields that the network does not take.
    """
    texts = conditions.texts
    outputs = diffusion.parametrisation.outputs
    given: dict[str, Any] = {
        "shape": shape,
        "num_classes": conditions.num_classes,
        "text_width": texts.width if texts else 0,
        "text_encoder": texts.module if texts else None,
        "map_channels": map_channels,
        "map_level": conditions.map_level and map_channels > 0,
        "augmentation_width": conditions.augmentation_width,
        "embedding_width": conditions.embedding_width,
        "spans": diffusion.parametrisation.spans,
        "out_channels": shape[-1] * (2 if diffusion.learned_variance else 1),
        "num_pixel_levels": outputs if outputs > 1 else 0,
        "ops": ops,
    }
    name = config.model.name
    spec = parse_spec(name, key="model.name")
    if not spec.module:
        if spec.arguments or spec.name not in NETWORKS:
            raise UserError(
                f"config.model.name = {name!r}: expected one of {', '.join(NETWORKS)}, whose "
                "arguments are the fields of config.model, or 'module:Name' for your own"
            )
        axes, wanted = AXES[spec.name]
        if len(shape) != axes:
            fitting = [repr(other) for other, (count, _) in AXES.items() if count == len(shape)]
            raise UserError(
                f"config.model.name = {name!r} needs data {wanted}, not {shape}: use "
                f"{' or '.join([*fitting, 'your own network'])}, 'module:Name'"
            )
        return as_network(NETWORKS[spec.name](config, given))
    return _own(config, spec, {name: given[name] for name in GIVEN})


def _own(config: Any, spec: Spec, given: Mapping[str, Any]) -> Network:
    """The network of a path into user code."""
    key, text = "model.name", config.model.name
    fields = {k: v for k, v in config.model.items() if k not in ("name", "class_conditional")}
    make = import_path(spec, text=text, key=key)
    if is_nnx(make):
        make = _nnx_maker(make)
    made = call_maker(make, spec, text=text, key=key, given=given, extra=fields)
    try:
        return as_network(made)
    except TypeError as error:
        raise UserError(f"config.{key} = {text!r}: {error}") from None


def _nnx_maker(module: Any) -> Callable[..., Network]:
    """A maker with the parameters of an NNX class except `rngs`."""
    from diffjax.models.nnx import from_nnx

    def make(**arguments: Any) -> Network:
        return from_nnx(module, **arguments)

    signature = inspect.signature(module)
    kept = [p for p in signature.parameters.values() if p.name != "rngs"]
    make.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return make


def check(
    found: Network,
    *,
    config: Any,
    diffusion: Prediction,
    shape: tuple[int, ...],
    cond: Any,
) -> None:
    """Traces the network to check its inputs and output; nothing is computed.

    Args:
      found: the network.
      config: the config, for error messages.
      diffusion: what the network predicts.
      shape: of one x_0.
      cond: an example's condition in shapes, or None.

    Raises:
      UserError: tracing fails, or the output has the wrong shape.
    """
    x = jax.ShapeDtypeStruct((1, *diffusion.input_shape(shape)), jnp.float32)
    t = jax.ShapeDtypeStruct(diffusion.time_shape(1), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        params = parameter_shapes(found, diffusion=diffusion, shape=shape, cond=cond)
        output = jax.eval_shape(
            lambda params, x, t, cond, key: found.apply(params, x, t, cond, train=True, key=key),
            params, x, t, cond, key,
        )  # fmt: skip
    except UserError:
        raise
    except Exception as error:
        if ":" not in config.model.name and not isinstance(
            error, ValueError | TypeError | ArithmeticError
        ):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        own = f".name = {config.model.name!r}" if ":" in config.model.name else ""
        raise UserError(f"config.model{own}: {first}") from error
    expected = (1, *diffusion.output_shape(shape))
    if getattr(output, "shape", None) != expected:
        raise UserError(
            f"config.model.name = {config.model.name!r} returns "
            f"{getattr(output, 'shape', type(output).__name__)} for x of {x.shape}: expected "
            f"{expected}"
        )


def parameter_shapes(
    found: Network, *, diffusion: Prediction, shape: tuple[int, ...], cond: Any
) -> Any:
    """The network's parameters with jax.ShapeDtypeStruct for arrays; nothing is computed."""
    x = jax.ShapeDtypeStruct((1, *diffusion.input_shape(shape)), jnp.float32)
    t = jax.ShapeDtypeStruct(diffusion.time_shape(1), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(found.init, key, x, t, cond)


def kernels(name: str, *, key: str) -> accelerator.Kernels:
    """The kernel backend of a config key: "auto" uses the accelerator if it is available.

    On several devices XLA's own kernels are used: XLA can't partition the accelerator's calls, and
    would gather the whole batch for each.

    Args:
      name: the value.
      key: the key.

    Raises:
      UserError: an unknown name, or "onednn" if the accelerator is not available.
    """
    find = from_table(name, KERNELS, key=key)
    if jax.device_count() > 1:
        if find is accelerator.onednn:
            raise UserError(
                f"config.{key} = {name!r} runs on one device, and there are {jax.device_count()}: "
                "use 'auto' or 'xla'"
            )
        return accelerator.xla()
    try:
        return find()
    except UserError as error:
        raise UserError(f"config.{key} = {name!r}: {error}") from None


def kernels_of(config: Any) -> accelerator.Kernels:
    """The kernels of a diffusion config; a user-defined network runs on XLA's."""
    own = is_path(config.model.name)
    name = "xla" if own else config.model.get("kernels", "auto")  # an unknown network has no key
    return kernels(name, key="model.kernels")
