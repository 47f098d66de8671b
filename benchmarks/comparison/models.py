"""The models that are compared, and the steps that a budget of FLOPs allows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffjax import flags
from diffjax.experiment.plan import plan


class Part(NamedTuple):
    """A training.

    Attributes:
      name: of its workdir.
      config: the value of --config.
      share: of the model's budget.
      flags: further flags; {folder} is the folder of the model's parts, {third} a third of the
        steps.
    """

    name: str
    config: str
    share: float = 1.0
    flags: tuple[str, ...] = ()


class Model(NamedTuple):
    """A model, whose last part draws the samples.

    Attributes:
      name: in the table.
      parts: its trainings, in order.
      likelihood: the value of config.evaluate.likelihood, "none" where bits/dim are not defined.
      images: held-out images that it is computed for.
    """

    name: str
    parts: tuple[Part, ...]
    likelihood: str = "none"
    images: int = 0


MODELS = {
    "gan": Model("GAN (R3GAN's loss)", (Part("gan", "experiments/fashion_mnist_gan.py:tiny"),)),
    "gan_hinge": Model(
        "GAN (hinge loss)", (Part("gan_hinge", "experiments/fashion_mnist_gan.py:tiny-hinge"),)
    ),
    "pixelcnn": Model(
        "PixelCNN++",
        (Part("pixelcnn", "experiments/fashion_mnist_pixelcnn.py:tiny"),),
        likelihood="exact",
        images=1000,
    ),
    "pixels": Model(
        "diffusion in pixels",
        (Part("pixels", "experiments/fashion_mnist_conditional.py:quick"),),
        likelihood="vlb",
        images=100,
    ),
    "mean_flow": Model(
        "diffusion in four steps",
        (
            Part(
                "mean_flow", "experiments/fashion_mnist_mean_flow.py:quick",
                flags=("--config.sample.steps=4",),
            ),
        ),
    ),
    "latents": Model(
        "diffusion in latents",
        (
            Part(
                "autoencoder",
                "experiments/fashion_mnist_autoencoder.py:tiny",
                share=0.6,
                flags=("--config.loss.adversarial_start={third}",),
            ),
            Part(
                "latents",
                "experiments/fashion_mnist_latent.py:tiny",
                share=0.4,
                flags=("--config.first_stage.workdir={folder}/autoencoder",),
            ),
        ),
    ),
}  # fmt: skip


class Training(NamedTuple):
    """A part with the length that its budget allows.

    Attributes:
      arguments: of `python -m diffjax.main`.
      workdir: where it is trained.
      steps: number of steps.
      batch_size: images in a step.
      flops_per_step: counted by XLA.
      parameters: number of parameters.
    """

    arguments: tuple[str, ...]
    workdir: Path
    steps: int
    batch_size: int
    flops_per_step: float
    parameters: int

    @property
    def images(self) -> int:
        """Images seen in training, with repetition."""
        return self.steps * self.batch_size


def training(
    part: Part, folder: Path, *, budget: float, seed: int, more: Sequence[str] = ()
) -> Training:
    """A part's training by a budget; a part's first stage must be trained before.

    Args:
      part: the part.
      folder: of the model's parts.
      budget: FLOPs of all the model's parts.
      seed: config.seed.
      more: further flags, the last word on every key.

    Raises:
      UserError: an invalid config.
    """
    workdir = folder / part.name
    base = [f"--config={part.config}", f"--workdir={workdir}", f"--config.seed={seed}"]

    def arguments(steps: int) -> list[str]:
        own = [flag.format(folder=folder, third=max(1, steps // 3)) for flag in part.flags]
        # One picture of samples, at the end.
        length = [f"--config.train.{key}={steps}" for key in ("steps", "sample_every")]
        return [*base, *own, *length, *more]

    planned = plan(_uncompiled(flags.parse(arguments(1)).config))
    steps = max(1, int(part.share * budget / planned.flops))
    return Training(
        tuple(arguments(steps)), workdir, steps, planned.batch_size, planned.flops,
        planned.parameters,
    )  # fmt: skip


def _uncompiled(config: Any) -> Any:
    """The config with a plan that counts FLOPs alone, which is a matter of seconds."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.parallel.compile = False
    return config
