"""A config as text (`--mode=config`), and the explanation of one key (`--help=key`)."""

import difflib
import importlib
import inspect
from typing import Any

from diffjax.checkpoints.run_config import flatten
from diffjax.errors import UserError
from diffjax.experiment import schema
from diffjax.experiment.backbone_keys import NETWORK_FIELDS
from diffjax.experiment.rules import Key
from diffjax.experiment.schema import KINDS

_ROOM = "diffjax.experiment."
# key -> the table of the names that it accepts, as module:TABLE.
TABLES = {
    "data.augment": "augmentation:CHOICES",
    "model.name": "backbones:NETWORKS",
    "model.mlp": "backbones:MLPS",
    "model.norm": "backbones:NORMS",
    "model.block": "backbones:BLOCKS",
    "model.resample": "backbones:RESAMPLES",
    "model.time_features": "backbones:TIME_FEATURES",
    "model.attention": "backbones:ATTENTIONS",
    "model.dtype": "backbones:DTYPES",
    "model.kernels": "network:KERNELS",
    "model.remat": "backbones:REMATS",
    "model.lora": "lora:LORAS",
    "condition.text": "conditioning:TEXTS",
    "condition.map": "conditioning:MAPS",
    "condition.embedding": "image_embedding:EMBEDDINGS",
    "data.embedding": "image_embedding:EMBEDDINGS",
    "diffusion.objective": "objective:OBJECTIVES",
    "diffusion.pairs": "pairs:PAIRS",
    "diffusion.teacher_guidance": "sampling:GUIDANCE",
    "diffusion.schedule": "process:SCHEDULES",
    "diffusion.parametrisation": "process:PARAMETRISATIONS",
    "diffusion.loss_target": "process:PARAMETRISATIONS",
    "diffusion.weighting": "objective:WEIGHTINGS",
    "diffusion.time_sampling": "objective:TIME_SAMPLERS",
    "diffusion.augment": "augmentation:NON_LEAKING",
    "train.optimizer": "optimisation:OPTIMIZERS",
    "train.schedule": "optimisation:LEARNING_RATES",
    "train.ema": "optimisation:AVERAGES",
    "parallel.strategy": "strategies:STRATEGIES",
    "sample.sampler": "sampling:SAMPLERS",
    "sample.grid": "sampling:GRIDS",
    "sample.guidance": "sampling:GUIDANCE",
    "sample.threshold": "sampling:THRESHOLDS",
    "edit.task": "sampling:EDITS",
    "evaluate.features": "evaluation:FEATURES",
    "evaluate.likelihood": "likelihood:LIKELIHOODS",
    "autoencoder.regulariser": "autoencoder_networks:REGULARISERS",
    "autoencoder.layout": "autoencoder_networks:LAYOUTS",
    "autoencoder.dtype": "backbones:DTYPES",
    "autoencoder.kernels": "network:KERNELS",
    "pixelcnn.dtype": "backbones:DTYPES",
    "pixelcnn.kernels": "network:KERNELS",
    "gan.loss": "gan:LOSSES",
    "gan.dtype": "backbones:DTYPES",
    "gan.kernels": "network:KERNELS",
    "loss.reconstruction": "autoencoder_objective:DIFFERENCES",
    "loss.perceptual": "autoencoder_objective:PERCEPTUAL",
    "loss.adversarial": "autoencoder_objective:DISCRIMINATORS",
}
# Keys that accept a path into user code, and what the path must name.
DOORS = {
    "data.name": "a maker of an array, a diffjax.data.ArraySource, or an object with __len__ and "
    "__getitem__ -> array or {'image': uint8 or 'x_0': float, 'label': int}, and optionally "
    "held_out; dir, image_size and channels of config.data are its arguments where they are set",
    "data.augment": "a function (key, image (H, W, C) in [-1, 1]) -> image of the same shape",
    "model.name": "a maker of a network: a Linen module, an NNX class, a pair (init, apply), or an "
    "object with init(key, x, t, cond) and apply(params, x, t, cond, *, train, key)",
    "condition.text": "a maker of a diffjax.conditioning.text_encoder.TextEncoder",
    "data.embedding": "a maker of a diffjax.models.embedding_network.EmbeddingNetwork",
    "condition.embedding": "a maker of a diffjax.models.embedding_network.EmbeddingNetwork",
    "condition.map": "a function of images in [-1, 1], (B, H, W, C) -> (B, H, W, channels)",
    "diffusion.objective": "a function (network, prediction) -> loss(params, x_0, cond, key)",
    "diffusion.schedule": "a maker of a diffjax.schedules.Schedule",
    "diffusion.parametrisation": "a maker of a diffjax.parametrisations.Parametrisation",
    "diffusion.loss_target": "a maker of a diffjax.parametrisations.Parametrisation",
    "diffusion.weighting": "a function (schedule, t, target) -> (B,) weights",
    "diffusion.time_sampling": "a function (key, schedule, *, indices, batch_size) -> (B,) times",
    "train.optimizer": "a function of the learning rate, such as optax:lion(b1=0.95)",
    "train.schedule": "a function (peak, steps after the warm-up) -> optax schedule",
    "sample.sampler": "a function (denoise, x_T, *, grid, key, cond, keep_trajectory) -> Samples",
    "sample.grid": "a function (schedule, steps) -> diffjax.grids.Grid",
    "sample.guidance": "a function (denoise, schedule[, null=]) -> denoiser",
    "sample.threshold": "a function (denoise, schedule) -> denoiser",
    "evaluate.features": "a maker of a diffjax.perceptual.EmbeddingNetwork",
    "loss.perceptual": "a maker of a diffjax.perceptual.FeatureNetwork",
}


def listing(config: Any) -> str:
    """Every key of a complete config, with a star where it differs from its default."""
    values = flatten(config)
    keys = schema.keys_of(config)
    lines, changed = [], 0
    for key in [*(k for k in keys if k in values), *(k for k in values if k not in keys)]:
        value = values[key]
        entry = keys.get(key)
        differs = entry is None or value != entry.default
        changed += differs
        note = ""
        if differs:
            note = "  # user-defined" if entry is None else f"  # default {entry.default!r}"
        lines.append(f"{'*' if differs else ' '} config.{key} = {value!r}{note}")
    lines.append(f"{changed} of {len(lines)} keys differ from their defaults (*)")
    return "\n".join(lines)


def explain(key: str) -> str:
    """A key's meaning, bounds and default, the names that it accepts, and what a path must name.

    Raises:
      UserError: no such key.
    """
    entries: list[tuple[str, Key]] = []
    for of, keys in _all_keys():
        entries += [(of, keys[key])] if key in keys else []
    if not entries:
        known = sorted({name for _, keys in _all_keys() for name in keys})
        inside = [name for name in known if name.startswith(f"{key}.")]
        near = inside or difflib.get_close_matches(key, known, n=3) or ["train.steps"]
        raise UserError(f"--help={key}: there is no such key: expected {', '.join(near)}")
    lines = []
    for of, (rule, default, meaning) in entries:
        lines += [f"config.{key}{of}: {meaning}", f"  expected  {rule.expected}"]
        lines.append(f"  default   {default!r}")
    if key in TABLES:
        module, table = TABLES[key].split(":")
        names = getattr(importlib.import_module(_ROOM + module), table)
        lines.append(
            "  names     " + "\n            ".join(_called(n, m) for n, m in names.items())
        )
    if key in DOORS:
        lines.append(f"  or        'module:Name(argument=value)': {DOORS[key]}")
    return "\n".join(lines)


def _all_keys() -> list[tuple[str, dict[str, Key]]]:
    networks = [
        (f" (of the network {name})", dict(fields)) for name, fields in NETWORK_FIELDS.items()
    ]
    others = [
        (f" (of {kind.name})", dict(kind.keys))
        for name, kind in KINDS.items()
        if name != "diffusion"
    ]
    return [("", dict(KINDS["diffusion"].keys)), *networks, *others]


def _called(name: str, make: Any) -> str:
    """A name with its arguments and their defaults."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (ValueError, TypeError):
        return name
    arguments = ", ".join(
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in ("config", "given")
    )
    return f"{name}({arguments})" if arguments else name
