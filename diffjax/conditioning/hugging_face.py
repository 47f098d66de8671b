"""Readers of model folders written by Hugging Face's `save_pretrained`, without transformers.

config.json has the network's hyperparameters, model.safetensors (or its shards) the weights and
tokenizer.json the tokenizer. Pickles are never read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from tokenizers import Tokenizer

from diffjax.conditioning.attention import zero_padding
from diffjax.conditioning.model_folder import first_line, read_json, tensors_of
from diffjax.conditioning.text_encoder import Encoded, TextEncoder, Tokens
from diffjax.errors import UserError
from diffjax.types import Array

# Increment when an encoder's output changes: cached captions are then encoded again.
VERSION = 1

# (tokens (B, L, D), ids (B, L), mask (B, L)) -> (B, D)
Pool = Callable[[Array, Array, Array], Array]

Scalar = TypeVar("Scalar", int, float, str)

_logger = logging.getLogger("diffjax")


class Config(NamedTuple):
    """The contents of a model's config.json.

    Attributes:
      path: the file.
      values: its fields.
    """

    path: Path
    values: Mapping[str, Any]

    def get(self, key: str, default: Scalar) -> Scalar:
        """The field, of the default's type; Hugging Face omits fields with default values.

        Raises:
          UserError: a value of another type, or a negative number.
        """
        value = self.values.get(key, default)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default) or (not isinstance(value, str) and value < 0):
            kind = {int: "an int", float: "a float", str: "a string"}[type(default)]
            raise UserError(
                f"found {key}={value!r} in {self.path}; expected {kind} such as {default!r}; "
                "correct the file or download it again"
            )
        return value

    def one_of(self, key: str, choices: Sequence[str], default: str) -> str:
        """The field, which must be one of the choices.

        Raises:
          UserError: another value.
        """
        value = self.values.get(key, default)
        if value not in choices:
            raise UserError(
                f"found {key}={value!r} in {self.path}; expected {' or '.join(choices)}; other "
                "networks are not supported, choose another model"
            )
        return value

    def part(self, name: str) -> Config:
        """The config of one of a CLIP's two models, "text_config" or "vision_config".

        Raises:
          UserError: there is none.
        """
        values = self.values.get(name)
        if not isinstance(values, dict):
            raise UserError(
                f"found no {name} in {self.path}; expected one in a CLIP config; download the file "
                "again"
            )
        return Config(self.path, values)

    def check_heads(self, width: int, heads: int) -> None:
        """Checks that the number of heads divides the width.

        Raises:
          UserError: it does not.
        """
        if not heads or width % heads:
            raise UserError(
                f"found {heads} heads for {width} channels in {self.path}; expected a divisor; "
                "correct the file or download it again"
            )


def read_config(folder: Path, model_types: Sequence[str]) -> Config:
    """The folder's config.json, which must be of one of these types.

    Raises:
      UserError: no such folder or file, or another type.
    """
    config = Config(folder / "config.json", read_json(folder / "config.json"))
    model_type = config.values.get("model_type")
    if model_type not in model_types:
        raise UserError(
            f"found model_type={model_type!r} in {config.path}; expected "
            f"{' or '.join(model_types)}; choose the encoder of that type, or another folder"
        )
    return config


def read_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json.

    Raises:
      UserError: no such file, or one that `tokenizers` cannot read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"found no tokenizer.json in {folder}; expected one; make it with transformers: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception
        raise UserError(
            f"cannot read {path} ({first_line(error)}); expected a file written by the library "
            "tokenizers; download it again"
        ) from error


def without_prefix(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Names without the prefix -> names in the file: {"a": "prefix.a"}."""
    return {name.removeprefix(prefix): name for name in names}


# A network of texts takes ids (B, L) int32 and mask (B, L) bool.
TEXT_INPUTS = (jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1, 1), jnp.bool_))


def load_params(
    module: nn.Module,
    folder: Path,
    modules: Mapping[str, Sequence[str]],
    *,
    prefix: str = "",
    inputs: Sequence[jax.ShapeDtypeStruct] = TEXT_INPUTS,
) -> dict[str, Any]:
    """The module's parameters from the folder's tensors, as float32 NumPy arrays.

    Kernels are transposed, since torch stores (out, in). Unused tensors are not read.

    Args:
      module: the network.
      folder: of a model.
      modules: path of each submodule with parameters -> its possible names in the files.
      prefix: optional prefix of the names in the files.
      inputs: shapes of what the module takes.

    Raises:
      UserError: a missing tensor, one of another shape, or a corrupt file.
    """
    tensors = tensors_of(folder)
    names = without_prefix(tensors.files, prefix)
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)

    flat = {}
    for path, leaf in traverse_util.flatten_dict(variables, sep="/").items():
        owner, _, parameter = path.removeprefix("params/").rpartition("/")
        candidates = [f"{theirs}.{end}" for theirs in modules[owner] for end in _LEAVES[parameter]]
        matches = [names[name] for name in candidates if name in names]
        if not matches:
            raise UserError(
                f"found no tensor {prefix}{candidates[0]} in {folder}; expected a complete model "
                "that matches its config.json; download its weights again"
            )
        transpose = path.endswith("/kernel")
        expected = leaf.shape[::-1] if transpose else leaf.shape
        tensor = tensors.read(matches[0], shape=expected).astype(np.float32)
        flat[path] = np.ascontiguousarray(tensor.T) if transpose else tensor
    return traverse_util.unflatten_dict(flat, sep="/")


# BERT's first files have TensorFlow's names for layer norms.
_LEAVES = {
    "kernel": ("weight",),
    "embedding": ("weight",),
    "scale": ("weight", "gamma"),
    "bias": ("bias", "beta"),
    "class_token": ("class_embedding",),
}


def tokenise_with(
    tokenizer: Tokenizer, *, length: int, name: str
) -> Callable[[Sequence[str]], Tokens]:
    """A function that pads or cuts captions to `length` tokens, including special ones.

    It warns once for each caption that is cut.

    Args:
      tokenizer: its padding and truncation are changed.
      length: number of tokens.
      name: the encoder's, for the warning.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    warned: set[str] = set()

    def tokenise(captions: Sequence[str]) -> Tokens:
        ids = np.zeros((len(captions), length), np.int32)
        mask = np.zeros((len(captions), length), np.bool_)
        cut = {}
        encodings = tokenizer.encode_batch(list(captions)) if len(captions) else []
        for row, (caption, encoding) in enumerate(zip(captions, encodings, strict=True)):
            count = len(encoding.ids)
            ids[row, :count] = encoding.ids
            mask[row, :count] = True
            if encoding.overflowing and caption not in warned:
                cut[caption] = True
        if cut:
            warned.update(cut)
            _logger.warning(
                "%s: %d captions were cut to %d tokens, the first of them %.60r; raise the "
                "encoder's length to keep them whole",
                name, len(cut), length, next(iter(cut)),
            )  # fmt: skip
        return Tokens(ids, mask)

    return tokenise


def frozen_encoder(
    *,
    name: str,
    module: nn.Module,
    params: Any,
    pool: Pool,
    tokenizer: Tokenizer,
    length: int,
    longest: int | None,
    config: Config,
) -> TextEncoder:
    """A `TextEncoder` from its parts.

    Args:
      name: for logs.
      module: (ids, mask) -> tokens (B, L, D); D is its `width`, and `vocabulary` the number of its
        embeddings.
      params: the module's variables.
      pool: computes one vector from a caption's tokens.
      tokenizer: with ids below the number of embeddings.
      length: number of tokens.
      longest: the network's maximal number of tokens, None for no limit.
      config: the config that the module was built from.

    Raises:
      UserError: a length out of range for the network or the tokenizer, or a tokenizer of another
        model.
    """
    least = tokenizer.num_special_tokens_to_add(False) + 1
    if length < least or (longest is not None and length > longest):
        limits = f"{least} or more" if longest is None else f"{least} to {longest}"
        raise UserError(
            f"got length={length} for {name}; expected {limits} tokens; choose one of them"
        )
    biggest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if biggest >= module.vocabulary:
        # JAX would clamp an out-of-range id to the last embedding.
        raise UserError(
            f"found the id {biggest} in the tokenizer of {config.path.parent}; expected ids below "
            f"vocab_size={module.vocabulary} of its config.json; use both files of the same model"
        )
    tokenise = tokenise_with(tokenizer, length=length, name=name)

    def encode(params: Any, ids: Array, mask: Array) -> Encoded:
        tokens = module.apply(params, ids, mask)
        assert not isinstance(tokens, tuple)
        return Encoded(zero_padding(tokens, mask), mask, pool(tokens, ids, mask))

    digest = hashlib.sha256()
    described = [VERSION, name, length, pool.__qualname__, config.values, tokenizer.to_str()]
    digest.update(json.dumps(described, sort_keys=True).encode())
    for path, array in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        digest.update(f"{path} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return TextEncoder(name, module.width, length, tokenise, encode, params, digest.hexdigest())
