"""Files of weights: shards, variants, types, sharded arrays; each fault in one line."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax.conditioning import model_folder
from diffjax.conditioning.model_folder import Tensors
from diffjax.errors import UserError
from diffjax.stable_diffusion import weights

SHAPES = {
    "linear": {
        "kernel": jax.ShapeDtypeStruct((3, 6), jnp.float32),
        "bias": jax.ShapeDtypeStruct((6,), jnp.float32),
    },
    "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 2, 4), jnp.float32)},
}
TYPES = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "F64": np.float64}


def names(path):
    return [{"linear": ("a", "b"), "conv": ("c",)}[path]]


def arrays():
    rng = np.random.default_rng(0)
    sizes = {"a.weight": (3, 3), "b.weight": (3, 3), "a.bias": (3,), "b.bias": (3,),
             "c.weight": (4, 2, 3, 3)}  # fmt: skip
    return {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}


def write(path, tensors, kind="F32"):
    """The format by hand, so that a mistake in the reader is not one here."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in tensors.items():
        raw = array.astype(TYPES[kind]).tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}  # fmt: skip
        data += raw
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def load(folder, dtype=jnp.float32, **options):
    found = weights.find(folder, "model", variant=options.pop("variant", None))
    return weights.load(SHAPES, found, names, folder=folder, dtype=dtype, **options)


def check(params, tensors, tolerance=0.0):
    kernel = np.concatenate([tensors["a.weight"].T, tensors["b.weight"].T], axis=1)
    np.testing.assert_allclose(params["linear"]["kernel"], kernel, atol=tolerance)
    bias = np.concatenate([tensors["a.bias"], tensors["b.bias"]])
    np.testing.assert_allclose(params["linear"]["bias"], bias, atol=tolerance)
    moved = np.moveaxis(tensors["c.weight"], (2, 3, 1, 0), (0, 1, 2, 3))
    np.testing.assert_allclose(params["conv"]["kernel"], moved, atol=tolerance)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16))
def test_a_file_of_any_type(tmp_path, kind, dtype):
    tensors = arrays()
    write(tmp_path / "model.safetensors", tensors, kind)
    params = load(tmp_path, dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    check(params, tensors, 0.02)


def test_shards(tmp_path):
    tensors = arrays()
    shards = {f"model-0000{i}.safetensors": {} for i in (1, 2)}
    for i, (name, array) in enumerate(tensors.items()):
        list(shards.values())[i % 2][name] = array
    for shard, held in shards.items():
        write(tmp_path / shard, held)
    index = {name: shard for shard, held in shards.items() for name in held}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    check(load(tmp_path), tensors)
    (tmp_path / "model-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"found no model-00002\.safetensors"):
        load(tmp_path)
    path.write_text(json.dumps({"weight_map": {"a.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match="weight_map"):
        load(tmp_path)
    path.write_text(json.dumps({"weight_map": {"b.weight": "model-00001.safetensors"}}))
    with pytest.raises(UserError, match=r"found no b\.weight"):
        load(tmp_path)


def test_variants(tmp_path):
    wide, narrow = arrays(), {name: 2 * array for name, array in arrays().items()}
    write(tmp_path / "model.fp16.safetensors", narrow, "F16")
    check(load(tmp_path), narrow, 0.01)
    write(tmp_path / "model.safetensors", wide)
    check(load(tmp_path), wide)
    check(load(tmp_path, variant="fp16"), narrow, 0.01)
    with pytest.raises(UserError, match=r"found no model\.ema\.safetensors"):
        load(tmp_path, variant="ema")


def test_each_device_reads_its_part(tmp_path):
    tensors = arrays()
    write(tmp_path / "model.safetensors", tensors)
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), "x"), PartitionSpec())
    params = load(tmp_path, shardings=jax.tree.map(lambda _: sharding, SHAPES))
    check(params, tensors)
    assert params["conv"]["kernel"].sharding == sharding


def test_a_part_of_a_parameter_is_a_part_of_a_tensor(tmp_path, monkeypatch):
    tensors = arrays()
    write(tmp_path / "model.safetensors", tensors)
    asked = []
    read = Tensors.read

    def watched(self, name, *, shape, index=()):
        found = read(self, name, shape=shape, index=index)
        asked.append(found.size)
        return found

    monkeypatch.setattr(Tensors, "read", watched)
    view = weights._view(
        weights.find(tmp_path, "model"), ["c.weight"], SHAPES["conv"]["kernel"].shape,
        is_kernel=True,
    )  # fmt: skip
    index = (slice(0, 2), slice(None), slice(1, 2), slice(2, 4))
    whole = tensors["c.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(view(index), whole[index])
    assert asked == [2 * 3 * 1 * 2]


def test_a_file_is_opened_again_as_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(model_folder, "BYTES_A_TIME", 1)
    opened = []
    safe_open = model_folder.safe_open
    monkeypatch.setattr(
        model_folder, "safe_open", lambda *a, **b: opened.append(a) or safe_open(*a, **b)
    )
    tensors = arrays()
    write(tmp_path / "model.safetensors", tensors)
    check(load(tmp_path), tensors)
    assert len(opened) >= len(tensors)


def without(name):
    return {key: value for key, value in arrays().items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    (
        (without("b.weight"), r"found no tensor b\.weight"),
        (arrays() | {"d.weight": np.ones(2)}, r"found 1 tensors .* such as d\.weight"),
        (arrays() | {"a.bias": np.ones(4)}, r"found a\.bias of shape \(4,\).* expected \(3,\)"),
        (
            arrays() | {"c.weight": np.ones((4, 2, 3, 2))},
            r"found c\.weight of shape \(4, 2, 3, 2\).* expected \(4, 2, 3, 3\)",
        ),
    ),
)
def test_tensors_of_another_network(tmp_path, tensors, message):
    write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def damaged(content, what):
    header = int.from_bytes(content[:8], "little")
    return {
        "nothing": b"",
        "half": content[: 8 + header + 40],
        "header": content[:30],
        "text": b"not a safetensors file at all, but some text",
        "json": content[:8] + b"{" * header + content[8 + header :],
        "list": struct.pack("<Q", 2) + b"[]",
        "kind": content.replace(b'"F32"', b'"Q99"', 1),
        "shape": content.replace(b"[3, 3]", b"[3, 4]", 1),
        "offsets": content.replace(b"[0, 36]", b"[9, 36]", 1),
    }[what]


@pytest.mark.parametrize(
    "what", ("nothing", "half", "header", "text", "json", "list", "kind", "shape", "offsets")
)
def test_a_damaged_file(tmp_path, what):
    path = tmp_path / "model.safetensors"
    write(path, arrays())
    path.write_bytes(damaged(path.read_bytes(), what))
    with pytest.raises(UserError, match=r"cannot read .*model\.safetensors") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match=r"found no model\.safetensors"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read .*pytorch_model\.bin.* neither"):
        load(tmp_path)
    with pytest.raises(UserError, match="found no folder"):
        load(tmp_path / "none")
