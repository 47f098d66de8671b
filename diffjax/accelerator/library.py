"""Builds the native library for this machine, locates it, and registers it with XLA."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path

import jax
import jaxlib

from diffjax.errors import UserError
from diffjax.files import cache_folder

BUILD = "python -m diffjax.accelerator"
EXTRA = 'pip install "diffjax[cpu]"'
TARGETS = (
    "convolution_forward",
    "convolution_input_gradient",
    "convolution_kernel_gradient",
    "group_norm_forward",
    "group_norm_backward",
    "attention_forward",
    "attention_backward",
    "rms_norm_forward",
    "rms_norm_backward",
    "swiglu_forward",
    "swiglu_backward",
)
# Not -ffast-math, which may hide NaNs of a diverged run.
FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
)


def _onednn() -> tuple[Path, Path, str]:
    """(include folder, path of libdnnl.so.3, version) of the PyPI packages."""
    try:
        headers = metadata.distribution("onednn-devel-cpu-gomp")
        library = metadata.distribution("onednn-cpu-gomp")
    except metadata.PackageNotFoundError:
        raise UserError(f"oneDNN is not installed: {EXTRA}") from None
    header = _installed(headers, "oneapi/dnnl/dnnl.hpp")
    return header.parents[2], _installed(library, "lib/libdnnl.so.3"), library.version


def _installed(package: metadata.Distribution, name: str) -> Path:
    for file in package.files or ():
        path = Path(os.path.normpath(file.locate()))
        if str(path).endswith(name) and path.exists():
            return path
    raise UserError(f"{package.name} has no {name}: reinstall it, {EXTRA}")


def _sources() -> list[tuple[str, bytes]]:
    folder = resources.files("diffjax.accelerator") / "native"
    return sorted((file.name, file.read_bytes()) for file in folder.iterdir())


def _processor() -> str:
    """The processor's model and flags, which -march=native depends on (caches may be shared)."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = dict(line.split(":", 1) for line in file if line.count(":") >= 1)
    except OSError:
        return platform.processor()
    return "".join(lines.get(key, "") for key in lines if key.strip() in ("model name", "flags"))


def location() -> Path:
    """The library's path for these sources, versions and this processor; it may not exist yet.

    Raises:
      UserError: not x86-64 Linux, or oneDNN is not installed.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise UserError(
            f"the accelerator needs Linux on x86-64, not {platform.system()} on "
            f"{platform.machine()}"
        )
    digest = hashlib.sha256()
    for name, text in _sources():
        digest.update(name.encode() + b"\0" + text + b"\0")
    digest.update(repr((FLAGS, jaxlib.__version__, _onednn(), _processor())).encode())
    return cache_folder() / "accelerator" / digest.hexdigest()[:16] / "libdiffjax.so"


def build() -> Path:
    """Compiles the library for this machine if it does not exist; takes about ten seconds.

    Returns:
      Its path.

    Raises:
      UserError: no compiler, no oneDNN, not x86-64 Linux, or a compilation error.
    """
    target = location()
    if target.exists():
        return target
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler or not shutil.which(compiler):
        raise UserError(
            f"no C++ compiler {os.environ.get('CXX') or '(g++ or clang++)'} was found: install one "
            "(on Debian, apt-get install g++) or set CXX"
        )
    include, onednn, _ = _onednn()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building") as folder:
            _compile(compiler, Path(folder), include, onednn)
            os.replace(Path(folder) / target.name, target)
    except OSError as error:
        raise UserError(
            f"{error.filename or target.parent}: {error.strerror}: the accelerator is built in the "
            "cache folder; set XDG_CACHE_HOME to a writable one"
        ) from error
    return target


def _compile(compiler: str, folder: Path, include: Path, onednn: Path) -> None:
    units = []
    for name, text in _sources():
        (folder / name).write_bytes(text)
        if name.endswith(".cc"):
            units.append(name)
    includes = ["-isystem", jax.ffi.include_dir(), "-isystem", str(include)]
    _run_all(
        [[compiler, *FLAGS, *includes, "-c", unit, "-o", f"{unit}.o"] for unit in units], folder
    )
    link = [compiler, "-shared", "-fopenmp", *(f"{unit}.o" for unit in units), str(onednn)]
    _run_all([[*link, f"-Wl,-rpath,{onednn.parent}", "-o", "libdiffjax.so"]], folder)


def _run_all(commands: Sequence[Sequence[str]], folder: Path) -> None:
    """Runs commands in parallel.

    Raises:
      UserError: one failed; with the first error line of its output.
    """
    running = [
        subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    outputs = [process.communicate()[1] for process in running]
    for command, process, output in zip(commands, running, outputs, strict=True):
        if process.returncode:
            lines = [line for line in output.splitlines() if "error" in line.lower()]
            what = (lines or output.splitlines() or ["no message"])[0]
            raise UserError(
                f"{command[0]} can't compile the accelerator: {what}: expected a C++20 compiler "
                "(g++ >= 11 or clang >= 14); set CXX to another"
            )


@functools.cache
def load() -> str:
    """Loads the library from `build` and registers its operations with XLA, once.

    Returns:
      oneDNN's version and instruction set, for the log.

    Raises:
      UserError: the library is not built or cannot be loaded, or the processor lacks AVX2.
    """
    path = location()
    if not path.exists():
        raise UserError(f"the accelerator is not built for this machine: run {BUILD}")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(f"{path} can't be loaded ({error}): delete it and run {BUILD}") from error
    library.diffjax_instruction_set.restype = ctypes.c_char_p
    instructions = library.diffjax_instruction_set().decode()
    if not instructions:
        raise UserError("the accelerator needs AVX2: set config.model.kernels='xla'")
    for name in TARGETS:
        handler = getattr(library, f"diffjax_{name}")
        jax.ffi.register_ffi_target(f"diffjax_{name}", jax.ffi.pycapsule(handler), platform="cpu")
    major, minor = divmod(library.diffjax_onednn_version(), 100)
    return f"oneDNN {major}.{minor} with {instructions}"
