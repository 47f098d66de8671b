"""`config.data`: the training and held-out data."""

import math
from typing import Any

import numpy as np

from diffjax import data
from diffjax.data import dreambooth
from diffjax.errors import UserError
from diffjax.experiment import inversion, prompts
from diffjax.experiment.spec import from_spec, is_path, parameters_of

EVAL_IMAGES = 512
EVAL_BATCH = 128
# A test set up to this size is decoded and cached as a whole; of a larger one only the evaluated
# images are read.
EVAL_DECODED_MB = 64
# Prefixes of `config.data.name` that are not modules.
_KINDS = ("tfds", "folder")
# The held-out images are those of the first of these splits that a set has.
HELD_OUT = ("test", "val", "validation")
# Keys of `config.data` that the maker of a user's own set is handed where they are set.
_HANDED = ("dir", "image_size", "channels")


def is_own(config: Any) -> bool:
    """Whether `config.data.name` is a path into user code."""
    name = config.data.name
    return is_path(name) and name.partition(":")[0] not in _KINDS


def load_train(config: Any) -> data.ImageSource:
    """The training set of `config.data`.

    Raises:
      UserError: an unknown name or path, or data that can't be read.
    """
    if config.data.name == "none":
        raise UserError(
            "config.data.name = 'none': there is nothing to train on or to compare with: set it to "
            "folder:<path>, a folder of images with captions"
        )
    source = _own(config) if is_own(config) else load_split(config, "train")
    return _with_prior(config, _with_prompt(config, source))


def _with_prompt(config: Any, source: data.ImageSource) -> data.ImageSource:
    """The set with the captions config.data.prompt, if that is set, or with a new token's."""
    prompt = config.data.get("prompt", "")  # of diffusion models alone
    if not prompt:
        texts = () if source.captions or "model" not in config else inversion.prompts_of(config)
        return dreambooth.prompted(source, *texts) if texts else source
    try:
        return dreambooth.prompted(source, *prompts.read(prompt, key="data.prompt"))
    except UserError as error:
        raise UserError(f"config.data.prompt = {prompt!r}: {error}") from None


def _with_prior(config: Any, source: data.ImageSource) -> data.ImageSource:
    """The set in turn with that of config.data.prior, if there is one."""
    place = config.data.get("prior", "")
    if not place:
        return source
    try:
        prior = data.load(
            f"folder:{place}",
            image_size=tuple(source.image_shape[:2]),  # type: ignore[arg-type]
            channels=source.image_shape[-1],
            memory_limit_mb=config.data.memory_limit_mb,
            on_broken=config.data.on_broken,
        )
        if config.data.prior_prompt:
            prior = dreambooth.prompted(prior, config.data.prior_prompt)
        return dreambooth.alternating(source, prior)
    except UserError as error:
        raise UserError(f"config.data.prior = {place!r}: {error}") from None


def load_split(config: Any, split: str, *, memory_limit_mb: int | None = None) -> data.ImageSource:
    """One split of a built-in data set.

    Args:
      config: the config.
      split: "train" or "test".
      memory_limit_mb: config.data.memory_limit_mb by default; a smaller limit avoids decoding a
        large set to read a few images.
    """
    c = config.data
    return data.load(
        c.name,
        split=split,
        data_dir=c.dir or None,
        image_size=c.image_size or None,
        channels=c.channels or None,
        memory_limit_mb=c.memory_limit_mb if memory_limit_mb is None else memory_limit_mb,
        on_broken=c.on_broken,
        caption=c.caption or None,
    )


def load_held_out(config: Any, source: data.ImageSource | None = None) -> data.ImageSource | None:
    """The held-out examples, or None.

    Args:
      config: the config.
      source: its training set, if already loaded; a user's data set has its own held-out set.
    """
    if is_own(config):
        found = _held_out(source or _own(config))
        return None if found is None else _with_prompt(config, found)
    c = config.data
    for split in HELD_OUT:
        if data.has_split(c.name, split=split, data_dir=c.dir or None):
            limit = min(EVAL_DECODED_MB, c.memory_limit_mb)
            return _with_prompt(config, load_split(config, split, memory_limit_mb=limit))
    return None


def _own(config: Any) -> data.ImageSource:
    c = config.data
    handed = {key: c[key] for key in _HANDED if c[key]}
    taken = parameters_of(c.name, key="data.name")
    for key, value in handed.items():
        if key not in taken:
            raise UserError(
                f"config.data.{key} = {value!r} has no effect on the custom data set "
                f"config.data.name = {c.name!r}, which has no parameter {key!r}: leave it unset"
            )
    source = data.as_source(from_spec(c.name, {}, key="data.name", extra=handed), name=c.name)
    held_out = _held_out(source)
    if held_out is not None and (
        held_out.image_shape != source.image_shape or held_out.dtype != source.dtype
    ):
        raise UserError(
            f"config.data.name = {c.name!r}: the held-out set has {held_out.dtype} "
            f"{held_out.image_shape}, not {source.dtype} {source.image_shape}"
        )
    if c.flip and (source.dtype != np.uint8):
        raise UserError(
            f"config.data.flip = True: {c.name!r} holds arrays, not images: set it to False"
        )
    return source


def _held_out(source: Any) -> data.ImageSource | None:
    """The `held_out` of a user's data set, of any type that `data.as_source` accepts."""
    held_out = getattr(source, "held_out", None)
    return None if held_out is None else data.as_source(held_out, name=f"{source.name}.held_out")


def held_out_batches(source: data.ImageSource) -> list[dict[str, np.ndarray]]:
    """At most EVAL_IMAGES images in batches of one size.

    Up to three remaining images are dropped: a smaller batch would be compiled separately.
    """
    count = min(EVAL_IMAGES, len(source))
    parts = math.ceil(count / EVAL_BATCH)
    size = count // parts
    batch = next(data.batches(source, batch_size=size * parts, seed=0))
    return [
        {name: array[i : i + size] for name, array in batch.items()}
        for i in range(0, size * parts, size)
    ]
