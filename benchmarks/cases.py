"""What is compared: networks and batches (cases), and who computes them (sides).

A case is an experiment's config, read when the benchmark runs, with synthetic images in place of
its data set: how long a step takes does not depend on what is in the pictures.
"""

import runpy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.variants import VARIANTS
from diffjax.experiment import schema

ROOT = Path(__file__).resolve().parent.parent
NUM_CLASSES = 10
SAMPLING_STEPS = 20
BATCHES = 4  # different ones, used in turn
TASKS = ("train", "sample")
CASES = ("demo", "28x28", "cifar10", "dit")
OTHERS = ("smoke", "fashion", "cifar10-512")  # not in a complete run of `python -m benchmarks`


class Case(NamedTuple):
    """A network and what it is fed.

    Attributes:
      name: one of CASES.
      title: what it is, for the report.
      config: an unlocked ConfigDict, as experiments/*.py make them.
      image_shape: (H, W, C).
      sample_size: images sampled at once.
    """

    name: str
    title: str
    config: Any
    image_shape: tuple[int, int, int]
    sample_size: int

    @property
    def batch_size(self) -> int:
        return int(self.config.train.batch_size)

    def images(self, task: str) -> int:
        """How many images one repetition of a task is about."""
        return self.sample_size if task == "sample" else self.batch_size


class Side(NamedTuple):
    """One competitor.

    Attributes:
      family: "PyTorch", "diffjax" or "stock".
      mode: "eager" or "compile" for PyTorch; the value of config.model.kernels for diffjax; "flax"
        for stock, the same network of flax's own layers.
      dtype: "float32" or "bfloat16".
      variant: one of `variants.VARIANTS`, for diffjax.
    """

    family: str
    mode: str
    dtype: str
    variant: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, self)).lower()


DTYPES = ("float32", "bfloat16")


def load(name: str, device: str) -> Case:
    """The case of a name.

    Args:
      name: one of CASES or OTHERS.
      device: "cpu" or "gpu"; the large case has a batch that suits it.
    """
    case = _load(name, device)
    case.config.sample.guidance = "none"  # an evaluation a step, as of torch_side
    return case


def _load(name: str, device: str) -> Case:
    if name == "demo":
        config = _config("fashion_mnist.py", "quick")
        return Case(
            name,
            "`experiments/fashion_mnist.py:quick`",
            config,
            (28, 28, 1),
            config.train.batch_size,
        )
    if name == "28x28":
        config = _config("fashion_mnist.py", "quick")
        config.model.update(
            channels=32, multipliers=(1, 2, 2), blocks=1, attention_resolutions=(7,),
            patch=1, class_conditional=False,
        )  # fmt: skip
        config.diffusion.condition_dropout = 0.0
        config.train.batch_size = 128
        title = "unconditional 28x28x1, 32 channels x (1, 2, 2), attention at 7x7"
        return Case(name, title, config, (28, 28, 1), 128)
    if name == "dit":
        config = _config("fashion_mnist_dit.py", "quick")
        config.model.update(width=192, depth=8, patch=2, class_conditional=False)
        config.model.unroll = device == "cpu"  # on a GPU it is a variant
        config.diffusion.update(
            schedule="cosine", time_sampling="uniform", condition_dropout=0.0
        )  # of the times that torch_side has
        config.train.batch_size = 64
        title = "a transformer on 28x28x1: 8 blocks of 192 channels, patches of 2x2"
        return Case(name, title, config, (28, 28, 1), 64)
    if name == "smoke":
        config = _config("digits.py")
        config.model.update(channels=8, head_channels=8)
        config.train.batch_size = 16
        return Case(name, "a tiny network, to see that everything runs", config, (8, 8, 1), 16)
    if name == "fashion":
        config = _config("fashion_mnist.py")
        title = "`experiments/fashion_mnist.py`"
        return Case(name, title, config, (28, 28, 1), config.train.batch_size)
    config = _config("cifar10.py")
    if name == "cifar10-512":
        config.train.batch_size = 512
        return Case(name, "DDPM's U-Net, batches of 512", config, (32, 32, 3), 512)
    config.train.batch_size = 128 if device == "gpu" else 16
    title = "`experiments/cifar10.py`, DDPM's U-Net"
    # 20 passes of 16 images would take a CPU half a minute: 4 tell as much.
    return Case("cifar10", title, config, (32, 32, 3), 128 if device == "gpu" else 4)


# Everyone who takes part.
SIDES = (
    *(Side("PyTorch", mode, dtype) for mode in ("eager", "compile") for dtype in DTYPES),
    *(Side("diffjax", mode, dtype) for mode in ("xla", "auto") for dtype in DTYPES),
    Side("stock", "flax", "float32"),
)


def config_of(case: Case, side: Side) -> Any:
    """The case's config as a side runs it, with the sampler that is timed."""
    config = case.config.copy_and_resolve_references()
    config.model.dtype = side.dtype
    config.update_from_flattened_dict(VARIANTS[side.variant].config)
    config.model.kernels = side.mode if side.family == "diffjax" else "xla"
    config.sample.update(
        sampler="ddim", grid="trailing", steps=SAMPLING_STEPS, threshold="clip",
        batch_size=case.sample_size,
    )  # fmt: skip
    return config


def examples(case: Case, count: int) -> dict[str, np.ndarray]:
    """Noise for pictures: {"image": uint8 (count, H, W, C), "label": int32 (count,)}."""
    draw = np.random.default_rng(0)
    return {
        "image": draw.integers(0, 256, (count, *case.image_shape), np.uint8),
        "label": draw.integers(0, NUM_CLASSES, count, np.int32),
    }


def batches(case: Case) -> list[dict[str, np.ndarray]]:
    """BATCHES batches as a data pipeline hands them over."""
    size = case.batch_size
    pool = examples(case, BATCHES * size)
    return [
        {name: x[i * size : (i + 1) * size] for name, x in pool.items()} for i in range(BATCHES)
    ]


def _config(file: str, *variant: str) -> Any:
    config = runpy.run_path(str(ROOT / "experiments" / file))["get_config"](*variant)
    return schema.complete(config)
