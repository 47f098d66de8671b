"""The command line: python -m diffjax.main --config=experiments/fashion_mnist.py

One config file says what is trained, `--config.key.name=value` changes a value, `--workdir` says
where the run lives and `--mode` what to do: train (and go on where the last run stopped), sample,
evaluate. Errors that the user can mend are one line and exit code 2.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags

from diffjax.errors import UserError

MODES = ("train", "sample", "evaluate")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the mode, and returns the exit code.

    0: done; 2: bad input; 128 + signal: stopped by Ctrl-C or SIGTERM after saving.
    """
    arguments = list(sys.argv if argv is None else argv)
    try:
        values, name = parse(arguments)
        run(values.config, Path(values.workdir or Path("runs") / name), values.mode)
    except UserError as error:
        if "--debug" in arguments:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ != "Stopped":
            raise
        print(f"{error}: run the same command again to go on", file=sys.stderr)
        return 128 + error.signal  # type: ignore[attr-defined]
    return 0


def parse(arguments: list[str]) -> tuple[Any, str]:
    """The flags, and the config's name: its file's, with -variant for file.py:variant.

    Raises:
      UserError: no config, a config that can't be read, an unknown key, a value of another type.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "Config file, with :variant at will.",
        flag_values=values, sys_argv=arguments,
    )  # fmt: skip
    flags.DEFINE_string(
        "workdir", None, "Where the run lives; runs/<config name> by default.", flag_values=values
    )
    flags.DEFINE_enum("mode", "train", MODES, "What to do.", flag_values=values)
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show the flags.", short_name="h", flag_values=values)
    if {"--help", "-h", "-help"} & set(arguments):
        print(__doc__)
        print(values.get_help())
        raise SystemExit(0)
    try:
        rest = values(arguments)[1:]
    except Exception as error:
        # ml_collections hands on whatever the config file or a value's parser raised.
        raise UserError(f"command line: {_one_line(error)}") from error
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag: write --name=value")
    if values.config is None:
        raise UserError("no config: write --config=experiments/fashion_mnist.py, for example")
    path, _, variant = _config_flag(arguments).partition(":")
    return values, f"{Path(path).stem}-{variant}" if variant else Path(path).stem


def _config_flag(arguments: list[str]) -> str:
    for i, argument in enumerate(arguments):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config" and argument.startswith("-"):
            return value if equals else arguments[i + 1]
    raise UserError("no config: write --config=experiments/fashion_mnist.py, for example")


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())


def use_compilation_cache() -> None:
    """Keeps what XLA compiled in the user's cache folder, unless JAX was told of another place."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/diffjax, or ~/.cache/diffjax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffjax"


def run(config: Any, workdir: Path, mode: str) -> None:
    """Does what `mode` says with a config, as the command line and notebooks call it.

    Args:
      config: an ml_collections ConfigDict, as experiments/*.py make them.
      workdir: where the run lives.
      mode: "train", "sample" or "evaluate".

    Raises:
      UserError: bad input.
      training.loop.Stopped: a signal asked the run to stop; it is saved.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("diffjax").setLevel(logging.INFO)
    use_compilation_cache()
    from diffjax.training import loop
    from diffjax.training.config import check

    check(config)
    setup = loop.experiment(config)
    modes = {"train": loop.train, "sample": _sample, "evaluate": _evaluate}
    if mode not in modes:
        raise UserError(f"--mode={mode}: expected one of {', '.join(modes)}")
    modes[mode](setup, workdir)


def _sample(setup: Any, workdir: Path) -> None:
    from diffjax.training import loop, pictures

    step, params = loop.restore_params(setup, workdir)
    for path in pictures.generated(setup, params, workdir, step=step):
        print(f"wrote {path}")


def _evaluate(setup: Any, workdir: Path) -> None:
    import json

    from diffjax.evaluation import evaluate
    from diffjax.figures import atomic_write
    from diffjax.training import loop

    step, params = loop.restore_params(setup, workdir)
    config = setup.config
    report = evaluate(
        lambda start, count: setup.generator(params, start=start, count=count).images,
        data=config.data.name,
        data_dir=config.data.dir or None,
        image_size=config.data.image_size or None,
        channels=config.data.channels or None,
        cache_dir=cache_folder() / "evaluation",
        num_samples=config.evaluate.num_samples,
        batch_size=config.sample.batch_size,
    )
    report = {"step": step, "sample": config.sample.to_dict(), **report}
    text = json.dumps(report, indent=2) + "\n"
    atomic_write(workdir / "evaluation.json", lambda file: file.write(text.encode()))
    print(text, end="")


def _exit() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    _exit()
