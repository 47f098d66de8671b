"""LoRA files as adapters of a folder's networks, and a folder with them merged.

Three ways of naming are read, for the U-Net and for text encoders:

    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight      kohya's sd-scripts
    lora_unet_input_blocks_1_1_proj_in.lora_down.weight                the same, of original names
    unet.down_blocks.0.attentions.0.proj_in.lora_A.weight              peft's and diffusers'

and diffusers' older ones, `...attn1.processor.to_q_lora.down.weight` and `....lora.down.weight`.
Alpha is a tensor next to them, or in the metadata that diffusers writes, or the rank.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from diffjax import arguments
from diffjax.checkpoints.free_memory import malloc_trim
from diffjax.conditioning.clip import module_names
from diffjax.conditioning.model_folder import BYTES_A_TIME, Tensors, read_json
from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.models.lora import Adapter, merge
from diffjax.models.lora import Path as Place
from diffjax.stable_diffusion import names, original_names, torch_tensors, weights
from diffjax.stable_diffusion.folder import Folder

# Where diffusers writes alphas.
METADATA = "lora_adapter_metadata"
PEFT_PREFIX, PEFT_CONFIG = "base_model.model.", "adapter_config.json"

_FACTOR = re.compile(
    r"(?P<layer>.+?)(?:\.lora_(?P<kohya>down|up|A|B)(?:\.(?!bias)[\w-]+)?|"
    r"[._]lora\.(?P<old>down|up)|\.lora_linear_layer\.(?P<linear>down|up))\.weight"
)
_ALPHA = re.compile(r"(?P<layer>.+?)(?:_lora)?\.alpha")
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with a third factor",
    "oft_": "OFT",
    ".diff": "a full difference",
}
# Older names of a text encoder's maps.
_PROCESSED = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


class Layers(NamedTuple):
    """The factors of a file's layers, by the layers' names in it."""

    down: dict[str, str]
    up: dict[str, str]
    alpha: dict[str, str]


class File(NamedTuple):
    """A LoRA file and its scale.

    Attributes:
      path: of it.
      tensors: its tensors.
      layers: of them.
      scale: of all its adapters.
    """

    path: Path
    tensors: Tensors
    layers: Layers
    scale: float


# One of a file's adapters: the network's number, 0 for the U-Net, then text encoders; and where.
Target = tuple[int, Place]
Lora = str | Path | tuple[str | Path, float]


def opened(lora: Lora | Sequence[Lora], *, scale: float = 1.0) -> tuple[File, ...]:
    """Opens files.

    Args:
      lora: a path, a pair (path, scale), or several of these in a list. Files are .safetensors or
        what torch.save wrote.
      scale: factor of all of them.

    Raises:
      UserError: a file that is missing, that can't be read or that has other tensors than low-rank
        factors and alphas.
    """
    several = lora if isinstance(lora, list) else [lora]
    pairs = [_pair(one) for one in several]
    return tuple(_file(path, factor * scale) for path, factor in pairs)


def _pair(one: Any) -> tuple[Path, float]:
    pair = one if isinstance(one, tuple) else (one, 1.0)
    if len(pair) != 2 or not isinstance(pair[0], str | Path):
        raise UserError(f"lora is {arguments.shown(one)}: expected FILE, (FILE, scale) or a list")
    return expanded(pair[0], name="lora"), arguments.number("the scale of a LoRA", pair[1])


def _file(path: Path, scale: float) -> File:
    tensors = torch_tensors.of_file(path)
    layers = Layers({}, {}, {})
    for name in tensors.files:
        factor, alpha = _FACTOR.fullmatch(name), _ALPHA.fullmatch(name)
        if factor is not None:
            kind = factor["kohya"] or factor["old"] or factor["linear"]
            side = layers.down if kind in ("down", "A") else layers.up
            side[factor["layer"]] = name
        elif alpha is not None:
            layers.alpha[alpha["layer"]] = name
        else:
            kind = next((kind for part, kind in _OTHER_KINDS.items() if part in name), "unknown")
            raise UserError(
                f"found {name} in {path}, which is {kind}; expected factors of LoRA and alphas; "
                "other adapters are not supported, choose another file"
            )
    if not layers.down:
        raise UserError(f"found no LoRA in {path}; expected low-rank factors; choose another file")
    for name in layers.down.keys() ^ layers.up.keys():
        stored = layers.down.get(name) or layers.up.get(name)
        raise UserError(
            f"found {stored} in {path} without its other factor; expected both; download it again"
        )
    return File(path, tensors, layers, scale)


def merged(folder: Folder, files: Sequence[File]) -> Folder:
    """The folder with adapters merged into the U-Net and the text encoders.

    Those whose parameters were not read, and are None, stay so, and their layers are checked alone.
    Where nothing else refers to the folder, no more than one kernel is in memory twice.

    Raises:
      UserError: a layer that the model does not have, or of another shape.
    """
    trees = [folder.params, *(part.params for part in folder.texts)]
    shapes = _shapes(folder)
    table = _table(folder, shapes)
    folder = folder._replace(
        params=None, texts=tuple(p._replace(params=None) for p in folder.texts)
    )
    flat: dict[int, dict[Place, Any]] = {}
    freed = 0
    for file in files:
        for (number, path), adapter in _adapters(file, table, shapes):
            if number not in flat:
                if trees[number] is None:
                    continue
                flat[number], trees[number] = traverse_util.flatten_dict(trees[number]), None
            kernel = traverse_util.unflatten_dict({path: flat[number][path]})
            made = merge(kernel, {path: adapter}, scale=file.scale)
            # The next one begins when this one's memory is free again.
            leaf = traverse_util.flatten_dict(made)[path]
            flat[number][path] = jax.block_until_ready(leaf)
            del kernel, made
            freed += leaf.nbytes
            if freed > BYTES_A_TIME:
                malloc_trim()
                freed = 0
    for number, leaves in flat.items():
        trees[number] = traverse_util.unflatten_dict(leaves)
    parts = zip(folder.texts, trees[1:], strict=True)
    texts = tuple(part._replace(params=tree) for part, tree in parts)
    folder = folder._replace(params=trees[0], texts=texts)
    if not any(flat):  # the U-Net alone, which is network 0
        return folder
    digests = (f"{weights.digest(file.tensors)}*{file.scale}" for file in files)
    return folder._replace(text_digest="-".join([folder.text_digest, *digests]))


def adapters_of(folder: Folder, file: File) -> list[dict[Place, Adapter]]:
    """The adapters of the U-Net and of each text encoder.

    Raises:
      UserError: as `merged`.
    """
    shapes = _shapes(folder)
    found: list[dict[Place, Adapter]] = [{} for _ in shapes]
    for (number, path), adapter in _adapters(file, _table(folder, shapes), shapes):
        found[number][path] = adapter
    return found


def _shapes(folder: Folder) -> list[dict[Place, tuple[int, ...]]]:
    """Of the parameters of the U-Net and of each text encoder."""
    trees = [folder.unet.shapes() if folder.params is None else folder.params]
    for part in folder.texts:
        trees.append(part.encoder.shapes() if part.params is None else part.params)
    flat = [traverse_util.flatten_dict(tree) for tree in trees]
    return [{path: leaf.shape for path, leaf in one.items()} for one in flat]


def _adapters(
    file: File, table: Mapping[str, Target], shapes: Sequence[Mapping[Place, tuple[int, ...]]]
) -> Iterator[tuple[Target, Adapter]]:
    alpha_of = _alphas(file)
    used: dict[Target, str] = {}
    for layer, down in file.layers.down.items():
        target = table.get(layer.removeprefix("unet.").removeprefix(PEFT_PREFIX)) or table.get(
            layer
        )
        if target is None:
            raise UserError(
                f"found {down} in {file.path}, which is of no layer of this model; expected a LoRA "
                "of the same family of Stable Diffusion; choose another file or model"
            )
        if used.setdefault(target, layer) != layer:
            raise UserError(
                f"found {layer} and {used[target]} in {file.path}, which are the same layer; "
                "expected one of them; choose another file"
            )
        number, path = target
        kernels = _kernels(file, layer, shapes[number][path])
        yield target, Adapter(*kernels, alpha_of(layer, kernels[0].shape[-1]))
    for layer in file.layers.alpha.keys() - file.layers.down.keys():
        raise UserError(
            f"found {file.layers.alpha[layer]} in {file.path} without factors; expected both; "
            "download it again"
        )


def _kernels(file: File, layer: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The factors with the axes of kernels: (..., in, rank) and (..., rank, out)."""
    factors = [file.layers.down[layer], file.layers.up[layer]]
    found = [file.tensors.shape(name) for name in factors]
    rank = found[0][0] if found[0] else 0
    wanted: list[tuple[int, ...]] = [(rank, shape[-2]), (shape[-1], rank)]
    if len(shape) == 4:
        wanted = [(*wanted[0], *shape[:2]), (*wanted[1], 1, 1)]
    made = []
    for name, here, there in zip(factors, found, wanted, strict=True):
        # A linear map may be stored as a 1x1 convolution.
        if (here[:2] if here[2:] == (1, 1) and len(shape) == 2 else here) != there or not rank:
            raise UserError(
                f"found {name} of shape {here} in {file.path}; expected {there} for a kernel of "
                f"{shape}; use a LoRA of the same family of Stable Diffusion"
            )
        array = file.tensors.read(name, shape=here).astype(np.float32).reshape(there)
        made.append(array.T if len(shape) == 2 else array.transpose(2, 3, 1, 0))
    return made[0], made[1]


def _alphas(file: File) -> Any:
    """A function from a layer's name and rank to alpha: a tensor's, the metadata's, or the rank."""
    described = _described(file)

    def alpha_of(layer: str, rank: int) -> float:
        name = file.layers.alpha.get(layer)
        if name is not None:
            value = file.tensors.read(name, shape=file.tensors.shape(name))
            if value.size != 1 or not np.isfinite(value.astype(np.float32)).all():
                raise UserError(
                    f"found {name} of shape {value.shape} in {file.path}; expected a number; "
                    "download it again"
                )
            return float(value.reshape(()))
        for prefix, config in described.items():
            if layer.startswith(prefix):
                return _alpha(config, layer.removeprefix(prefix), rank)
        return float(rank)

    return alpha_of


def _described(file: File) -> dict[str, dict[str, Any]]:
    """Beginnings of names -> peft's config of those layers, from diffusers' metadata or peft's."""
    made: dict[str, dict[str, Any]] = {}
    text = file.tensors.metadata().get(METADATA)
    if text is not None:
        try:
            found = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"cannot read {METADATA} in {file.path} ({type(error).__name__}); expected JSON; "
                "download it again"
            ) from error
        for name, value in found.items():
            part, _, field = name.partition(".")
            made.setdefault(f"{part}.", {})[field] = value
    elif any(name.startswith(PEFT_PREFIX) for name in file.layers.down):
        made[PEFT_PREFIX] = read_json(file.path.parent / PEFT_CONFIG)
    for config in made.values():
        for field in ("use_dora", "lora_bias", "fan_in_fan_out"):
            if config.get(field):
                raise UserError(
                    f"found {field}={config[field]!r} in {file.path}; expected false; other "
                    "adapters are not supported, choose another file"
                )
    return made


def _alpha(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """peft's alpha of a layer, with which scale * alpha / rank is what peft multiplies by."""
    alpha = config.get("lora_alpha", rank)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        # As peft does: a whole name, its end, or a regular expression of either.
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = value
            break
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def _table(folder: Folder, shapes: Sequence[Iterable[Place]]) -> dict[str, Target]:
    """All names that files have for the layers of the networks."""
    module = folder.unet.module
    levels = len(module.channels)
    table = {}
    of_unet = names.of_unet(levels)
    back = original_names.turned(original_names.of_unet(levels, module.blocks))
    for path in _kernels_of(shapes[0]):
        name = of_unet("/".join(path[:-1]))[0][0]
        for found in (name, *original_names.originals(name, back)):
            table[f"lora_unet_{found.replace('.', '_')}"] = (0, path)
            table[f"diffusion_model.{found}"] = (0, path)
        processed = name.replace(".attn1.", ".attn1.processor.").replace(
            ".attn2.", ".attn2.processor."
        )
        for found in (name, processed, processed.removesuffix(".0")):
            table[found] = (0, path)
    for number, part in enumerate(folder.texts, 1):
        of_text = names.of_text(module_names(part.encoder.module.layers))
        short = ("lora_te2_",) if number == 2 else ("lora_te_", "lora_te1_")
        place = "text_encoder_2." if number == 2 else "text_encoder."
        for path in _kernels_of(shapes[number]):
            for (name,) in of_text("/".join(path[:-1])):
                for prefix in short:
                    table[prefix + name.replace(".", "_")] = (number, path)
                start, _, end = name.rpartition(".")
                for found in (name, f"{start}.{_PROCESSED.get(end, end)}"):
                    table[place + found] = (number, path)
                    table.setdefault(found, (number, path))
    return table


def _kernels_of(paths: Iterable[Place]) -> list[Place]:
    return [path for path in paths if path[-1] == "kernel"]
