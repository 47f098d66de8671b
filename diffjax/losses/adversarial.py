r"""Losses of a generator G and a discriminator D that tells data x from samples G(z).

R3GAN (Huang et al. 2024, "The GAN is dead; long live the GAN! A modern GAN baseline", section 2)
compares each sample with a real image (Jolicoeur-Martineau 2019) and keeps D smooth on both:

    L_D = E softplus(-(D(x) - D(G(z)))) + gamma / 2 (R_1 + R_2)                             (1)
    L_G = E softplus(-(D(G(z)) - D(x)))                                                     (2)
    R_1 = E |grad_x D(x)|^2,    R_2 = E |grad_x D(G(z))|^2                                  (3)

With the penalties, gradient descent on (1) and (2) together converges near the solution (the
paper's proposition 2). The hinge loss judges both kinds of images on their own, and D is kept
smooth by the spectral norm of its kernels (Miyato et al. 2018).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from diffjax.checks import checked
from diffjax.types import Array, Data, PerExample, PRNGKey


@checked
def relativistic_discriminator_loss(
    real_logits: PerExample, fake_logits: PerExample
) -> Float[Array, ""]:
    """E softplus(-(D(real) - D(fake))), equation (1) without penalties; pairs are by position.

    Args:
      real_logits, fake_logits: (B,) D of real images and of samples.

    Returns:
      A scalar; log 2 where D sees no difference.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> same, apart = jnp.array([2.0]), jnp.array([-18.0])
    >>> loss = dj.adversarial.relativistic_discriminator_loss
    >>> print(f"{loss(same, same):.3f} {loss(same, apart):.3f}")  # log 2, and 0 far apart
    0.693 0.000
    """
    return jax.nn.softplus(fake_logits - real_logits).mean()


@checked
def relativistic_generator_loss(
    real_logits: PerExample, fake_logits: PerExample
) -> Float[Array, ""]:
    """E softplus(-(D(fake) - D(real))), equation (2).

    Args:
      real_logits, fake_logits: as in `relativistic_discriminator_loss`.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> real, fake = jnp.array([2.0]), jnp.array([-18.0])
    >>> loss = dj.adversarial.relativistic_generator_loss
    >>> print(f"{loss(real, real):.3f} {loss(real, fake):.3f}")  # log 2, and the whole distance
    0.693 20.000
    """
    return jax.nn.softplus(real_logits - fake_logits).mean()


@checked
def gradient_penalty(logits_of: Callable[[Array], Array], x: Data) -> tuple[PerExample, PerExample]:
    """D(x), and |grad_x D(x)|^2 of equation (3) for each example (Mescheder et al. 2018, eq. 9).

    Args:
      logits_of: (B, ...) -> (B,), each of its example alone.
      x: (B, ...), real or generated.

    Returns:
      (B,) logits, which cost nothing more, and (B,) penalties.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> logits_of = lambda x: x @ jnp.array([3.0, 4.0])
    >>> logits, penalties = dj.adversarial.gradient_penalty(logits_of, jnp.array([[1.0, 1.0]]))
    >>> print(logits, penalties)  # 3^2 + 4^2
    [7.] [25.]
    """
    logits, backward = jax.vjp(logits_of, x)
    (slope,) = backward(jnp.ones_like(logits))
    return logits, jnp.square(slope).sum(tuple(range(1, x.ndim)))


@checked
def hinge_discriminator_loss(real_logits: Array, fake_logits: Array) -> Float[Array, ""]:
    """E max(0, 1 - D(real)) + E max(0, 1 + D(fake)) (Lim & Ye 2017; Miyato et al. 2018), halved.

    Args:
      real_logits, fake_logits: of any shape.

    Returns:
      A scalar.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> loss, none = dj.adversarial.hinge_discriminator_loss, jnp.zeros(2)
    >>> print(loss(none, none), loss(none + 1.5, none - 1.5))  # beyond the margins it is 0
    1.0 0.0
    """
    return (jax.nn.relu(1 - real_logits).mean() + jax.nn.relu(1 + fake_logits).mean()) / 2


@checked
def hinge_generator_loss(fake_logits: Data) -> PerExample:
    """-D(fake) for each image: (B, ...) -> (B,).

    Lim & Ye 2017; Miyato et al. 2018.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> maps = jnp.array([[1.0, 3.0], [0.0, -1.0]])  # logits of two patches of each image
    >>> print(dj.adversarial.hinge_generator_loss(maps))
    [-2.   0.5]
    """
    return -fake_logits.mean(tuple(range(1, fake_logits.ndim)))


@checked
def spectral_norm(params: Any, directions: Any) -> tuple[Any, Any]:
    """Each kernel over its largest singular value (Miyato et al. 2018, equation 8, algorithm 1).

    A kernel is a matrix of all of its axes but the last one times the last one. Its singular value
    is that of one power iteration from where the last call ended, through which no gradient passes.

    Args:
      params: a tree of arrays; those of one axis or none, such as biases, are left as they are.
      directions: of the last call, or of `initial_directions`.

    Returns:
      The kernels, and the directions for the next call.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> params = {"kernel": jnp.array([[4.0, 0.0], [0.0, 2.0]]), "bias": jnp.array([3.0, 3.0])}
    >>> directions = {"kernel": jnp.array([1.0, 0.0]), "bias": jnp.ones(1)}  # converged
    >>> normed, directions = dj.adversarial.spectral_norm(params, directions)
    >>> print(normed["kernel"].ravel(), normed["bias"])
    [1.  0.  0.  0.5] [3. 3.]
    """

    def one(kernel: Array, u: Array) -> tuple[Array, Array]:
        if kernel.ndim < 2:
            return kernel, u
        matrix = kernel.reshape(-1, kernel.shape[-1])
        fixed = jax.lax.stop_gradient(matrix)
        v = _unit(fixed @ u)
        u = _unit(v @ fixed)
        return kernel / jnp.maximum(v @ matrix @ u, 1e-12), u

    pairs = jax.tree.map(one, params, directions)
    first, second = (jax.tree.map(lambda _, pair, i=i: pair[i], params, pairs) for i in (0, 1))
    return first, second


@checked
def initial_directions(params: Any, key: PRNGKey) -> Any:
    """A random unit vector for each kernel: (C,), of its last axis; (1,) for what is no kernel.

    Args:
      params: a tree of arrays.
      key: a PRNG key.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> params = {"kernel": jnp.ones((3, 3, 8, 16))}
    >>> u = dj.adversarial.initial_directions(params, jax.random.key(0))["kernel"]
    >>> print(f"{u.shape} {jnp.square(u).sum():.3f}")
    (16,) 1.000
    """
    numbers = iter(range(len(jax.tree.leaves(params))))

    def one(leaf: Array) -> Array:
        width = leaf.shape[-1] if leaf.ndim > 1 else 1
        return _unit(jax.random.normal(jax.random.fold_in(key, next(numbers)), (width,)))

    return jax.tree.map(one, params)


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum() + 1e-24)
