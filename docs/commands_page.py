"""reference/commands.md: every command and flag, from what parses them."""

import argparse
import ast
import contextlib
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from absl import flags as absl_flags

from diffjax import flags
from diffjax.commands import FORMATS, MODES, MODES_OF, ONE_PROCESS, TO_OUT
from diffjax.experiment.schema import KINDS

ROOT = Path(__file__).resolve().parents[1]
# Where modules that are commands are looked for.
FOLDERS = ("diffjax", "benchmarks", "examples")
# Run by other commands, each in a process of its own.
INTERNAL = {
    "benchmarks.gpu.part",
    "benchmarks.probes",
    "benchmarks.stable_diffusion.sides",
    "benchmarks.worker",
}


def page() -> str:
    """The whole page."""
    return "\n".join([*_main(), *_modules(), *_makefile()])


def _main() -> Iterator[str]:
    yield "# Commands\n"
    yield "## python -m diffjax.main\n"
    yield "```"
    yield "python -m diffjax.main --config=FILE[:VARIANT] [--config.KEY=VALUE ...] [--mode=MODE]"
    yield "```\n"
    yield "| `--mode=` | does | of |\n| --- | --- | --- |"
    for mode, meaning in MODES.items():
        of = [k.name for k in KINDS.values() if mode in MODES_OF.get(k.name, ([mode],))[0]]
        kinds = "every kind of model" if len(of) == len(KINDS) else ", ".join(of)
        yield f"| `{mode}` | {_cell(meaning)} | {kinds} |"
    yield f"\n{_names(TO_OUT)} write to `--out` where it is given; {_names(ONE_PROCESS)} run in one"
    yield "process. The exit code is 0; 2 after one line that says what is wrong with the input; or"
    yield "128 + the signal that ended a training, which was saved.\n"
    yield "### Flags\n"
    yield "| flag | default | is |\n| --- | --- | --- |"
    yield "| `--config` | | Config file; `file.py:variant` for a variant; or a run's workdir. |"
    yield "| `--config.KEY` | | Overrides a value; see [config keys](config.md). |"
    yield "| `--help` | | Prints the flags; `--help=KEY` explains a config key. |"
    yield "| `--version` | | Prints the versions of diffjax, JAX and Python. |"
    values = absl_flags.FlagValues()
    flags._define_others(values)
    for name in sorted(values):
        flag = values[name]
        default = "" if flag.default in (None, "", -1) else f"`{flag.default}`"
        choices = getattr(flag.parser, "enum_values", None)
        among = f" One of {_names([c for c in choices if c])}." if choices else ""
        help_text = re.sub(r"^<.*?>: ", "", flag.help)
        yield f"| `--{name}` | {default} | {_cell(help_text)}{among} |"
    yield "\n### Formats of --mode=export\n"
    yield "| `--format=` | writes |\n| --- | --- |"
    for name, meaning in FORMATS.items():
        yield f"| `{name}` | {_cell(meaning)} |"
    yield ""


def _modules() -> Iterator[str]:
    folder = ""
    for name in modules():
        parser = parser_of(name)
        if name.split(".")[0] != folder:
            folder = name.split(".")[0]
            yield f"## Other commands: {folder}\n"
        yield f"### {_command(name)}\n"
        if parser is None:
            about = inspect.getdoc(importlib.import_module(_importable(name))) or ""
            yield f"{_sentences(about)}\n"
            continue
        yield f"{_sentences(parser.description or _about(name))}\n"
        yield "| argument | default | is |\n| --- | --- | --- |"
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            yield _row(action)
        yield ""


def _row(action: argparse.Action) -> str:
    name = ", ".join(f"`{o}`" for o in action.option_strings) or f"`{action.dest}`"
    if action.required and action.option_strings:
        default = "required"
    elif action.default in (None, False, [], argparse.SUPPRESS):
        default = ""
    else:
        value = action.default
        if isinstance(value, Path) and value.is_relative_to(ROOT):
            value = value.relative_to(ROOT)
        many = isinstance(value, list | tuple)
        default = f"`{' '.join(map(str, value)) if many else value}`"
    text = _cell((action.help or "") % {"default": action.default} if action.help else "")
    choices = f"one of {_names(list(action.choices))}" if action.choices else ""
    return f"| {name} | {default} | {'; '.join(filter(None, (text, choices)))} |"


def modules() -> list[str]:
    """Modules that are commands of their own: packages with __main__, and files with a parser."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            if '__name__ == "__main__"' not in source or path.name == "main.py":
                continue
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            documented = "ArgumentParser(" in source or f"python -m {name}" in source
            if name not in INTERNAL and (path.name == "__main__.py" or documented):
                found.append(name)
    return found


def parser_of(name: str) -> argparse.ArgumentParser | None:
    """A command's parser, without running the command; None where it takes no arguments."""

    class Found(Exception):
        pass

    def stop(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise Found(self)

    source = ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    if "ArgumentParser(" not in source:
        return None
    module = importlib.import_module(_importable(name))
    function = next(
        getattr(module, node.name)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and "ArgumentParser(" in ast.unparse(node)
    )
    takes = len(inspect.signature(function).parameters)
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop),
        contextlib.suppress(SystemExit),
    ):
        try:
            made = function([]) if takes else function()
        except Found as found:
            return found.args[0]
    return made if isinstance(made, argparse.ArgumentParser) else None


def _importable(name: str) -> str:
    """Examples are run as scripts in their folder, and found as such."""
    if name.startswith("examples."):
        for folder in (ROOT / "examples", ROOT.joinpath(*name.split(".")[:-1])):
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
        return name.rpartition(".")[2]
    return name


def _command(name: str) -> str:
    if name.startswith("examples."):
        return f"python {name.replace('.', '/')}.py"
    return f"python -m {name.removesuffix('.__main__')}"


def _about(name: str) -> str:
    return inspect.getdoc(importlib.import_module(_importable(name))) or ""


def _sentences(text: str) -> str:
    """A description: its prose in paragraphs, its indented commands as code."""
    parts = []
    for part in re.split(r"\n\s*\n", text):
        if part.startswith("    ") or re.match(r"python -m [\w.]+ [^:]*$", part):
            parts.append(f"```\n{textwrap.dedent(part)}\n```")
        else:
            parts.append(_cell(part))
    return "\n\n".join(parts)


def _makefile() -> Iterator[str]:
    yield "## make\n"
    yield "| target | does |\n| --- | --- |"
    for line in (ROOT / "Makefile").read_text().splitlines():
        match = re.match(r"# make ([\w-]+)\s+(.*)", line)
        if not match:
            break
        yield f"| `make {match[1]}` | {_cell(match[2])} |"
    yield ""


def _names(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _cell(text: str) -> str:
    """Text on one line in which Markdown finds no markup but code."""
    text = " ".join(text.split())
    return "".join(
        part if i % 2 else re.sub(r"([\\*_<>\[\]{}|$])", r"\\\1", part)
        for i, part in enumerate(re.split(r"(`[^`]*`)", text))
    )
