"""The memory and FLOPs of sampling from a folder of Stable Diffusion, whose weights are not read.

As for `plan`, temporary memory is that of XLA's CPU compiler: a guide to another backend's.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from diffjax.conditioning.conditions import Texts
from diffjax.experiment import folder_sampling, model_folder
from diffjax.experiment.model import Model, of_folder
from diffjax.latent.space import LatentSpace
from diffjax.models.condition import Text


class SamplingPlan(NamedTuple):
    """Sizes of a folder's parts and of what is computed; the `of_*` are in bytes.

    Attributes:
      name: of the folder.
      size: height and width of the images.
      batch_size: images drawn at once.
      network, texts, stage: number of parameters, of the text encoders and of the first stage, too;
        ControlNets are counted with the network.
      of_network, of_texts, of_stage: the same.
      of_sampling: temporary memory of the sampler; None if nothing was compiled.
      of_decoding: that of the latents' decoding.
      flops: of a step of the sampler, counted by XLA before it optimises.
    """

    name: str
    size: tuple[int, int]
    batch_size: int
    network: int
    texts: int
    stage: int
    of_network: int
    of_texts: int
    of_stage: int
    of_sampling: int | None
    of_decoding: int | None
    flops: float


def is_of_sampling(config: Any) -> bool:
    """Whether a config has a folder and no data to train it on."""
    return model_folder.is_named(config) and config.data.name == model_folder.NO_DATA


def as_text(plan: SamplingPlan) -> str:
    """A plan as text for the user."""
    rows = [
        (f"network, {plan.network / 1e6:.2f} M parameters", plan.of_network),
        (f"text encoders, {plan.texts / 1e6:.2f} M", plan.of_texts),
        (f"first stage, {plan.stage / 1e6:.2f} M", plan.of_stage),
    ]
    weights = plan.of_network + plan.of_texts + plan.of_stage
    if plan.of_sampling is not None and plan.of_decoding is not None:
        rows.append(("temporary, sampling", plan.of_sampling))
        rows.append(("temporary, decoding", plan.of_decoding))
        rows.append(("total", weights + max(plan.of_sampling, plan.of_decoding)))
    height, width = plan.size
    return "\n".join([
        f"{plan.name}: {plan.batch_size} images of {height}x{width} at once",
        "memory of a device, in MiB:",
        *(f"  {name:<36}{size / 2**20:12.2f}" for name, size in rows),
        f"a step of the sampler takes {plan.flops:.3g} FLOPs",
        about_temporary(is_known=plan.of_sampling is not None),
    ])  # fmt: skip


def about_temporary(*, is_known: bool) -> str:
    """The last line of a plan."""
    if is_known:
        return "temporary: by XLA's CPU compiler, a guide to what another backend needs"
    return "temporary: unknown without config.parallel.compile"


def plan_here(config: Any) -> SamplingPlan:
    """The plan of a settled config, for one device.

    Raises:
      UserError: a folder that is not supported, or incompatible values.
    """
    model = without_weights(config, samples=True)
    folder, space, count = model.folder, model.space, config.sample.batch_size
    assert folder is not None and isinstance(space, LatentSpace)
    texts_params = [part.params for part in folder.texts]
    shapes = (folder.network_params, texts_params, folder.stage_params.params)
    network, texts, stage = (sum(x.size for x in jax.tree.leaves(part)) for part in shapes)
    generator = model.generator()
    example = model.example_condition()._replace(control=generator.conditions.control(0, 1))
    condition = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), example
    )
    sampling = jax.jit(generator.function()).lower(
        folder.network_params, jax.ShapeDtypeStruct((count,), np.int32), condition
    )
    temporary = decoding = None
    if config.parallel.compile:
        x_0 = jax.ShapeDtypeStruct((count, *space.shape), np.float32)
        decode = jax.jit(lambda params, x_0: space.stage.decode(params, x_0))
        temporary, decoding = map(_temporary, (sampling, decode.lower(folder.stage_params, x_0)))
    counted: Any = sampling.cost_analysis()
    height, width = space.image_shape[:2]
    return SamplingPlan(
        folder.name, (height, width), count, network, texts, stage, size_of(shapes[0]),
        size_of(shapes[1]), size_of(shapes[2]), temporary, decoding, float(counted["flops"]),
    )  # fmt: skip


def _temporary(lowered: Any) -> int:
    return int(lowered.compile().memory_analysis().temp_size_in_bytes)


def without_weights(config: Any, *, samples: bool = False) -> Model:
    """The model of a settled config with jax.ShapeDtypeStruct for weights; texts are zeros.

    Its kernels are XLA's, the only ones whose cost XLA can count.

    Args:
      config: of a folder.
      samples: whether it has what is added for sampling, see `folder_sampling`.

    Raises:
      UserError: as `plan_here`.
    """
    config = config.copy_and_resolve_references()
    config.model.kernels = "xla"
    folder = model_folder.shapes(config)
    if samples:
        folder = folder_sampling.with_shapes(config, folder)
    model = of_folder(config, model_folder.about(config), folder)
    texts = model.conditions.texts
    assert texts is not None
    blank = texts._replace(encode=lambda texts_: _zeros(texts, len(texts_)), null=None)
    blank = blank._replace(null=lambda: _zeros(texts, 1))
    return model._replace(conditions=model.conditions._replace(texts=blank))


def _zeros(texts: Texts, count: int) -> Text:
    def zeros(leaf: Any) -> np.ndarray:
        kind = np.float32 if leaf.dtype == np.float16 else leaf.dtype
        return np.zeros((count, *leaf.shape[1:]), kind)

    return jax.tree.map(zeros, texts.example())


def size_of(tree: Any) -> int:
    """Bytes of a tree of shapes."""
    return sum(x.size * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
