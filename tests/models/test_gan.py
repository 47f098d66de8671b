"""The networks of a GAN: sizes, classes, what each starts from, and gradients of all parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.models.gan import Discriminator, Generator

KEY = jax.random.key(0)


def made(network, *arguments):
    return jax.jit(network.init)(KEY, *arguments)["params"]


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (8, 12, 1)])
def test_images_of_any_size_that_can_be_halved(shape):
    channels = (4, 6, 8)
    generator, discriminator = Generator(shape, 3, channels), Discriminator(3, channels)
    z, label = jnp.ones((2, 5)), jnp.array([0, 2])
    x = jax.jit(lambda: generator.init_with_output(KEY, z, label)[0])()
    assert x.shape == (2, *shape)
    logits = jax.jit(lambda: discriminator.init_with_output(KEY, x, label)[0])()
    assert logits.shape == (2,)


def test_other_sizes_are_answered_by_those_that_would_do():
    z = jnp.ones((1, 5))
    with pytest.raises(UserError, match=r"27x30 can't be halved 2 times.*\(28, 32\).*fewer"):
        made(Generator((27, 30, 1)), z)
    with pytest.raises(UserError, match=r"image_size = \(28, 32\)"):
        made(Discriminator(), jnp.zeros((1, 27, 30, 1)))
    one_level = Generator((27, 30, 1), channels=(4,))
    made_at = jax.eval_shape(lambda: one_level.init_with_output(KEY, z)[0])
    assert made_at.shape == (1, 27, 30, 1)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_the_default_sizes_are_those_of_a_dcgan(shape):
    x, z, label = jnp.zeros((1, *shape)), jnp.zeros((1, 64)), jnp.zeros(1, jnp.int32)
    of_generator = jax.eval_shape(Generator(shape, 10).init, KEY, z, label)
    of_discriminator = jax.eval_shape(Discriminator(10).init, KEY, x, label)
    assert 0.8e6 < count(of_discriminator) < 2e6
    assert 0.8e6 < count(of_generator) < 2.6e6


def test_both_depend_on_the_class_and_are_without_one_if_asked():
    shape, channels = (4, 4, 1), (4, 4)
    z, x, label = jnp.ones((2, 5)), jnp.ones((2, *shape)), jnp.array([0, 1])
    for network, given in (
        (Generator(shape, 2, channels), z), (Discriminator(2, channels), x)
    ):  # fmt: skip
        (a, b), params = jax.jit(network.init_with_output)(KEY, given, label)
        assert float(jnp.abs(a - b).max()) > 1e-3
        without = jax.eval_shape(network.init, KEY, given)
        assert count(without) < count(params)


def test_a_blocks_last_kernel_starts_at_zero_unless_norms_are_to_be_one():
    x = jax.random.normal(KEY, (2, 4, 4, 1))

    def zeros(network):
        kernels = [v["kernel"] for k, v in made(network, x).items() if k.startswith("Conv3x3")]
        return sum(not np.any(kernel) for kernel in kernels)

    few, many = Discriminator(channels=(4, 6)), Discriminator(channels=(4, 6), blocks=3)
    assert (zeros(few), zeros(many), zeros(few.clone(zero=False))) == (2, 6, 0)


def test_the_penalty_grows_with_the_square_of_each_layer():
    """Without biases D is of degree 1 in its first and its last kernel, |grad_x D|^2 of degree 2.

    So by Euler's theorem its slope by such a kernel W has <slope, W> = 2 |grad_x D|^2.
    """
    x = jax.random.normal(KEY, (2, 4, 4, 1))
    network = Discriminator(channels=(4, 6), zero=False)

    def penalty(params):
        slope = jax.grad(lambda x: network.apply({"params": params}, x).sum())(x)
        return jnp.square(slope).sum()

    @jax.jit
    def found():
        params = network.init(KEY, x)["params"]
        return params, jax.value_and_grad(penalty)(params)

    params, (value, slopes) = found()
    assert value > 1e-4
    for name in ("Conv3x3_0", "Dense_1", "maps"):
        products = jax.tree.map(lambda a, b: (a * b).sum(), slopes[name], params[name])
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), 2 * value, rtol=1e-4)
