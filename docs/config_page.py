"""reference/config.md: every key of a config, from the schema."""

import importlib
from collections.abc import Iterator, Mapping

from diffjax.experiment import explain, schema
from diffjax.experiment.backbone_keys import NETWORK_FIELDS
from diffjax.experiment.rules import Key

INTRODUCTION = """# Config keys

A config file states what differs from the defaults; on the command line `--config.KEY=VALUE`
overrides it. `--mode=config` prints every key of a config and marks those that differ, and
`--help=KEY` prints what is below. Where a value is a name, it may have arguments, as in
`"classifier_free(scale=2.0)"`; where a path is allowed, `"module:Name(argument=value)"` is your own
code, in the config file's folder or on `sys.path`.

What a config trains is known by its sections: `autoencoder`, `pixelcnn`, `gan` or `cascade`, else
it is a diffusion model. The section `user` is free for your own keys.
"""


def page() -> str:
    """The whole page."""
    diffusion = dict(schema.KINDS["diffusion"].keys)
    lines = [INTRODUCTION, "## A diffusion model", ""]
    for section, keys in _sections(diffusion).items():
        lines += [f"### {section}", "", *_entries(keys, anchor="config"), ""]
        if section == "model":
            for network, fields in NETWORK_FIELDS.items():
                lines += [f"#### model, of the network {network}", ""]
                lines += [*_entries(fields, anchor=network), ""]
    for name, kind in schema.KINDS.items():
        if name == "diffusion":
            continue
        own = {key: entry for key, entry in kind.keys.items() if diffusion.get(key) != entry}
        shared = [key for key in kind.keys if key not in own]
        lines += [f"## {kind.name[0].upper()}{kind.name[1:]}", "", *_entries(own, anchor=name), ""]
        links = (f"[`{key}`](#{_anchor('config', key)})" for key in shared)
        lines += ["As for a diffusion model: " + ", ".join(links) + ".", ""]
    return "\n".join(lines)


def _sections(keys: Mapping[str, Key]) -> dict[str, dict[str, Key]]:
    found: dict[str, dict[str, Key]] = {}
    for key, entry in keys.items():
        found.setdefault(key.partition(".")[0], {})[key] = entry
    return found


def _entries(keys: Mapping[str, Key], *, anchor: str) -> Iterator[str]:
    """A definition list: each key with its default, its meaning and what it may be."""
    for key, (rule, default, meaning) in keys.items():
        yield f"`{key}`{{#{_anchor(anchor, key)}}} = `{default!r}`"
        yield f": {_plain(meaning)}"
        yield ""
        yield f"  Expected: {_plain(rule.expected)}."
        yield ""
        if key in explain.TABLES:
            module, table = explain.TABLES[key].split(":")
            names = getattr(importlib.import_module(f"diffjax.experiment.{module}"), table)
            written = (f"`{explain._called(name, maker)}`" for name, maker in names.items())
            yield f"  Names: {', '.join(written)}."
            yield ""
        if key in explain.DOORS:
            yield f"  A path is to {_plain(explain.DOORS[key])}."
            yield ""


def _anchor(of: str, key: str) -> str:
    return f"{of}-{key}".replace(".", "-").replace("_", "-")


def _plain(text: str) -> str:
    """Text in which Markdown finds no markup."""
    for mark in "\\*_<>[]{}|$":
        text = text.replace(mark, f"\\{mark}")
    return text
