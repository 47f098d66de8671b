"""The FID's Inception against the same network in PyTorch, with random weights."""

import jax
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.perceptual import inception as module
from diffjax.perceptual.inception import convolutions, inception

torch = pytest.importorskip("torch", reason="a second implementation of Inception")
functional = torch.nn.functional


class Conv(torch.nn.Module):
    def __init__(self, inputs, outputs, **options):
        super().__init__()
        self.conv = torch.nn.Conv2d(inputs, outputs, bias=False, **options)
        self.bn = torch.nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return functional.relu(self.bn(self.conv(x)))


def mean3(x):
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class A(torch.nn.Module):
    def __init__(self, inputs, pooled):
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, kernel_size=1)
        self.branch5x5_1 = Conv(inputs, 48, kernel_size=1)
        self.branch5x5_2 = Conv(48, 64, kernel_size=5, padding=2)
        self.branch3x3dbl_1 = Conv(inputs, 64, kernel_size=1)
        self.branch3x3dbl_2 = Conv(64, 96, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, kernel_size=3, padding=1)
        self.branch_pool = Conv(inputs, pooled, kernel_size=1)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(mean3(x))], 1)


class B(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.branch3x3 = Conv(288, 384, kernel_size=3, stride=2)
        self.branch3x3dbl_1 = Conv(288, 64, kernel_size=1)
        self.branch3x3dbl_2 = Conv(64, 96, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, kernel_size=3, stride=2)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)


class C(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        wide = {"kernel_size": (1, 7), "padding": (0, 3)}
        tall = {"kernel_size": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Conv(768, 192, kernel_size=1)
        self.branch7x7_1 = Conv(768, width, kernel_size=1)
        self.branch7x7_2 = Conv(width, width, **wide)
        self.branch7x7_3 = Conv(width, 192, **tall)
        self.branch7x7dbl_1 = Conv(768, width, kernel_size=1)
        self.branch7x7dbl_2 = Conv(width, width, **tall)
        self.branch7x7dbl_3 = Conv(width, width, **wide)
        self.branch7x7dbl_4 = Conv(width, width, **tall)
        self.branch7x7dbl_5 = Conv(width, 192, **wide)
        self.branch_pool = Conv(768, 192, kernel_size=1)

    def forward(self, x):
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = x
        for i in range(1, 6):
            double = getattr(self, f"branch7x7dbl_{i}")(double)
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(mean3(x))], 1)


class D(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.branch3x3_1 = Conv(768, 192, kernel_size=1)
        self.branch3x3_2 = Conv(192, 320, kernel_size=3, stride=2)
        self.branch7x7x3_1 = Conv(768, 192, kernel_size=1)
        self.branch7x7x3_2 = Conv(192, 192, kernel_size=(1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, kernel_size=(7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, kernel_size=3, stride=2)

    def forward(self, x):
        seven = x
        for i in range(1, 5):
            seven = getattr(self, f"branch7x7x3_{i}")(seven)
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, seven, functional.max_pool2d(x, 3, 2)], 1)


class E(torch.nn.Module):
    def __init__(self, inputs, pool):
        super().__init__()
        wide = {"kernel_size": (1, 3), "padding": (0, 1)}
        tall = {"kernel_size": (3, 1), "padding": (1, 0)}
        self.pool = pool
        self.branch1x1 = Conv(inputs, 320, kernel_size=1)
        self.branch3x3_1 = Conv(inputs, 384, kernel_size=1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, **wide), Conv(384, 384, **tall)
        self.branch3x3dbl_1 = Conv(inputs, 448, kernel_size=1)
        self.branch3x3dbl_2 = Conv(448, 384, kernel_size=3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, **wide), Conv(384, 384, **tall)
        self.branch_pool = Conv(inputs, 192, kernel_size=1)

    def forward(self, x):
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [
            self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        ]  # fmt: skip
        return torch.cat(parts, 1)


class Inception(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = Conv(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = Conv(80, 192, kernel_size=3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = A(192, 32), A(256, 64), A(288, 64)
        self.Mixed_6a = B()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = C(128), C(160), C(160), C(192)
        self.Mixed_7a = D()
        self.Mixed_7b = E(1280, mean3)
        self.Mixed_7c = E(2048, lambda x: functional.max_pool2d(x, 3, stride=1, padding=1))
        self.fc = torch.nn.Linear(2048, 1008)

    def forward(self, images):
        """(B, 3, H, W) in [0, 1] -> (B, 2048)."""
        x = functional.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2 * x - 1)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return functional.adaptive_avg_pool2d(x, 1).flatten(1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = Inception().eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.8, 1.2)
            torch.nn.init.normal_(layer.bias, std=0.1)
            torch.nn.init.normal_(layer.running_mean, std=0.1)
            torch.nn.init.uniform_(layer.running_var, 0.8, 1.2)
    return model


@pytest.fixture(scope="module")
def path(network, tmp_path_factory):
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(network.state_dict(), file)
    return file


def test_features_are_torchs_and_those_of_a_safetensors_file_too(network, path, tmp_path):
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(2, 40, 50, 3)), axis=1)
    images = ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)
    with torch.no_grad():
        wanted = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    found = inception(str(path))
    features = jax.jit(found.apply)(found.params, 2 * images - 1)
    assert features.shape == (2, found.dimensions)
    assert np.abs(features - wanted).max() <= 1e-4 * np.abs(wanted).max()
    # The two images differ by far more than the tolerance.
    assert np.abs(wanted[0] - wanted[1]).max() > 0.01 * np.abs(wanted).max()

    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(network.state_dict(), tmp_path / "inception.safetensors")
    again = module.read_params(tmp_path / "inception.safetensors")
    for name, part in again.items():
        np.testing.assert_array_equal(part["kernel"], found.params[name]["kernel"])


def test_the_layout_is_the_published_one(network):
    """Every convolution is there once, and nothing is left over but the classifier."""
    state = network.state_dict()
    ours = {name: (outputs, inputs, *kernel) for name, inputs, outputs, kernel in convolutions()}
    theirs = {
        name.removesuffix(".conv.weight"): tuple(value.shape)
        for name, value in state.items()
        if name.endswith(".conv.weight")
    }
    assert ours == theirs
    # Inception v3 has 94 convolutions; with batch normalisation 21,785,568 trained parameters.
    assert len(ours) == 94
    trained = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("fc"))
    assert trained == 21_785_568


def test_weights_of_another_file_are_no_fid(path):
    assert inception(str(path)).name.startswith("inception of ")


def test_other_files_are_refused(tmp_path, vgg16_file):
    with pytest.raises(UserError, match=r"not the FID's Inception.*Conv2d_1a_3x3"):
        inception(vgg16_file)
    with pytest.raises(UserError, match="cannot open"):
        inception(str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match="needs a file"):
        inception("")
