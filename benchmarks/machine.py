"""What the figures were taken on."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # as Linux spells them
PACKAGES = ("diffjax", "jax", "jaxlib", "flax", "torch")

# Dense tensor-core peaks in FLOP/s, TF32 and bfloat16, from NVIDIA's data sheets.
PEAKS = {
    "H200": {"float32": 494e12, "bfloat16": 989e12},
    "H100 80GB HBM3": {"float32": 494e12, "bfloat16": 989e12},
    "A100": {"float32": 156e12, "bfloat16": 312e12},
}


def default_device() -> str:
    """ "gpu" where jax finds one, else "cpu"; asked of a process that then lets go of it."""
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    return "gpu" if done.stdout.strip() == "gpu" else "cpu"


def describe(device: str) -> str:
    """Processor, cores, instruction sets, GPU, date and versions, on a few lines of Markdown."""
    model, flags = _processor()
    present = [f"{name} {'yes' if name in flags else 'no'}" for name in FEATURES]
    lines = [
        f"* {model}, {len(os.sched_getaffinity(0))} cores usable; {', '.join(present)}",
        *([f"* {_gpu()}"] if device == "gpu" else []),
        f"* {datetime.date.today().isoformat()}, {platform.system()} {platform.release()}",
        f"* Python {platform.python_version()}, " + ", ".join(map(_version, PACKAGES)),
    ]
    return "\n".join(lines)


def peak(device: str, dtype: str) -> float | None:
    """FLOP/s that a device's data sheet promises, or None for one that is not known here."""
    for name, rates in PEAKS.items():
        if name in device:
            return rates[dtype]
    return None


def _processor() -> tuple[str, set[str]]:
    found: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    model = found.get("model name") or platform.processor() or platform.machine()
    return model, set(found.get("flags", "").split())


def _gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "a GPU that nvidia-smi does not describe"


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"
