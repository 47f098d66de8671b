"""Damaged files: each reader gives what it documents or its own error, and runs nothing.

DIFFJAX_FUZZ=100000 python -m pytest tests/fuzz tries more of them.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import zipfile

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from diffjax.checkpoints import ema_snapshots
from diffjax.conditioning import hugging_face, model_folder
from diffjax.data import decoded, fashion_mnist, images, load
from diffjax.data.sources import ArraySource
from diffjax.errors import UserError
from diffjax.torch_files import LEGACY_MAGIC, LEGACY_VERSION, read_state_dict
from tests.fuzz.mutations import COUNT, damaged, refusals

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)


def idx(array):
    header = bytes([0, 0, 8, array.ndim])
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IDX = idx(PIXELS[..., 0])


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(tmp_path, zipped):
    path = tmp_path / "images-idx3-ubyte"

    def read(data):
        path.write_bytes(gzip.compress(data) if zipped else data)
        # As if it were the original, so that its header is all there is to tell by.
        array = fashion_mnist.read_idx(path, sha256=hashlib.sha256(data).hexdigest())
        assert array.dtype == np.uint8 and array.nbytes <= len(data)

    read(IDX)
    # Most damage is to pixels, which any byte may be; what is cut or has another size is refused.
    assert refusals(read, damaged(IDX[:24], seed=1), UserError) > COUNT / 2
    refusals(read, damaged(IDX, seed=2), UserError)


@pytest.mark.parametrize("dimensions", [0, 1, 64, 65, 255])
def test_idx_of_any_number_of_dimensions(tmp_path, dimensions):
    path = tmp_path / "idx"
    for size in (0, 1, 2**16, 2**32 - 1):  # products that wrap to 0 or 1 in 64 bits among them
        data = bytes([0, 0, 8, dimensions]) + struct.pack(">I", size) * dimensions
        path.write_bytes(data)
        try:
            fashion_mnist.read_idx(path, sha256=hashlib.sha256(data).hexdigest())
        except UserError as error:
            assert "not an IDX file" in str(error)


def test_damaged_gzip_and_a_gzip_bomb(tmp_path):
    path = tmp_path / "idx.gz"

    def read(data):
        path.write_bytes(data)
        fashion_mnist.read_idx(path, sha256=hashlib.sha256(IDX).hexdigest())

    whole = gzip.compress(IDX, mtime=0)
    read(whole)
    refusals(read, damaged(whole, seed=3), UserError)
    bomb = gzip.compress(bytes(2**20)) * 200  # members one after the other: 200 MiB
    path.write_bytes(bomb)
    with pytest.raises(UserError, match="more than any of the originals"):
        fashion_mnist.read_idx(path, sha256="0" * 64)


def encoded(kind, mode="RGB"):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images(kind, mode):
    def read(data):
        pixels = images.decode(data)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[-1] in (1, 3)

    whole = encoded(kind, mode)
    read(whole)
    assert refusals(read, damaged(whole, seed=4), images.UnreadableImage) > 0


def test_labels_and_metadata_of_a_folder(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    tables = {
        "labels.csv": b"file,label\na.png,cat\n",
        "metadata.csv": b"file_name,text,label\na.png,a cat on a mat,3\n",
        "metadata.jsonl": b'{"file_name": "a.png", "text": "a c\\u00e4t", "label": 3}\n',
    }
    for seed, (name, whole) in enumerate(tables.items()):

        def read(data, path=tmp_path / name):
            path.write_bytes(data)
            source = load(f"folder:{tmp_path}")
            assert len(source) == 1

        read(whole)
        assert refusals(read, damaged(whole, seed=seed, count=COUNT // 2), UserError) > 0
        (tmp_path / name).unlink()


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, ids, mask):
        return nn.Dense(3, name="out")(nn.Embed(5, 2, name="word")(ids))


TENSORS = {
    "word.weight": np.ones((5, 2), np.float32),
    "out.weight": np.ones((3, 2), np.float16),
    "out.bias": np.zeros(3, np.float32),
}
MODULES = {"word": ("word",), "out": ("out",)}


def test_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"

    def read(data):
        path.write_bytes(data)
        params = hugging_face.load_params(Tiny(), tmp_path, MODULES)["params"]
        assert params["out"]["kernel"].shape == (2, 3)
        assert params["word"]["embedding"].dtype == np.float32

    whole = save(TENSORS)
    read(whole)
    assert refusals(read, damaged(whole, seed=5), UserError) > 0
    # Its header alone, where all that can be wrong is.
    end = 8 + int.from_bytes(whole[:8], "little")
    refusals(
        read, (start + whole[end:] for start in damaged(whole[:end], seed=6)), UserError
    )  # fmt: skip
    for dtype in ("F8_E5M2", "F64", "I64", "BOOL", "U8", "F4", "?"):
        refusals(read, [whole.replace(b'"F32"', json.dumps(dtype).encode())], UserError)


def test_json_of_a_models_folder(tmp_path):
    whole = json.dumps({"weight_map": {"a": "model.safetensors"}, "x": [1, 2.5, None]}).encode()
    path = tmp_path / "config.json"

    def read(data):
        path.write_bytes(data)
        assert isinstance(model_folder.read_json(path), dict)

    refusals(read, damaged(whole, seed=7), UserError)
    refusals(read, [b"[" * 10**5, b"9" * 5000, b"", b"\xff", b'{"a":' * 10**5], UserError)


def test_tokenizer_json(tmp_path):
    from tokenizers import Tokenizer, models

    whole = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).to_str().encode()
    path = tmp_path / "tokenizer.json"

    def read(data):
        path.write_bytes(data)
        hugging_face.read_tokenizer(tmp_path)

    read(whole)
    refusals(read, damaged(whole, seed=8), UserError)


def code(value):
    """The instructions that leave a value on a pickle's stack."""
    return pickle.dumps(value, protocol=2)[2:-1]


NUMBERS = struct.pack("<4f", 1, 2, 3, 4)


def legacy():
    """What torch.save wrote before 1.6 for {"a": tensor([1, 2, 3, 4])}, put together by hand."""
    storage = (
        b"(" + code("storage") + b"ctorch\nFloatStorage\n" + code("0") + code("cpu") + code(4)
        + code(None) + b"tQ"
    )  # fmt: skip
    rest = b"".join(code(value) for value in (0, (4,), (1,), False, {}))
    state = b"}" + code("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tRs"
    system = {"protocol_version": LEGACY_VERSION, "little_endian": True}
    first = [pickle.dumps(value, protocol=2) for value in (LEGACY_MAGIC, LEGACY_VERSION, system)]
    keys = pickle.dumps(["0"], protocol=2)
    return b"".join([*first, b"\x80\x02" + state + b".", keys, struct.pack("<Q", 4), NUMBERS])


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", NUMBERS)
    return buffer.getvalue()


def test_legacy_torch_files(tmp_path):
    """The newer kind, and both kinds as torch writes them, in test_torch_files.py."""
    path = tmp_path / "a.pth"

    def read(data):
        path.write_bytes(data)
        for array in read_state_dict(path).values():
            assert array.nbytes <= 10**6

    whole = legacy()
    path.write_bytes(whole)
    np.testing.assert_array_equal(read_state_dict(path)["a"], [1, 2, 3, 4])
    assert refusals(read, damaged(whole, seed=9, count=2 * COUNT), UserError) > COUNT / 2


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_no_legacy_torch_file_runs_anything(tmp_path):
    marker, path = tmp_path / "it-ran", tmp_path / "evil.pth"
    evil = pickle.dumps(Malicious(marker), protocol=2)
    first, place = legacy(), pickle.dumps(["0"], protocol=2)
    for data in (first.replace(place, evil), first[: first.index(b"\x80\x02}")] + evil):
        path.write_bytes(data)
        with pytest.raises(UserError, match="never executed"):
            read_state_dict(path)
    path.write_bytes(zipped(evil))
    with pytest.raises(UserError, match="never executed"):
        read_state_dict(path)
    assert not marker.exists()
    pickle.loads(evil)  # the attack is a real one
    assert marker.exists()


LIKE = {"conv": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}


def snapshot(folder):
    """The bytes of a stored average, and its path."""
    (stored,) = ema_snapshots.save(folder, 1, {0.1: LIKE})
    return stored.path.read_bytes(), stored.path


def test_snapshots_of_averages(tmp_path):
    whole, path = snapshot(tmp_path)

    def read(data):
        path.write_bytes(data)
        assert ema_snapshots.load(path, LIKE)["conv"]["kernel"].shape == (2, 3)

    read(whole)
    assert refusals(read, damaged(whole, seed=10), UserError) > 0


def test_no_npz_runs_anything(tmp_path, monkeypatch):
    marker = tmp_path / "it-ran"
    evil = np.empty((2, 3), object)
    evil[:] = Malicious(marker)
    whole, path = snapshot(tmp_path / "ema")
    member = io.BytesIO()
    np.save(member, evil, allow_pickle=True)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        names = archive.namelist()
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, member.getvalue())
    with pytest.raises(UserError, match="damaged or not a snapshot"):
        ema_snapshots.load(path, LIKE)

    # A decoded set in the cache: what can't be read there is decoded again.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    decoded.keep("key", SOURCE)
    folder = tmp_path / "cache" / "diffjax" / "data" / "key"
    assert decoded.find("key", name="set", memory_limit_mb=1) is not None
    np.savez(folder / "labels.npz", labels=evil, class_names=evil, captions=evil)
    assert decoded.find("key", name="set", memory_limit_mb=1) is None
    np.save(folder / "images.npy", evil, allow_pickle=True)
    assert decoded.find("key", name="set", memory_limit_mb=1) is None
    assert not marker.exists()
    np.load(path, allow_pickle=True)[names[0].removesuffix(".npy")]
    assert marker.exists()


SOURCE = ArraySource(
    PIXELS[None], np.zeros(1, np.int32), name="set", class_names=("a",), captions=("a cat",),
    caption_numbers=np.zeros(1, np.int32),
)  # fmt: skip


@pytest.mark.parametrize("file", ["labels.npz", "images.npy"])
def test_decoded_sets_in_the_cache(tmp_path, monkeypatch, file):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    decoded.keep("key", SOURCE)
    path = tmp_path / "diffjax" / "data" / "key" / file
    whole = path.read_bytes()

    def read(data):
        path.unlink()
        path.write_bytes(data)
        found = decoded.find("key", name="set", memory_limit_mb=1)
        assert found is None or found.images.ndim == 4

    read(whole)
    refusals(read, damaged(whole, seed=11), ())
