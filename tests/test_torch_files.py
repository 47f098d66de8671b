import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.torch_files import StateDict, read_state_dict

FORMATS = pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="what writes such files")


def state_dict(torch):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.Linear(4, 2, dtype=torch.double)
    )
    return model.state_dict()


def save(torch, value, path, zipped):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def refusal(path):
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 500 + len(str(path))
    return message


@FORMATS
def test_arrays_are_torchs(torch, tmp_path, zipped):
    expected = state_dict(torch)
    found = read_state_dict(save(torch, expected, tmp_path / "a.pth", zipped))
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(found[name], tensor.numpy())


@FORMATS
@pytest.mark.parametrize(
    "dtype", ["float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
)
def test_every_known_type(torch, tmp_path, zipped, dtype):
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    found = read_state_dict(save(torch, {"a": tensor}, tmp_path / "a.pth", zipped))
    assert found["a"].dtype == dtype
    np.testing.assert_array_equal(found["a"], tensor.numpy())


@FORMATS
def test_bfloat16(torch, tmp_path, zipped):
    tensor = torch.randn(2, 3).bfloat16()
    found = read_state_dict(save(torch, {"a": tensor}, tmp_path / "a.pth", zipped))
    assert found["a"].dtype == "bfloat16"
    np.testing.assert_array_equal(found["a"].astype(np.float32), tensor.float().numpy())


@FORMATS
def test_views_of_one_storage(torch, tmp_path, zipped):
    whole = torch.arange(24.0).reshape(4, 6)
    views = {"whole": whole, "turned": whole.T, "part": whole[1:3, ::2], "none": whole[:0]}
    found = read_state_dict(save(torch, views, tmp_path / "a.pth", zipped))
    for name, tensor in views.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


@FORMATS
def test_parameters(torch, tmp_path, zipped):
    parameters = {"a": torch.nn.Parameter(torch.ones(2))}
    found = read_state_dict(save(torch, parameters, tmp_path / "a.pth", zipped))
    np.testing.assert_array_equal(found["a"], [1, 1])


@FORMATS
def test_prefix_chooses(torch, tmp_path, zipped):
    path = save(torch, state_dict(torch), tmp_path / "a.pth", zipped)
    assert list(read_state_dict(path, prefix="2.")) == ["2.weight", "2.bias"]
    np.testing.assert_array_equal(
        read_state_dict(path, prefix="2.")["2.bias"], read_state_dict(path)["2.bias"]
    )


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@FORMATS
@pytest.mark.parametrize("place", ["whole", "value", "before"])
def test_a_malicious_pickle_is_refused_and_not_run(torch, tmp_path, zipped, place):
    marker = tmp_path / "it-ran"
    evil = Malicious(marker)
    value = {"whole": evil, "value": {"a": torch.ones(2), "b": evil}}.get(place)
    if place == "before":
        value = OrderedDict(a=evil, b=torch.ones(2))
    path = save(torch, value, tmp_path / "evil.pth", zipped)
    assert "system" in refusal(path)
    assert not marker.exists()
    # The attack is a real one.
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_malicious_first_pickle_is_refused_and_not_run(tmp_path):
    marker, path = tmp_path / "it-ran", tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Malicious(marker), protocol=2))
    assert "system" in refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "instructions",
    [
        b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R.",
        b"\x80\x02(S'echo'\nios\nsystem\n.",  # INST
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x01a\x85R.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02K\x01K\x02.",
        b"\x80\x02.",
        b"\x80\x02t.",
        b"\x80\x02\x87.",
        b"\x80\x02h\x07.",
        b"\x80\x02}b.",
        b"\x80\x02}K\x01K\x02s.",  # a number for a key
        b"\x80\x02K\x01Q.",
        b"\x80\x02X\xff\xff\xff\x7fabc",
        b"\x80\x02\x8b\xff\xff\xff\x7fabc",
        b"\x80\x02" + b"]" * 50,
        b"\x80\x02N" + b"q\x00" * 1_000_001 + b".",
    ],
)
def test_odd_pickles_are_refused(tmp_path, instructions):
    path = tmp_path / "odd.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", instructions)
    refusal(path)


@FORMATS
def test_files_cut_short_anywhere(torch, tmp_path, zipped):
    whole = save(torch, state_dict(torch), tmp_path / "a.pth", zipped).read_bytes()
    path = tmp_path / "short.pth"
    for length in range(0, len(whole), 17):
        path.write_bytes(whole[:length])
        refusal(path)


@FORMATS
def test_damaged_bytes_never_escape_as_other_errors(torch, tmp_path, zipped):
    whole = save(torch, state_dict(torch), tmp_path / "a.pth", zipped).read_bytes()
    path, rng = tmp_path / "damaged.pth", np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except UserError as error:
            assert "\n" not in str(error)


class Skippable:
    """Pickled as an object of a package that training checkpoints refer to."""

    def __init__(self, number):
        self.number = number


Skippable.__module__ = "pytorch_lightning.callbacks"


@pytest.fixture
def lightning(monkeypatch):
    """A package of that name, for writing and for torch's own reader."""
    module = types.ModuleType("pytorch_lightning.callbacks")
    module.Skippable = Skippable
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@FORMATS
def test_a_training_checkpoint(torch, tmp_path, zipped, lightning):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    whole = {
        "epoch": 3, "global_step": 2**40, "rate": 0.1, "pytorch-lightning_version": "1.4.2",
        "callbacks": {Skippable: {"best": torch.tensor(0.5), "path": None}, "other": Skippable(7)},
        "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [{"last": np.float64(2.0)}],
        "names": {"a"}, "state_dict": model.state_dict(), "when": (1.5, [True]),
    }  # fmt: skip
    path = save(torch, whole, tmp_path / "a.ckpt", zipped)
    found = StateDict(path)
    assert list(found) == ["weight", "bias"] and found.shape("weight") == (2, 3)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(found.read(name), tensor.numpy())
    found.close()
    with pytest.raises(UserError, match="is a dict, so that it is not a dictionary of tensors"):
        read_state_dict(save(torch, {"a": whole}, path, zipped))
    assert "callbacks.Skippable" in refusal(save(torch, {"a": Skippable(1)}, path, zipped))


@FORMATS
def test_code_besides_the_weights_is_refused_and_not_run(torch, tmp_path, zipped):
    marker = tmp_path / "it-ran"
    value = {"state_dict": {"a": torch.ones(2)}, "callbacks": [Malicious(marker)]}
    path = save(torch, value, tmp_path / "evil.ckpt", zipped)
    with pytest.raises(UserError, match=r"system.*never executed") as error:
        StateDict(path)
    assert "\n" not in str(error.value) and not marker.exists()


def test_a_corrupt_storage_is_found_as_it_is_read(torch, tmp_path):
    path = save(torch, {"a": torch.zeros(1000), "b": torch.ones(1000)}, tmp_path / "a.ckpt", True)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(struct.pack("<2f", 1, 1), struct.pack("<2f", 1, 2), 1))
    found = StateDict(path)
    assert not found.read("a").any()
    with pytest.raises(UserError, match="corrupt"):
        found.read("b")


NUMBERS = struct.pack("<4f", 1, 2, 3, 4)


def pickled(*, length=4, offset=0, shape=(4,), strides=(1,)):
    """A data.pkl of one tensor "a", put together without torch."""

    def code(value):
        return pickle.dumps(value, protocol=2)[2:-1]

    storage = (
        b"(" + code("storage") + b"ctorch\nFloatStorage\n" + code("0") + code("cpu") + code(length)
    ) + b"tQ"
    rest = b"".join(code(value) for value in (offset, shape, strides, False, {}))
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"
    return b"\x80\x02}" + code("a") + tensor + b"s."


def write_zip(path, data, numbers=NUMBERS, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", numbers)
        archive.writestr("archive/version", "3\n")
    return path


def test_the_hand_made_file_is_a_good_one(torch, tmp_path):
    path = write_zip(tmp_path / "a.pth", pickled())
    np.testing.assert_array_equal(read_state_dict(path)["a"], [1, 2, 3, 4])
    np.testing.assert_array_equal(torch.load(path)["a"], [1, 2, 3, 4])


@pytest.mark.parametrize(
    "changes",
    [
        {"length": 2**40},
        {"length": 2**200},
        {"length": -4},
        {"shape": (2**40,), "strides": (0,)},
        {"shape": (5,)},
        {"shape": (2, 2), "strides": (3, 1)},
        {"shape": (2,), "strides": (2**70,)},
        {"shape": (2, 2)},
        {"shape": (-1,)},
        {"shape": (1.0,)},
        {"shape": (1,) * 100, "strides": (1,) * 100},
        {"shape": (0, 2**70), "strides": (1, 1)},
        {"offset": 1},
        {"offset": -1},
    ],
)
def test_impossible_tensors_are_refused(tmp_path, changes):
    refusal(write_zip(tmp_path / "a.pth", pickled(**changes)))


def test_other_zip_files_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    write_zip(path, pickled(), compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(path)
    write_zip(path, pickled(), numbers=b"1234")
    refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "data.pkl" in refusal(path)
    with zipfile.ZipFile(write_zip(path, pickled()), "a") as archive:
        archive.writestr("archive/byteorder", "big")
    assert "big-endian" in refusal(path)


def test_what_is_no_state_dict_is_refused(torch, tmp_path):
    path = tmp_path / "a.pth"
    assert "formats" in refusal_of(path, b"")
    assert "formats" in refusal_of(path, b"<!DOCTYPE html><html>404")
    assert "magic" in refusal_of(path, pickle.dumps(7, protocol=2))
    for value in ({"epoch": 3}, {"state_dict": {"a": torch.ones(1)}}, torch.ones(1), {1: 2}):
        assert "dictionary of tensors" in refusal(save(torch, value, path, True))
    assert "Linear" in refusal(save(torch, torch.nn.Linear(1, 1), path, True))


def refusal_of(path, content):
    path.write_bytes(content)
    return refusal(path)


def test_missing_files_and_folders(tmp_path):
    assert "no file" in refusal(tmp_path / "none.pth")
    assert "cannot open" in refusal(tmp_path)


def test_several_state_dicts(torch, tmp_path):
    path = tmp_path / "adapter.bin"
    torch.save({"proj": {"a.weight": torch.ones(2)}, "attn": {"1.k": torch.zeros(1, 3)}}, path)
    stored = StateDict(path)
    assert {name: stored.shape(name) for name in stored} == {
        "proj.a.weight": (2,), "attn.1.k": (1, 3),
    }  # fmt: skip
    np.testing.assert_array_equal(stored.read("proj.a.weight"), [1, 1])


def test_torch_is_not_imported():
    import subprocess

    code = (
        "import sys, diffjax.perceptual.lpips, diffjax.perceptual.efficientnet_lite0; "
        "assert not {'torch', 'h5py', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
