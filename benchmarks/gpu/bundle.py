"""Collects what the benchmark needs on a machine without a network: make gpu-bundle

    bundle/wheels/           packages that jax, flax, optax, orbax, torch and numpy do not bring
    bundle/fashion_mnist.tar.xz    the four files of Fashion-MNIST (MIT licence)
    bundle/emoji.tar.xz      the emoji of examples/emoji, with CREDITS.txt (CC BY 4.0, Apache-2.0)

An archive that exists is kept; the wheels are downloaded again. bundle/cifar10_jpeg.tar.xz, if you
add it, is what the part "training" trains experiments/cifar10.py on.
"""

import argparse
import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from benchmarks import cases
from diffjax.data import fashion_mnist
from diffjax.errors import UserError

LIMIT_MB = 60.0
PYTHON = "3.12"
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)),
    "manylinux2014_x86_64", "manylinux1_x86_64",
)  # fmt: skip
# What the machine has.
PRESENT = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
# Of the tests for a GPU.
TESTS = ("beartype", "hypothesis", "pytest", "pytest-xdist")
# Source distributions, of which wheels are made here.
SOURCES = ("promise",)
# Imported for what the benchmark does not do: Parquet files, a hub, fonts in PDF files.
NOT_NEEDED = (
    "pyarrow", "huggingface-hub", "hf-xet", "httpx2", "httpcore2", "truststore", "anyio", "h11",
    "fonttools", "tzdata",
)  # fmt: skip


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu.bundle", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=cases.ROOT / "bundle")
    parser.add_argument("--python", default=PYTHON, help=f"of the machine (default: {PYTHON})")
    parser.add_argument(
        "--present", nargs="*", default=[], help="more packages that the machine has"
    )
    parser.add_argument("--emoji", type=Path, default=cases.ROOT / "data" / "emoji")
    options = parser.parse_args()
    try:
        collect(options.out, python=options.python, present=options.present, emoji=options.emoji)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def collect(folder: Path, *, python: str, present: Sequence[str], emoji: Path) -> None:
    """Fills the folder, and says how large it is.

    Raises:
      UserError: Fashion-MNIST is not installed, pip fails, or the bundle is over LIMIT_MB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _wheels(folder / "wheels", python=python, present=present)
    if not (folder / "fashion_mnist.tar.xz").exists():
        _fashion_mnist(folder / "fashion_mnist.tar.xz")
    if (folder / "emoji.tar.xz").exists():
        pass
    elif (emoji / "build.json").exists():
        _emoji(emoji, folder / "emoji.tar.xz")
    else:
        print(f"no emoji in {emoji}: python examples/emoji/fetch.py makes them")
    own = ("wheels", "fashion_mnist.tar.xz", "emoji.tar.xz")
    sizes = {name: _megabytes(folder / name) for name in own}
    print("\n".join(f"{folder / name}: {size:.1f} MB" for name, size in sizes.items()))
    if sum(sizes.values()) > LIMIT_MB:
        raise UserError(
            f"{folder} has {sum(sizes.values()):.0f} MB, over {LIMIT_MB:.0f}: pass --present with "
            "more packages that the machine has, such as matplotlib, pillow and scikit-learn"
        )


def _wheels(folder: Path, *, python: str, present: Sequence[str]) -> None:
    """Wheels of diffjax's requirements and its tests', without what is on the machine."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        aside = Path(name)
        _pip("wheel", "--no-deps", "--wheel-dir", str(aside), *SOURCES)
        target = [
            "--python-version", python, "--implementation", "cp", "--only-binary=:all:",
            *(f"--platform={platform}" for platform in PLATFORMS), f"--find-links={aside}",
        ]  # fmt: skip
        requirements = ["--requirement", str(cases.ROOT / "requirements.txt"), *TESTS]
        there = _resolved(target, [*PRESENT, *present])
        needed = _resolved(target, requirements)
        wanted = [
            f"{package}=={version}" for package, version in needed.items()
            if package not in there and package not in NOT_NEEDED
        ]  # fmt: skip
        _pip("download", "--no-deps", *target, f"--dest={aside}", *wanted)
        aside.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
        aside.mkdir()  # which the context removes


def _resolved(target: Sequence[str], requirements: Sequence[str]) -> dict[str, str]:
    """Package -> version of all that some requirements bring."""
    text = _pip(
        "install", "--dry-run", "--ignore-installed", "--report=-", "--target=unused", *target,
        *requirements,
    )  # fmt: skip
    found = json.loads(text)["install"]
    return {
        one["metadata"]["name"].lower().replace("_", "-"): one["metadata"]["version"]
        for one in found
    }


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise UserError(f"pip {arguments[0]} failed: {(lines or ['no output'])[0]}")
    return done.stdout


def _fashion_mnist(path: Path) -> None:
    """The four files without gzip, in an archive that is smaller than theirs."""
    found = fashion_mnist.find_idx(fashion_mnist.DEBIAN_DIR)
    if len(found) < len(fashion_mnist.CHECKSUMS):
        raise UserError("Fashion-MNIST is missing: apt-get install dataset-fashion-mnist")

    def files() -> Iterator[tuple[str, bytes]]:
        for name, source in found.items():
            data = source.read_bytes()
            yield name, gzip.decompress(data) if source.suffix == ".gz" else data

    _pack(path, files(), mode="w:xz")


def _emoji(folder: Path, path: Path) -> None:
    """The set with WebP of quality 90 for PNG, a third of the size."""

    def files() -> Iterator[tuple[str, bytes]]:
        for file in sorted(folder.rglob("*")):
            name = str(file.relative_to(folder))
            if file.suffix == ".png":
                buffer = io.BytesIO()
                with Image.open(file) as image:
                    image.convert("RGB").save(buffer, "webp", quality=90)
                yield str(Path(name).with_suffix(".webp")), buffer.getvalue()
            elif file.name == "metadata.jsonl":
                yield name, file.read_bytes().replace(b".png", b".webp")
            elif file.is_file():
                yield name, file.read_bytes()

    _pack(path, files(), mode="w:xz")


def _pack(path: Path, files: Iterator[tuple[str, bytes]], *, mode: str) -> None:
    aside = path.with_suffix(".incomplete")
    with tarfile.open(str(aside), mode) as packed:  # type: ignore[call-overload]
        for name, data in files:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            packed.addfile(about, io.BytesIO(data))
    aside.rename(path)


def _megabytes(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
