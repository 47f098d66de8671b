"""Reading a model's folder: its forms, and every way in which it can be wrong."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.flax import save_file as save_jax
from safetensors.numpy import load_file, save_file

from diffjax.conditioning.clip import clip
from diffjax.conditioning.t5 import t5
from diffjax.errors import UserError

from .conftest import word_tokenizer

WIDTH, LAYERS = 8, 2


def tensors():
    """A T5's, of random numbers, named and laid out as torch does."""
    rng = np.random.default_rng(0)
    layer = {
        "0.SelfAttention.q": (6, WIDTH), "0.SelfAttention.k": (6, WIDTH),
        "0.SelfAttention.v": (6, WIDTH), "0.SelfAttention.o": (WIDTH, 6),
        "0.layer_norm": (WIDTH,), "1.layer_norm": (WIDTH,),
        "1.DenseReluDense.wi": (10, WIDTH), "1.DenseReluDense.wo": (WIDTH, 10),
    }  # fmt: skip
    shapes = {"shared": (40, WIDTH), "encoder.final_layer_norm": (WIDTH,)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias"] = (8, 2)
    for i in range(LAYERS):
        shapes |= {f"encoder.block.{i}.layer.{name}": shape for name, shape in layer.items()}
    return {
        f"{name}.weight": rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    config = {
        "model_type": "t5", "vocab_size": 40, "d_model": WIDTH, "d_kv": 3, "d_ff": 10,
        "num_layers": LAYERS, "num_heads": 2, "relative_attention_num_buckets": 8,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    word_tokenizer(None, ("</s>", 2)).save(str(folder / "tokenizer.json"))
    save_file(tensors(), folder / "model.safetensors")
    return folder


def flat(encoder):
    return traverse_util.flatten_dict(encoder.params, sep="/")


def shard(folder):
    """The same weights in two files and an index."""
    both = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(both)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: both[n] for n in names if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return files


def test_every_parameter_is_a_tensor_of_the_file(folder):
    params = flat(t5(folder=folder))
    stored = tensors()
    assert len(params) == len(stored)
    np.testing.assert_array_equal(
        params["params/layer_1/expand/kernel"],
        stored["encoder.block.1.layer.1.DenseReluDense.wi.weight"].T,
    )
    np.testing.assert_array_equal(params["params/word/embedding"], stored["shared.weight"])
    assert all(isinstance(a, np.ndarray) and a.dtype == np.float32 for a in params.values())


def test_shards_are_as_one_file(folder):
    whole = t5(folder=folder)
    shard(folder)
    sharded = t5(folder=folder)
    assert sharded.digest == whole.digest
    for name, array in flat(whole).items():
        np.testing.assert_array_equal(array, flat(sharded)[name])


@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float16))
def test_half_precision_weights_become_float32(folder, dtype):
    halves = {name: jnp.asarray(array, dtype) for name, array in tensors().items()}
    save_jax(halves, folder / "model.safetensors")
    params = flat(t5(folder=folder))
    found = params["params/word/embedding"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.asarray(halves["shared.weight"]).astype(np.float32))


def test_the_digest_knows_weights_tokenizer_and_length(folder):
    digests = [t5(folder=folder).digest, t5(folder=folder, length=63).digest]
    assert digests[0] == t5(folder=folder).digest

    changed = tensors()
    changed["encoder.block.1.layer.0.layer_norm.weight"][3] += 1e-3
    save_file(changed, folder / "model.safetensors")
    digests.append(t5(folder=folder).digest)

    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("mat", "hat"))
    digests.append(t5(folder=folder).digest)
    assert len(set(digests)) == 4


def test_embeddings_under_their_other_name(folder):
    renamed = tensors()
    renamed["encoder.embed_tokens.weight"] = renamed.pop("shared.weight")
    expected = t5(folder=folder).digest
    save_file(renamed, folder / "model.safetensors")
    assert t5(folder=folder).digest == expected


def test_cut_captions_are_warned_of_once_and_keep_their_end(folder, warnings):
    encoder = t5(folder=folder, length=4)
    ids, mask = encoder.tokenise(["a red cat sits on the mat", "dog", "a red cat sits"])
    assert ids[0, 3] == 2 and ids[1, 1] == 2 and mask.sum(1).tolist() == [4, 2, 4]
    assert ids.dtype == np.int32 and mask.dtype == np.bool_ and ids[1, 2:].tolist() == [0, 0]
    assert len(warnings()) == 1
    assert "2 captions were cut to 4 tokens" in warnings()[0] and "red cat" in warnings()[0]
    encoder.tokenise(["a red cat sits", "a red cat"])
    assert len(warnings()) == 1
    encoder.tokenise(["the mat on the mat on"])
    assert len(warnings()) == 2
    assert encoder.tokenise([]).ids.shape == (0, 4)


def no_folder(folder):
    folder.rename(folder.with_name("elsewhere"))


def no_config(folder):
    (folder / "config.json").unlink()


def config_is_text(folder):
    (folder / "config.json").write_text("not json")


def config_is_binary(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")


def config_is_a_list(folder):
    (folder / "config.json").write_text("[1]")


def another_model(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')


def no_model_type(folder):
    (folder / "config.json").write_text("{}")


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def damaged_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def foreign_tokenizer(folder):
    word_tokenizer(None, ("</s>", 40)).save(str(folder / "tokenizer.json"))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def weights_cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def weights_are_text(folder):
    (folder / "model.safetensors").write_text("hello, this is no such file")


def tensor_missing(folder):
    fewer = tensors()
    del fewer["encoder.block.1.layer.1.layer_norm.weight"]
    save_file(fewer, folder / "model.safetensors")


def tensor_misshapen(folder):
    wrong = tensors()
    wrong["encoder.block.1.layer.0.SelfAttention.o.weight"] = np.zeros((6, 8), np.float32)
    save_file(wrong, folder / "model.safetensors")


def shard_missing(folder):
    files = shard(folder)
    (folder / files["shared.weight"]).unlink()


def index_points_out(folder):
    files = shard(folder)
    files["shared.weight"] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def index_without_map(folder):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


def index_lies(folder):
    files = shard(folder)
    other = next(file for file in files.values() if file != files["shared.weight"])
    files["shared.weight"] = other
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


WRONG = {
    no_folder: "found no folder",
    no_config: "found no config.json",
    config_is_text: "cannot read .*config.json",
    config_is_binary: "cannot read .*config.json",
    config_is_a_list: "found a list in .*config.json",
    another_model: "model_type='bert'.*expected t5",
    no_model_type: "model_type=None.*expected t5",
    no_tokenizer: "found no tokenizer.json",
    damaged_tokenizer: "cannot read .*tokenizer.json",
    foreign_tokenizer: "found the id 40 in the tokenizer.*vocab_size=40",
    no_weights: "found no model.safetensors",
    pickle_only: "found pytorch_model.bin.*expected safetensors.*save_pretrained",
    weights_cut_short: "cannot read .*model.safetensors",
    weights_are_text: "cannot read .*model.safetensors",
    tensor_missing: "found no tensor encoder.block.1.layer.1.layer_norm.weight",
    tensor_misshapen: r"SelfAttention.o.weight of shape \(6, 8\).*expected \(8, 6\)",
    shard_missing: "found no model-0000",
    index_points_out: "no usable weight_map",
    index_without_map: "no usable weight_map",
    index_lies: "cannot read shared.weight from",
}


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_what_is_wrong_is_said_in_one_line(folder, spoil):
    t5(folder=folder)
    spoil(folder)
    with pytest.raises(UserError, match=WRONG[spoil]) as error:
        t5(folder=folder)
    assert "\n" not in str(error.value)


def test_a_model_of_another_encoder(folder):
    with pytest.raises(UserError, match=r"model_type='t5'.*expected clip_text_model or clip"):
        clip(folder=folder)
