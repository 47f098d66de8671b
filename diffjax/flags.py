"""The command line's flags, and a config file with its overrides, as one complete object.

The file's folder is added to sys.path, so that a config finds what is beside it. ml_collections
applies `--config.key=value` to the file's config with its defaults; what is done here beforehand is
to find out, in words for the user, why it would not.
"""

import contextlib
import difflib
import inspect
import io
import os
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from diffjax.commands import MODES
from diffjax.distributed.processes import CLUSTERS, SINGLE_PROCESS, ProcessAddress
from diffjax.errors import UserError
from diffjax.experiment.schema import complete
from diffjax.experiment.spec import add_to_path

EXAMPLE = "--config=experiments/fashion_mnist.py"


class CommandLine(NamedTuple):
    """What the user asked for; `config` is a locked ml_collections ConfigDict."""

    config: Any
    workdir: Path
    mode: str
    profile: bool = False
    out: Path | None = None


def parse(arguments: Sequence[str]) -> CommandLine:
    """Reads the flags that follow the program's name.

    The workdir is runs/<name> by default, where the name is the config file's, with -variant for
    file.py:variant. No flag is defined outside this call.

    Raises:
      UserError: no config, one that can't be read, an unknown flag or key, a value of another type.
    """
    flag = _config_flag(arguments)
    path, _, variant = flag.partition(":")
    config = _completed(_load(Path(path), variant), arguments)
    _check_overrides(arguments, config)

    values = flags.FlagValues()
    argv = ["diffjax", *_without_config_flag(arguments)]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=argv, lock_config=True
        )
        _define_others(values)
        rest = values(argv)[1:]
    except (flags.Error, ValueError) as error:  # ValueError: --nodebug=1, for one
        raise UserError(_tidy(error)) from error
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag: write --name=value")
    name = f"{Path(path).stem}-{variant}" if variant else Path(path).stem
    if values.workdir == "":  # a shell's variable that was not set, most likely
        raise UserError(f"--workdir= is empty: name a folder, or leave it out for runs/{name}")
    workdir = Path(values.workdir) if values.workdir else Path("runs") / name
    if values.out == "":
        raise UserError("--out= is empty: name a new folder")
    out = Path(values.out) if values.out else None
    return CommandLine(values.config, workdir, values.mode, values.profile, out)


def place(arguments: Sequence[str]) -> ProcessAddress:
    """Where this process is among those of its run; what is wrong with a flag, `parse` says."""
    values = flags.FlagValues()
    _define_others(values)
    try:
        values(["diffjax", *arguments], known_only=True)
    except (flags.Error, ValueError):
        return SINGLE_PROCESS
    return ProcessAddress(values.cluster, values.coordinator, values.processes, values.process)


def help_wanted(arguments: Sequence[str]) -> str | None:
    """The key that help is wanted of, "" for all flags, None for no help."""
    for argument in arguments:
        name, _, key = argument.partition("=")
        if name in ("--help", "-h", "-help"):
            return key.strip().removeprefix("--").removeprefix("config.")
    return None


def help_text(about: str) -> str:
    """The flags and what they mean, after what the program is."""
    values = flags.FlagValues()
    _define_others(values)
    modes = "".join(f"    {name:<9} {meaning}\n" for name, meaning in MODES.items())
    return (
        f"{about}\n"
        "  --config: Config file; file.py:variant for a variant.\n"
        "  --config.key.name=value: Changes a value of the config.\n"
        "  --help=key.name: Explains a key of the config.\n"
        f"{values.get_help(prefix='').strip(chr(10))}\n"
        f"  The modes:\n{modes}"
    ).rstrip("\n")


def explain(key: str) -> str:
    """What a key of a config means, and what it may be.

    Raises:
      UserError: no such key.
    """
    from diffjax.experiment import explain as explanations

    return explanations.explain(key)


def _define_others(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir", None, "Where the run lives; runs/<config name> by default.", flag_values=values
    )
    flags.DEFINE_enum("mode", "train", list(MODES), "What to do.", flag_values=values)
    flags.DEFINE_string("out", None, "Where --mode=export writes.", flag_values=values)
    flags.DEFINE_bool(
        "profile", False, "Write a trace of a few training steps to <workdir>/profile.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "cluster", "", ["", *CLUSTERS], "Cluster environment for jax.distributed.initialize.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "coordinator", "", "host:port of the first process, where no cluster is named.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("processes", 0, "How many there are then.", flag_values=values)
    flags.DEFINE_integer("process", -1, "The number of this one, from 0.", flag_values=values)
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)


def _config_flag(arguments: Sequence[str]) -> str:
    found = []
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            value = value if equals else "".join(arguments[i + 1 : i + 2])
            if value:
                found.append(value)
    if not found:
        raise UserError(f"no config file was named: write {EXAMPLE}, for example")
    if len(set(found)) > 1:
        raise UserError(f"--config={found[0]} and --config={found[1]}: expected one config file")
    return found[0]


def _without_config_flag(arguments: Sequence[str]) -> list[str]:
    """The arguments but for `--config=file` and `--config file`."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("--config", "-config"):
            skip = True
        elif argument.partition("=")[0] not in ("--config", "-config"):
            kept.append(argument)
    return kept


def _completed(config: Any, arguments: Sequence[str]) -> Any:
    """The file's config with its defaults.

    Where the command line names another network than the file, the file's fields of its network
    are left out: they are not the other's.
    """
    named = [
        value if equals else "".join(arguments[i + 1 : i + 2])
        for i, (flag, equals, value) in enumerate(a.partition("=") for a in arguments)
        if flag.lstrip("-") == "config.model.name"
    ]
    model = config.get("model")
    if not named or not hasattr(model, "items"):
        return complete(config)
    before, now = (
        name.partition("(")[0].strip() for name in (model.get("name", "unet"), named[-1])
    )
    if before != now:
        config = config.copy_and_resolve_references()
        config.unlock()
        kept = {k: v for k, v in model.items() if k == "class_conditional"}
        config.model = ConfigDict({"name": now, **kept})
    return complete(config)


def _load(path: Path, variant: str) -> Any:
    if not os.path.isfile(path):  # False for a name that no file can have, too
        raise UserError(f"--config={path}: there is no such file: write {EXAMPLE}, for example")
    add_to_path(str(path.resolve().parent))
    try:
        # What a config file prints while it is read is not the program's output.
        with contextlib.redirect_stdout(io.StringIO()):
            get_config = runpy.run_path(str(path)).get("get_config")
            if get_config is None:
                raise UserError(f"--config={path}: expected a Python file that has get_config()")
            if variant and not inspect.signature(get_config).parameters:
                raise UserError(f"--config={path}:{variant}: this config has no variants")
            config = get_config(variant) if variant else get_config()
            if not isinstance(config, ConfigDict):
                raise UserError(f"--config={path}: get_config() must return a ConfigDict")
            return config
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        shown = f"{path}:{variant}" if variant else str(path)
        raise UserError(f"--config={shown}: {type(error).__name__}: {_tidy(error)}") from error


def _check_overrides(arguments: Sequence[str], config: Any) -> None:
    for i, argument in enumerate(arguments):
        name, equals, text = argument.lstrip("-").partition("=")
        negated = name.startswith("noconfig.")  # absl's --noname for --name=False
        name = name.removeprefix("no") if negated else name
        if not argument.startswith("-") or not name.startswith("config."):
            continue
        value = config
        for part in name.split(".")[1:]:
            known = list(value) if hasattr(value, "keys") else []
            if part not in known:
                near = difflib.get_close_matches(part, known, n=1) or known
                raise UserError(
                    f"--{name}: the config has no {part!r} there"
                    + (f": expected {' or '.join(near)}" if near else "")
                    + _own_field(name, config)
                )
            value = value[part]
        if hasattr(value, "keys"):
            raise UserError(f"--{name} is a section: set one of its keys, {', '.join(value)}")
        if negated:
            if not isinstance(value, bool):
                raise UserError(f"--no{name}: {name} is not True or False: write --{name}=value")
            continue
        if not equals and not isinstance(value, bool):
            text = "".join(arguments[i + 1 : i + 2])
        _check_kind(name, text, value)


def _own_field(name: str, config: Any) -> str:
    """Where a field of the user's own network belongs."""
    network = config.get("model", {}).get("name", "unet")
    if not name.startswith("config.model.") or ":" not in str(network):
        return ""
    return (
        "; a network of your own takes its fields from the config file, or in parentheses: "
        f"--config.model.name='{str(network).partition('(')[0]}({name.rpartition('.')[2]}=...)'"
    )


def _check_kind(name: str, text: str, default: Any) -> None:
    kinds: dict[type, tuple[Any, str]] = {
        int: (int, "a whole number"),
        float: (float, "a number"),
    }
    if type(default) is tuple and text.lstrip().startswith("{"):
        # ml_collections would take a dictionary's keys, or a set in any order.
        raise UserError(f"--{name}={text}: expected values in parentheses, such as {default!r}")
    if type(default) not in kinds:
        return
    convert, expected = kinds[type(default)]
    try:
        convert(text)
    except ValueError:
        raise UserError(f"--{name}={text}: expected {expected}, such as {default!r}") from None


def _tidy(error: BaseException) -> str:
    """The error's text on one line."""
    return " ".join(str(error).split())
