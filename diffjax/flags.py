"""Command-line flags, and the config file with its overrides as one complete config.

The file's folder is added to sys.path, so that a config can import modules next to it.
ml_collections applies `--config.key=value` to the completed config; the overrides are checked here
first, for one-line error messages. In place of a file, --config takes the folder of a run.
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

from diffjax.commands import FORMATS, MODES
from diffjax.distributed.processes import CLUSTERS, SINGLE_PROCESS, ProcessAddress
from diffjax.errors import UserError
from diffjax.experiment.run import stored_config
from diffjax.experiment.schema import complete
from diffjax.experiment.spec import add_to_path
from diffjax.files import expanded

EXAMPLE = "--config=experiments/fashion_mnist.py"


class CommandLine(NamedTuple):
    """The parsed arguments; `config` is a locked ml_collections ConfigDict."""

    config: Any
    workdir: Path
    mode: str
    profile: bool = False
    out: Path | None = None
    format: str | None = None


def parse(arguments: Sequence[str]) -> CommandLine:
    """Reads the flags that follow the program's name.

    The workdir is runs/<name> by default, where the name is the config file's, with -variant for
    file.py:variant; with --config=<folder of a run>, which has the run's config, it is that folder.
    No flag is defined outside this call.

    Raises:
      UserError: no config or an unreadable one, an unknown flag or key, a value of the wrong type.
    """
    flag = _config_flag(arguments)
    path, _, variant = flag.partition(":")
    run = expanded(flag) if os.path.isdir(expanded(flag)) else None
    loaded = _load(expanded(path), variant) if run is None else _of_run(run)
    config = _completed(loaded, arguments)
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
    default = run or Path("runs") / name
    if values.workdir == "":  # most likely an unset shell variable
        raise UserError(f"--workdir= is empty: give a folder, or omit it for {default}")
    for flag, folder in (("workdir", values.workdir), ("out", values.out)):
        if "\0" in (folder or ""):
            raise UserError(f"--{flag}={folder}: no path has a null character: give another name")
    workdir = expanded(values.workdir) if values.workdir else default
    if values.out == "":
        raise UserError("--out= is empty: give a new folder")
    out = expanded(values.out) if values.out else None
    return CommandLine(values.config, workdir, values.mode, values.profile, out, values.format)


def place(arguments: Sequence[str]) -> ProcessAddress:
    """This process's place in a multi-process run; `parse` reports invalid flags."""
    values = flags.FlagValues()
    _define_others(values)
    try:
        values(["diffjax", *arguments], known_only=True)
    except (flags.Error, ValueError):
        return SINGLE_PROCESS
    return ProcessAddress(values.cluster, values.coordinator, values.processes, values.process)


def help_wanted(arguments: Sequence[str]) -> str | None:
    """The key of --help=key, "" for --help alone, None without --help."""
    for argument in arguments:
        name, _, key = argument.partition("=")
        if name in ("--help", "-h", "-help"):
            return key.strip().removeprefix("--").removeprefix("config.")
    return None


def help_text(about: str) -> str:
    """The program's description, its flags and its modes."""
    values = flags.FlagValues()
    _define_others(values)
    modes, formats = (
        "".join(f"    {name:<9} {meaning}\n" for name, meaning in table.items())
        for table in (MODES, FORMATS)
    )
    return (
        f"{about}\n"
        "  --config: Config file; file.py:variant for a variant; or the workdir of a run.\n"
        "  --config.key.name=value: Overrides a config value.\n"
        "  --help=key.name: Explains a config key.\n"
        "  --version: Prints the versions of diffjax, JAX and Python.\n"
        f"{values.get_help(prefix='').strip(chr(10))}\n"
        f"  Modes:\n{modes}  Formats:\n{formats}"
    ).rstrip("\n")


def explain(key: str) -> str:
    """A config key's meaning and allowed values.

    Raises:
      UserError: no such key.
    """
    from diffjax.experiment import explain as explanations

    return explanations.explain(key)


def _define_others(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir", None, "Run directory; runs/<config name> by default.", flag_values=values
    )
    flags.DEFINE_enum("mode", "train", list(MODES), "Command to run.", flag_values=values)
    flags.DEFINE_string(
        "out", None,
        "Folder that --mode=export writes, or of the results of sample, edit, evaluate and report; "
        "the workdir by default.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "format", None, list(FORMATS), "What --mode=export writes.", flag_values=values
    )
    flags.DEFINE_bool(
        "profile", False, "Write a trace of a few training steps to <workdir>/profile.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "cluster", "", ["", *CLUSTERS], "Cluster environment for jax.distributed.initialize.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "coordinator", "", "host:port of process 0, if --cluster is not set.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("processes", 0, "Number of processes.", flag_values=values)
    flags.DEFINE_integer("process", -1, "Index of this process, from 0.", flag_values=values)
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
        raise UserError(f"no config file was given: use for example {EXAMPLE}")
    if len(set(found)) > 1:
        raise UserError(f"--config={found[0]} and --config={found[1]}: expected one config file")
    return found[0]


def _without_config_flag(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--config=file` and `--config file`."""
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

    If the command line sets another config.model.name than the file, the file's fields of
    config.model are dropped: they belong to the file's network.
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


def _of_run(folder: Path) -> Any:
    config = stored_config(folder)
    if config is None:
        raise UserError(
            f"--config={folder} is a folder without a run: give a config file, for example "
            f"{EXAMPLE}, or the workdir of a run"
        )
    return config


def _load(path: Path, variant: str) -> Any:
    if not os.path.isfile(path):  # also False for an invalid path
        raise UserError(f"--config={path}: there is no such file: use for example {EXAMPLE}")
    add_to_path(str(path.resolve().parent))
    try:
        # Output of the config file is discarded.
        with contextlib.redirect_stdout(io.StringIO()):
            get_config = runpy.run_path(str(path)).get("get_config")
            if get_config is None:
                raise UserError(f"--config={path}: expected a Python file with get_config()")
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
        value = section = config
        for part in name.split(".")[1:]:
            known = list(value) if hasattr(value, "keys") else []
            if part not in known:
                near = difflib.get_close_matches(part, known, n=1) or known
                raise UserError(
                    f"--{name}: unknown key {part!r}"
                    + (f": expected {' or '.join(near)}" if near else "")
                    + _own_field(name, config)
                )
            section, value = value, value[part]
        if hasattr(value, "keys"):
            raise UserError(f"--{name} is a section: set one of its keys, {', '.join(value)}")
        if negated:
            if not isinstance(value, bool):
                raise UserError(f"--no{name}: {name} is not a boolean: write --{name}=value")
            continue
        if not equals and not isinstance(value, bool):
            text = "".join(arguments[i + 1 : i + 2])
        if section.get_type(part) is not object:  # the schema knows what it may be
            _check_kind(name, text, value)


def _own_field(name: str, config: Any) -> str:
    """A hint on where to set a field of a custom network."""
    network = config.get("model", {}).get("name", "unet")
    if not name.startswith("config.model.") or ":" not in str(network):
        return ""
    return (
        "; set the fields of a custom network in the config file, or in parentheses: "
        f"--config.model.name='{str(network).partition('(')[0]}({name.rpartition('.')[2]}=...)'"
    )


def _check_kind(name: str, text: str, default: Any) -> None:
    kinds: dict[type, tuple[Any, str]] = {
        int: (int, "a whole number"),
        float: (float, "a number"),
    }
    if type(default) is tuple and text.lstrip().startswith("{"):
        # ml_collections would convert a dictionary's keys, or a set in any order.
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
