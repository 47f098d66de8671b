"""The patch discriminator: which patch a logit sees, and parity with PyTorch's layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models.discriminator import PatchDiscriminator
from diffjax.models.norm import default_groups
from tests.weights import normal_like


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_the_patch_that_the_docstring_says(layers, patch):
    network = PatchDiscriminator(channels=4, layers=layers)
    x = jax.random.normal(jax.random.key(0), (1, 96, 96, 1))
    params = network.init(jax.random.key(1), x)["params"]
    # Normalisation sees the whole map: constant statistics leave the convolutions' own view.
    convolutions = {k: v for k, v in params.items() if not k.startswith("norm")}

    def without_norm(x):
        h = x
        for i in range(layers + 1):
            kernel = convolutions[f"conv_{i}"]["kernel"]
            h = jax.lax.conv_general_dilated(
                h, jnp.abs(kernel), (2, 2) if i < layers else (1, 1), ((1, 1), (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
        return jax.lax.conv_general_dilated(
            h, jnp.abs(convolutions["head"]["kernel"]), (1, 1), ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    middle = without_norm(x).shape[1] // 2
    seen = jax.grad(lambda x: without_norm(x)[0, middle, middle, 0])(x)[0, :, :, 0] != 0
    assert (int(seen.any(1).sum()), int(seen.any(0).sum())) == (patch, patch)


def test_it_is_that_of_torch():
    torch = pytest.importorskip("torch", reason="parity with PyTorch's layers")
    network = PatchDiscriminator(channels=8, layers=2)
    x = jax.random.normal(jax.random.key(0), (2, 28, 20, 1))
    shapes = jax.eval_shape(network.init, jax.random.key(1), x)["params"]
    params = normal_like(shapes, scale=0.3)

    def tensor(value):
        return torch.tensor(np.asarray(value))

    stack = []
    for name, stride in (("conv_0", 2), ("conv_1", 2), ("conv_2", 1), ("head", 1)):
        kernel = np.asarray(params[name]["kernel"]).transpose(3, 2, 0, 1)
        bias = params[name].get("bias")
        conv = torch.nn.Conv2d(*kernel.shape[1::-1], 4, stride, 1, bias=bias is not None)
        conv.weight.data = tensor(kernel)
        if bias is not None:
            conv.bias.data = tensor(bias)
        stack.append(conv)
        if name in ("conv_1", "conv_2"):
            theirs = params[name.replace("conv", "norm")]
            norm = torch.nn.GroupNorm(default_groups(kernel.shape[0]), kernel.shape[0])
            norm.weight.data, norm.bias.data = tensor(theirs["scale"]), tensor(theirs["bias"])
            stack.append(norm)
        if name != "head":
            stack.append(torch.nn.LeakyReLU(0.2))
    with torch.no_grad():
        expected = torch.nn.Sequential(*stack)(tensor(x).permute(0, 3, 1, 2))[:, 0]
    logits = network.apply({"params": params}, x)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_images_too_small_are_refused():
    with pytest.raises(ValueError, match=r"at least 16 pixels, not 8x8: use fewer layers"):
        PatchDiscriminator().init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
