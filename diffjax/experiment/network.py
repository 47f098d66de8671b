"""`config.model`: the network.

`config.model.name` is a network of diffjax or a path into user code. The section's other fields,
except `class_conditional`, are the maker's arguments, as are those in the name's parentheses. A
maker's parameters named in `GIVEN` are set from the data and the diffusion, even if they have
defaults.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from diffjax import accelerator
from diffjax.conditioning.conditions import UNCONDITIONAL, Conditions
from diffjax.errors import UserError
from diffjax.experiment.process import takes_tangent
from diffjax.experiment.spec import Spec, call_maker, from_table, import_path, is_path, parse_spec
from diffjax.models import ConvNeXtBlock, ResNetBlock, UNet, linear_attention, remat
from diffjax.models.dit import DiT
from diffjax.models.dit_blocks import Gelu, LayerNorm, RMSNorm, SwiGlu
from diffjax.models.embeddings import random_time_features, timestep_embedding
from diffjax.models.network import Network, as_network, is_nnx
from diffjax.models.ops import XLA, Ops
from diffjax.models.prior import Prior
from diffjax.models.unet import RESAMPLINGS
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


def _convnext(expansion: int = 2) -> Callable[..., Any]:
    if expansion < 1:
        raise ValueError(f"expansion must be at least 1, not {expansion}")
    return partial(ConvNeXtBlock, expansion=expansion)


def _softmax(implementation: str = "auto") -> Callable[..., Any]:
    """`jax.nn.dot_product_attention`; "auto" leaves the choice to JAX."""
    if implementation not in ("auto", "xla", "cudnn"):
        raise ValueError(f"implementation must be 'auto', 'xla' or 'cudnn', not {implementation!r}")
    if implementation == "auto":
        return jax.nn.dot_product_attention
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        raise ValueError(
            f"implementation='cudnn' needs an NVIDIA GPU, and this is a {jax.default_backend()}"
        )
    return partial(jax.nn.dot_product_attention, implementation=implementation)


def _random_time_features(scale: float = 0.016) -> Callable[..., Any]:
    if not scale > 0:
        raise ValueError(f"scale must be above 0, not {scale}")
    return partial(random_time_features, scale=scale)


BLOCKS: Mapping[str, Callable[..., Any]] = {
    "resnet": lambda: ResNetBlock,
    "convnext": _convnext,
}
ATTENTIONS: Mapping[str, Callable[..., Any]] = {
    "softmax": _softmax,
    "linear": lambda: linear_attention,
}
RESAMPLES: Mapping[str, Callable[..., Any]] = {name: partial(str, name) for name in RESAMPLINGS}
TIME_FEATURES: Mapping[str, Callable[..., Any]] = {
    "sinusoidal": lambda: timestep_embedding,
    "fourier": _random_time_features,
}
MLPS: Mapping[str, Callable[..., Any]] = {"swiglu": lambda: SwiGlu, "gelu": lambda: Gelu}
NORMS: Mapping[str, Callable[..., Any]] = {"rms": lambda: RMSNorm, "layer": lambda: LayerNorm}
DTYPES: Mapping[str, Callable[..., Any]] = {
    "float32": lambda: jnp.float32,
    "bfloat16": lambda: jnp.bfloat16,
}
KERNELS: Mapping[str, Callable[..., Any]] = {
    "auto": lambda: accelerator.auto,
    "onednn": lambda: accelerator.onednn,
    "xla": lambda: accelerator.xla,
}
REMATS: Mapping[str, Callable[..., Any]] = {
    "none": lambda: None,
    "dots": lambda: remat.dots,
    "layers": lambda: remat.layers,
    "full": lambda: remat.full,
}


def unet(config: Any, given: Mapping[str, Any]) -> UNet:
    """The U-Net of `config.model`; `given` follows from the data and the diffusion."""
    c = config.model
    return UNet(
        base_channels=c.channels,
        channel_multipliers=tuple(c.multipliers),
        num_res_blocks=c.blocks,
        attention_resolutions=tuple(c.attention_resolutions),
        transformer_depth=c.transformer_depth,
        head_channels=c.head_channels,
        dropout=c.dropout,
        fourier=tuple(c.fourier),
        patch=c.patch,
        block=from_table(c.block, BLOCKS, key="model.block"),
        scale_shift=c.scale_shift,
        resample=from_table(c.resample, RESAMPLES, key="model.resample"),
        resample_first=c.resample_first,
        scale_skips=c.scale_skips,
        time_features=from_table(c.time_features, TIME_FEATURES, key="model.time_features"),
        attention_fn=_attention(config),
        dtype=from_table(c.dtype, DTYPES, key="model.dtype"),
        remat=from_table(c.remat, REMATS, key="model.remat"),
        **{name: given[name] for name in given if name not in ("shape",)},
    )


def _attention(config: Any) -> Callable[..., Any]:
    """The attention of `config.model`; XLA's in cuDNN's place for a forward derivative, which
    cuDNN's has not."""
    text = config.model.attention
    found: Callable[..., Any] = from_table(text, ATTENTIONS, key="model.attention")
    if "cudnn" in text and takes_tangent(config):
        return _softmax("xla")
    return found


def dit(config: Any, given: Mapping[str, Any]) -> DiT:
    """The transformer of `config.model` over an image's patches; `given` as for `unet`.

    Raises:
      UserError: an output of levels.
    """
    c = config.model
    if given["num_pixel_levels"]:
        raise UserError(
            f"config.model.name = {c.name!r} predicts no levels: use a "
            "config.diffusion.parametrisation other than 'categorical'"
        )
    fields = ("num_pixel_levels", "ops", "shape")
    return DiT(
        width=c.width,
        depth=c.depth,
        head_channels=c.head_channels,
        patch=c.patch,
        mlp=from_table(c.mlp, MLPS, key="model.mlp"),
        norm=from_table(c.norm, NORMS, key="model.norm"),
        qk_norm=c.qk_norm,
        rotary=c.rotary,
        sincos=c.sincos,
        bottleneck=c.bottleneck,
        class_tokens=c.class_tokens,
        class_tokens_from=c.class_tokens_from,
        dropout=c.dropout,
        time_features=from_table(c.time_features, TIME_FEATURES, key="model.time_features"),
        attention_fn=_attention(config),
        dtype=from_table(c.dtype, DTYPES, key="model.dtype"),
        remat=from_table(c.remat, REMATS, key="model.remat"),
        **{name: given[name] for name in given if name not in fields},
    )


def prior(config: Any, given: Mapping[str, Any]) -> Prior:
    """The transformer of `config.model` over texts and embeddings; `given` as for `unet`.

    Raises:
      UserError: a condition that it does not take.
    """
    c = config.model
    for name, key in (
        ("map_channels", "condition.map"), ("augmentation_width", "diffusion.augment"),
        ("embedding_width", "condition.embedding"),
    ):  # fmt: skip
        if given[name]:
            raise UserError(
                f"config.model.name = {c.name!r} takes texts and classes alone: set config.{key} "
                "to 'none'"
            )
    if given["spans"]:
        raise UserError(
            f"config.model.name = {c.name!r} takes no span of a step: use a "
            "config.diffusion.parametrisation other than 'average_velocity'"
        )
    return Prior(
        width=c.width,
        layers=c.layers,
        head_channels=c.head_channels,
        dropout=c.dropout,
        dtype=from_table(c.dtype, DTYPES, key="model.dtype"),
        remat=from_table(c.remat, REMATS, key="model.remat"),
        **{k: given[k] for k in ("num_classes", "text_width", "text_encoder", "out_channels")},
    )


# Each with the number of axes of its data, and what they are.
NETWORKS: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "unet": unet,
    "dit": dit,
    "prior": prior,
}
AXES = {"unet": (3, "(H, W, C)"), "dit": (3, "(H, W, C)"), "prior": (1, "(D,)")}


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
