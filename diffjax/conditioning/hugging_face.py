"""Reading a model's folder as Hugging Face's `save_pretrained` writes it, without transformers.

config.json says how the network is built, model.safetensors (or its shards) holds the weights and
tokenizer.json the tokenizer. Pickles are never read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from diffjax.conditioning.attention import zero_padding
from diffjax.conditioning.text_encoder import Encoded, TextEncoder, Tokens
from diffjax.errors import UserError
from diffjax.types import Array

# Raise it when what an encoder computes changes: captions kept on disk are then encoded again.
VERSION = 1

INDEX = "model.safetensors.index.json"

# (tokens (B, L, D), ids (B, L), mask (B, L)) -> (B, D)
Pool = Callable[[Array, Array, Array], Array]

Scalar = TypeVar("Scalar", int, float, str)

_logger = logging.getLogger("diffjax")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
      UserError: no such folder or file, or something else in it.
    """
    if not path.parent.is_dir():
        raise UserError(
            f"found no folder {path.parent}; expected one with config.json, model.safetensors and "
            "a tokenizer, as Hugging Face's save_pretrained writes it; check the path"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"found no {path.name} in {path.parent}; expected a model's folder as Hugging Face's "
            "save_pretrained writes it; download the missing file"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read {path} ({type(error).__name__}); expected JSON; download it again"
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"found a {type(value).__name__} in {path}; expected a JSON object; download it again"
        )
    return value


class Config(NamedTuple):
    """What a config.json says of one model.

    Attributes:
      path: the file.
      values: its fields.
    """

    path: Path
    values: Mapping[str, Any]

    def get(self, key: str, default: Scalar) -> Scalar:
        """The field, of the default's type; Hugging Face leaves out what has its default.

        Raises:
          UserError: a value of another type, or a number that is negative.
        """
        value = self.values.get(key, default)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default) or (not isinstance(value, str) and value < 0):
            kind = {int: "an int", float: "a float", str: "a text"}[type(default)]
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
                f"found {key}={value!r} in {self.path}; expected {' or '.join(choices)}; this "
                "network is not supported, choose another model"
            )
        return value

    def check_heads(self, width: int, heads: int) -> None:
        """Heads must share the channels evenly.

        Raises:
          UserError: they don't.
        """
        if not heads or width % heads:
            raise UserError(
                f"found {heads} heads for {width} channels in {self.path}; expected a divisor; "
                "correct the file or download it again"
            )


def read_config(folder: Path, model_types: Sequence[str]) -> Config:
    """The folder's config.json, which must be of one of these types.

    Raises:
      UserError: no such folder or file, or another model's.
    """
    config = Config(folder / "config.json", read_json(folder / "config.json"))
    found = config.values.get("model_type")
    if found not in model_types:
        raise UserError(
            f"found model_type={found!r} in {config.path}; expected {' or '.join(model_types)}; "
            "choose the encoder of that type, or another folder"
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
            f"cannot read {path} ({_first_line(error)}); expected a file of the library "
            "tokenizers; download it again"
        ) from error


def tensor_files(folder: Path) -> dict[str, Path]:
    """Which safetensors file of the folder holds each tensor.

    Raises:
      UserError: no safetensors file, or one that is damaged; a folder with pickles (.bin) only.
    """
    whole = folder / "model.safetensors"
    if whole.is_file():
        with _open(whole) as file:
            return dict.fromkeys(file.keys(), whole)
    if (folder / INDEX).is_file():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(
            isinstance(shard, str) and Path(shard).name == shard for shard in shards.values()
        ):
            raise UserError(
                f"found no usable weight_map in {folder / INDEX}; expected names of files in that "
                "folder; download it again"
            )
        return {name: folder / shard for name, shard in shards.items()}
    pickles = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")
    )
    if pickles:
        raise UserError(
            f"found {pickles[0]} in {folder} and no model.safetensors; expected safetensors, "
            "since a pickle can run code; where you trust it, convert it with transformers: "
            f"AutoModel.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    raise UserError(
        f"found no model.safetensors in {folder}; expected that or {INDEX}; download it"
    )


def without_prefix(files: Mapping[str, Path], prefix: str) -> dict[str, str]:
    """Names without the prefix, with what they are called in the file: {"a": "prefix.a"}."""
    return {name.removeprefix(prefix): name for name in files}


def load_params(
    module: nn.Module, folder: Path, modules: Mapping[str, Sequence[str]], *, prefix: str = ""
) -> dict[str, Any]:
    """The module's parameters out of the folder's tensors, float32 NumPy arrays.

    A kernel is transposed, since torch keeps (out, in). Tensors that the module doesn't need are
    not read.

    Args:
      module: takes ids (B, L) int32 and mask (B, L) bool.
      folder: of a model.
      modules: for the path of each of its submodules that has parameters, the names it may have
        in the files.
      prefix: what the files' names may begin with.

    Raises:
      UserError: a tensor that is missing or of another shape; a file that is damaged.
    """
    files = tensor_files(folder)
    names = without_prefix(files, prefix)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    variables = jax.eval_shape(module.init, jax.random.key(0), *tokens)

    wanted: dict[Path, list[tuple[str, str, tuple[int, ...]]]] = defaultdict(list)
    for path, leaf in traverse_util.flatten_dict(variables, sep="/").items():
        owner, _, parameter = path.removeprefix("params/").rpartition("/")
        candidates = [f"{theirs}.{end}" for theirs in modules[owner] for end in _LEAVES[parameter]]
        found = [names[name] for name in candidates if name in names]
        if not found:
            raise UserError(
                f"found no tensor {prefix}{candidates[0]} in {folder}; expected a whole model that "
                "fits its config.json; download its weights again"
            )
        wanted[files[found[0]]].append((path, found[0], leaf.shape))

    flat = {}
    for file_path, tensors in wanted.items():
        with _open(file_path) as file:
            for path, name, shape in tensors:
                flat[path] = _read_tensor(file, file_path, name, shape, path.endswith("/kernel"))
    return traverse_util.unflatten_dict(flat, sep="/")


# Layer norms of BERT's first files are called as in TensorFlow.
_LEAVES = {
    "kernel": ("weight",),
    "embedding": ("weight",),
    "scale": ("weight", "gamma"),
    "bias": ("bias", "beta"),
}


def _open(path: Path) -> Any:
    try:
        # NumPy has no bfloat16; JAX's arrays do.
        return safe_open(path, framework="flax")
    except FileNotFoundError as error:
        raise UserError(
            f"found no {path.name} in {path.parent}; expected that part of the weights; download it"
        ) from error
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot read {path} ({_first_line(error)}); expected a safetensors file; download it "
            "again"
        ) from error


def _read_tensor(
    file: Any, path: Path, name: str, shape: tuple[int, ...], transpose: bool
) -> np.ndarray:
    expected = shape[::-1] if transpose else shape
    try:
        found = tuple(file.get_slice(name).get_shape())
        if found != expected:
            raise UserError(
                f"found {name} of shape {found} in {path}; expected {expected} by config.json; "
                "take both files from the same model"
            )
        tensor = np.asarray(file.get_tensor(name)).astype(np.float32)
    except SafetensorError as error:
        raise UserError(
            f"cannot read {name} from {path} ({_first_line(error)}); expected the tensor that the "
            "index says is there; download the weights again"
        ) from error
    return np.ascontiguousarray(tensor.T) if transpose else tensor


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def tokenise_with(
    tokenizer: Tokenizer, *, length: int, name: str
) -> Callable[[Sequence[str]], Tokens]:
    """What pads and cuts captions to `length` tokens, the special ones among them.

    A caption that is cut is warned of once, however often it comes.

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
    width: int,
    vocabulary: int,
    config: Config,
) -> TextEncoder:
    """A `TextEncoder` from its parts.

    Args:
      name: for logs.
      module: (ids, mask) -> tokens (B, L, D).
      params: the module's variables.
      pool: makes one vector of a caption's tokens.
      tokenizer: gives ids below `vocabulary`.
      length: number of tokens.
      longest: the most tokens that the network can take, None for any number.
      width: D.
      vocabulary: number of the network's embeddings.
      config: what the module was built from.

    Raises:
      UserError: a length that the network or the tokenizer cannot have, or a tokenizer that is
        another model's.
    """
    least = tokenizer.num_special_tokens_to_add(False) + 1
    if length < least or (longest is not None and length > longest):
        limits = f"{least} or more" if longest is None else f"{least} to {longest}"
        raise UserError(
            f"got length={length} for {name}; expected {limits} tokens; choose one of them"
        )
    biggest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if biggest >= vocabulary:
        # JAX would read the last embedding for an id beyond it.
        raise UserError(
            f"found the id {biggest} in the tokenizer of {config.path.parent}; expected ids below "
            f"vocab_size={vocabulary} of its config.json; take both files from the same model"
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
    return TextEncoder(name, width, length, tokenise, encode, params, digest.hexdigest())
