"""A picture and random weights that several of these tests need."""

import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def picture():
    """(2, 32, 48, 3) in [-1, 1]: a disc, an edge and a ramp; the second one is mirrored."""
    rows, columns = np.mgrid[-1:1:32j, -1:1:48j]
    image = np.stack([rows, columns, rows * columns], axis=-1)
    image[rows**2 + columns**2 < 0.3] = [0.8, -0.6, 0.1]
    image[:, 36:] *= -0.5
    return jnp.asarray(np.stack([image, image[:, ::-1]]).astype(np.float32))


@pytest.fixture(scope="session")
def vgg16_module():
    """The convolutions of torchvision's VGG16 with random weights, as a torch module."""
    torch = pytest.importorskip("torch", reason="a second implementation of VGG16")
    torch.manual_seed(0)
    layers, inputs = [], 3
    for item in (64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3, "M"):
        if item == "M":
            layers.append(torch.nn.MaxPool2d(2))
        else:
            convolution = torch.nn.Conv2d(inputs, item, 3, padding=1)
            torch.nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, torch.nn.ReLU()]
            inputs = item
    return torch.nn.Sequential(*layers).requires_grad_(False)


@pytest.fixture(scope="session")
def vgg16_weights(vgg16_module):
    """Its state_dict, with torchvision's names."""
    return {f"features.{name}": value for name, value in vgg16_module.state_dict().items()}


@pytest.fixture(scope="session")
def vgg16_file(vgg16_weights, tmp_path_factory):
    import torch

    path = tmp_path_factory.mktemp("vgg16") / "vgg16.pth"
    torch.save(vgg16_weights, path)
    return str(path)
