import sys
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.losses.autoencoding import perceptual_distance
from diffjax.perceptual.lpips import lpips

CHANNELS = (64, 128, 256, 512, 512)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="a second implementation of LPIPS")


@pytest.fixture
def heads(torch):
    torch.manual_seed(1)
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(CHANNELS)}


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (3, 48, 33, 3)).astype(np.float32)
    return x, np.clip(x + rng.normal(0, 0.3, x.shape), -1, 1).astype(np.float32)


def distance(network, x, y):
    features = jax.jit(partial(network.apply, network.params))
    return perceptual_distance(features, jnp.asarray(x), jnp.asarray(y), weights=network.weights)


def torch_lpips(torch, module, heads, x, y):
    """LPIPS 0.1 for images (B, H, W, 3), as its paper and its layer of scaling have it."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    a, b = ((torch.from_numpy(i).permute(0, 3, 1, 2) - shift) / scale for i in (x, y))
    total, layer = torch.zeros(len(x)), 0
    for number, part in enumerate(module):
        a, b = part(a), part(b)
        if number in (3, 8, 15, 22, 29):
            units = [m / (m.square().sum(1, keepdim=True).sqrt() + 1e-10) for m in (a, b)]
            change = (units[0] - units[1]).square() * heads[f"lin{layer}.model.1.weight"]
            total += change.sum(1).mean((1, 2))
            layer += 1
    return total.numpy()


@pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
def test_distance_is_torchs(torch, vgg16_module, vgg16_weights, heads, pair, tmp_path, zipped):
    for name, value in (("vgg", vgg16_weights), ("heads", heads)):
        torch.save(value, tmp_path / f"{name}.pth", _use_new_zipfile_serialization=zipped)
    network = lpips(str(tmp_path / "vgg.pth"), str(tmp_path / "heads.pth"))
    (tmp_path / "vgg.pth").unlink()
    expected = torch_lpips(torch, vgg16_module, heads, *pair)
    np.testing.assert_allclose(distance(network, *pair), expected, rtol=1e-4)


def test_distance_is_the_lpips_packages(torch, vgg16_module, vgg16_file, pair, monkeypatch):
    """The package itself, with its published heads, on the same VGG16."""
    torchvision = types.ModuleType("torchvision")
    torchvision.models = types.ModuleType("torchvision.models")
    torchvision.models.vgg16 = lambda **_: types.SimpleNamespace(features=vgg16_module)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.models", torchvision.models)
    package = pytest.importorskip("lpips", reason="LPIPS' own implementation and heads")
    theirs = package.LPIPS(net="vgg", verbose=False)
    with torch.no_grad():
        expected = theirs(*(torch.from_numpy(i).permute(0, 3, 1, 2) for i in pair))
    np.testing.assert_allclose(
        distance(lpips(vgg16_file), *pair), expected[:, 0, 0, 0].numpy(), rtol=1e-4
    )


def refusal(vgg, torch, heads, path):
    torch.save(heads, path)
    with pytest.raises(UserError) as caught:
        lpips(vgg, str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_heads_that_do_not_fit(torch, vgg16_file, heads, tmp_path):
    path, name = tmp_path / "heads.pth", "lin2.model.1.weight"
    assert "negative" in refusal(vgg16_file, torch, heads | {name: heads[name] - 0.5}, path)
    assert "NaN" in refusal(vgg16_file, torch, heads | {name: heads[name] * np.nan}, path)
    assert "not LPIPS'" in refusal(vgg16_file, torch, heads | {name: heads[name][:, :9]}, path)
    del heads[name]
    assert "found nothing for lin2" in refusal(vgg16_file, torch, heads, path)


def test_no_package(vgg16_file, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps lpips"):
        lpips(vgg16_file)
