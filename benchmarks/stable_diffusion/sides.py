"""One side of the benchmark, in a process of its own.

    python -m benchmarks.stable_diffusion.sides TASK FAMILY MODE DTYPE FOLDER BATCH

Tasks: "evaluate" answers {} on stdout when it is ready, then for each line on stdin the seconds of
one evaluation of the U-Net; "load" and "image" answer once.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LATENTS, TOKENS, WIDTH = 64, 77, 768
STEPS = 20


def main() -> int:
    """Answers in lines of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    task, family, mode, dtype, folder, batch = sys.argv[1:]

    def log(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    if task != "evaluate":
        log(globals()[f"_{task}_{family}"](Path(folder), mode, dtype))
        return 0
    evaluate = globals()[f"_evaluate_{family}"](Path(folder), mode, dtype, int(batch))
    start = time.perf_counter()
    evaluate()
    log({"first": time.perf_counter() - start})
    for _ in sys.stdin:
        start = time.perf_counter()
        evaluate()
        log({"seconds": time.perf_counter() - start})
    return 0


def _inputs(batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((batch, LATENTS, LATENTS, 4)).astype(np.float32)
    return latents, rng.standard_normal((batch, TOKENS, WIDTH)).astype(np.float32)


def _evaluate_diffjax(folder: Path, mode: str, dtype: str, batch: int) -> Callable[[], None]:
    import jax
    import jax.numpy as jnp

    from diffjax import accelerator
    from diffjax.models.condition import Condition, Text
    from diffjax.stable_diffusion import unet

    found = unet.read(folder / "unet", dtype=jnp.dtype(dtype))
    found = found.with_ops(getattr(accelerator, mode)().ops)
    params = unet.load(found, folder / "unet")
    latents, text = map(jnp.asarray, _inputs(batch))
    apply = jax.jit(found.network.apply)
    t, condition = jnp.full(batch, 500.0), Condition(text=Text(text, None))
    return lambda: jax.block_until_ready(apply(params, latents, t, condition))


def _evaluate_diffusers(folder: Path, mode: str, dtype: str, batch: int) -> Callable[[], None]:
    import diffusers
    import torch

    kind = getattr(torch, dtype)
    network = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=kind)
    network = network.eval().to(memory_format=torch.channels_last)
    latents, text = (torch.tensor(x, dtype=kind) for x in _inputs(batch))
    latents = latents.permute(0, 3, 1, 2)  # NHWC in memory
    call = torch.compile(network) if mode == "compile" else network

    def evaluate() -> None:
        with torch.inference_mode():
            call(latents, 500, text)

    return evaluate


def _load_diffjax(folder: Path, mode: str, dtype: str) -> dict[str, float]:
    start = time.perf_counter()
    import diffjax

    imported = time.perf_counter()
    before = _peak()
    diffjax.load(folder, dtype=dtype)
    return _loaded(start, imported, before)


def _load_diffusers(folder: Path, mode: str, dtype: str) -> dict[str, float]:
    start = time.perf_counter()
    import diffusers
    import torch

    imported = time.perf_counter()
    before = _peak()
    diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    return _loaded(start, imported, before)


def _loaded(start: float, imported: float, before: float) -> dict[str, float]:
    now = time.perf_counter()
    return {"import": imported - start, "load": now - imported, "before": before, "peak": _peak()}


def _peak() -> float:
    """The largest resident memory so far, in MiB, pages of mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _image_diffjax(folder: Path, mode: str, dtype: str) -> dict[str, float]:
    start = time.perf_counter()
    import diffjax

    model = diffjax.load(folder, dtype=dtype)
    model.sample(["a red apple"], steps=STEPS)
    first = time.perf_counter()
    model.sample(["a green apple"], steps=STEPS)
    return {"first": first - start, "next": time.perf_counter() - first, "peak": _peak()}


def _image_diffusers(folder: Path, mode: str, dtype: str) -> dict[str, float]:
    start = time.perf_counter()
    import diffusers
    import torch

    kind = getattr(torch, dtype)
    model = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=kind)
    model("a red apple", num_inference_steps=STEPS)
    first = time.perf_counter()
    model("a green apple", num_inference_steps=STEPS)
    return {"first": first - start, "next": time.perf_counter() - first, "peak": _peak()}


if __name__ == "__main__":
    sys.exit(main())
