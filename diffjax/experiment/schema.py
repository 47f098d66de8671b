"""Configs: completed with the defaults of `keys`, and checked.

A config sets only the keys that differ from the defaults. `complete` adds the rest, for an
experiment file and for the config.json of an old run alike, and `check` rejects unknown keys and
values out of bounds. The section `config.user` is free for the user's own keys.
"""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FieldReference

from diffjax import arguments
from diffjax.checkpoints.run_config import flatten
from diffjax.errors import UserError
from diffjax.experiment.backbone_keys import NETWORK_FIELDS
from diffjax.experiment.keys import (
    AUTOENCODER,
    CASCADE,
    DIFFUSION,
    GAN,
    PIXELCNN,
)
from diffjax.experiment.rules import Key


class Kind(NamedTuple):
    """What a config trains.

    Attributes:
      name: for messages.
      keys: its keys; a diffusion model's network has further ones.
    """

    name: str
    keys: Mapping[str, Key]


# The section that tells what a config trains, which is also the module of `experiment` with its
# `resolve` and, unless it is an autoencoder, `resolve_model`.
KINDS: Mapping[str, Kind] = {
    "autoencoder": Kind("an autoencoder", AUTOENCODER),
    "pixelcnn": Kind("a PixelCNN", PIXELCNN),
    "gan": Kind("a GAN", GAN),
    "cascade": Kind("a cascade", CASCADE),
    "diffusion": Kind("a diffusion model", DIFFUSION),
}

# Keys of older versions -> their current names.
RENAMED: Mapping[str, str] = {
    "diffusion.label_dropout": "diffusion.condition_dropout",
}
# Current key -> {value of older versions: current value}.
_OLD_VALUES: Mapping[str, Mapping[Any, Any]] = {
    "model.remat": {True: "full", False: "none"},
}
USER = "user."


def section(config: Any) -> str:
    """The key of KINDS of what a config trains, or is of."""
    return next((name for name in KINDS if name in config), "diffusion")


def kind(config: Any) -> str:
    """What a config trains, or is of, for messages."""
    return KINDS[section(config)].name


def is_autoencoder(config: Any) -> bool:
    """Whether a config trains a first stage, rather than a diffusion model."""
    return section(config) == "autoencoder"


def is_cascade(config: Any) -> bool:
    """Whether a config is of a cascade of trained models, rather than of one to train."""
    return section(config) == "cascade"


def is_diffusion(config: Any) -> bool:
    """Whether a config trains a diffusion model."""
    return section(config) == "diffusion"


def keys_of(config: Any) -> dict[str, Key]:
    """The keys of a config in order, with its network's fields.

    The fields of a user-defined network are not included.
    """
    if not is_diffusion(config):
        return dict(KINDS[section(config)].keys)
    name = _network_name(config)
    fields = NETWORK_FIELDS.get(name.partition("(")[0].strip(), {})
    keys: dict[str, Key] = {}
    for key, entry in DIFFUSION.items():
        keys[key] = entry
        if key in ("model.class_conditional", "sample.checkpoint"):  # the last of their sections
            prefix = key[: key.index(".") + 1]
            keys |= {k: field for k, field in fields.items() if k.startswith(prefix)}
    return keys


def complete(config: Any) -> Any:
    """A copy of a config with old keys renamed and missing ones at their defaults, unlocked.

    Args:
      config: an ml_collections ConfigDict.

    Raises:
      UserError: another object, or a value in place of a section.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config is {arguments.shown(config)}: expected an ml_collections ConfigDict, as "
            "get_config() of an experiment returns it"
        )
    done = config.copy_and_resolve_references()
    done.unlock()
    _rename(done)
    for key, entry in keys_of(done).items():
        *sections, name = key.split(".")
        section = done
        for part in sections:
            if part not in section:
                section[part] = type(done)()
            section = section[part]
            if not hasattr(section, "items"):
                raise UserError(
                    f"config.{key.rpartition('.')[0]} = {section!r}: expected a section"
                )
        if entry.rule.kind is object:  # values of several types
            value = section.get(name, entry.default)
            if name in section:
                del section[name]
            section[name] = any_type(value)
        elif name not in section:
            section[name] = entry.default
    return done


def any_type(value: Any) -> Any:
    """A field of a ConfigDict that values of any type may be assigned to."""
    return FieldReference(value, field_type=object)


def _rename(config: Any) -> None:
    for old, new in RENAMED.items():
        *sections, name = old.split(".")
        section = config
        for part in sections:
            section = section.get(part, {}) if hasattr(section, "items") else {}
        if hasattr(section, "items") and name in section:
            *others, new_name = new.split(".")
            target = config
            for part in others:
                target = target[part]
            if new_name in target:
                raise UserError(f"config.{old} is now config.{new}, which is also set: remove one")
            target[new_name] = section[name]
            del section[name]
    if _has_own_network(config):  # its fields may have these names
        return
    for key, values in _OLD_VALUES.items():
        section_name, name = key.split(".")
        section = config.get(section_name, {})
        if hasattr(section, "items") and isinstance(section.get(name), bool):
            value = values[section[name]]
            del section[name]
            section[name] = value


def check(config: Any) -> None:
    """Checks that every key is known and every value has its type and bounds.

    Args:
      config: a complete config.

    Raises:
      UserError: the first unknown or missing key, or invalid value.
    """
    found = flatten(config)
    keys = keys_of(config)
    own_network = _has_own_network(config)
    for key in found:
        free = key.startswith(USER) or (own_network and key.startswith("model."))
        if key not in keys and not free:
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
            raise UserError(
                f"config.{key} is not a key of diffjax's configs: "
                + (f"expected config.{near[0]}, or " if near else "")
                + "remove it; put your own keys into config.user"
            )
    for key, (rule, _, _) in keys.items():
        if key not in found:
            raise UserError(f"config.{key} is missing: expected {rule.expected}")
        value = found[key]
        wrong_kind = not isinstance(value, rule.kind) or (
            isinstance(value, bool) and rule.kind is not bool
        )
        # A comparison with NaN is false, so a rule with bounds refuses it.
        if wrong_kind or not rule.holds(value) or value != value:
            raise UserError(f"config.{key} = {value!r}: expected {rule.expected}")


def _has_own_network(config: Any) -> bool:
    return is_diffusion(config) and ":" in _network_name(config)


def _network_name(config: Any) -> str:
    """`model.name` or its default; "" if it is not a string."""
    model = config.get("model", {})
    name = model.get("name", "unet") if hasattr(model, "items") else ""
    return name if isinstance(name, str) else ""
