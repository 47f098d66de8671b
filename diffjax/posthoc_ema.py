r"""Averages of any length after training, from a few that were stored on the way.

An average by `ema.power_decay` after t updates weighs the parameters by the profile

    p_{t,gamma}(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),   0 <= tau <= t.               (1)

Stored averages have such profiles p_i, and sum_i w_i average_i has sum_i w_i p_i. The w_i that come
nearest to a wanted profile p are those of

    min_w  integral (sum_i w_i p_i - p)^2 dtau   with   sum_i w_i = 1                        (2)

(Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section
3.2 and appendix C). The side condition is not the paper's: it costs next to nothing where (2) is
small, and where it is not, the paper's sum is off 1 and scales every parameter by it. Inner
products are, for t_a <= t_b,

    <p_a, p_b> = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1)
                 (t_a / t_b)^gamma_b / t_b                                                   (3)

and the cosine between two profiles,

    C_ab = ((2 gamma_a + 1) (2 gamma_b + 1))^1/2 / (gamma_a + gamma_b + 1)
           (t_a / t_b)^(gamma_b + 1/2).                                                        (4)

Training has steps where (1) is continuous. A step's weight is exactly the integral of (1) over it,
so the steps' error is (2)'s averaged over each step, and averaging makes no error larger: weights
from (1) serve a run of ten updates, too.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from diffjax.checks import checked
from diffjax.ema import gamma_from_sigma_rel


class Profile(NamedTuple):
    """Whose average it is: that of `ema.power_decay` after some updates.

    Attributes:
      step: updates made, from 1.
      sigma_rel: the width as a share of `step`, in (0, 12^-1/2].
    """

    step: int
    sigma_rel: float


@checked
def posthoc_weights(snapshots: Sequence[Profile], *, wanted: Profile) -> Float64[np.ndarray, " n"]:
    """The weights of (2): sum_i weights_i average_i is nearest to the wanted average.

    Profiles are brought to unit length first, so the matrix (4) has ones on its diagonal, and
    directions that float64 can't tell from nothing are left out (NumPy's lstsq). It stays solvable
    for snapshots that are nearly alike: 500 times and two widths have a condition number of 1e9.

    Args:
      snapshots: the stored averages, in any order.
      wanted: the average to make; snapshots after its step are used as well.

    Returns:
      (n,) float64 with a sum of 1. How far to trust them, `residual` says.

    Raises:
      ValueError: no snapshots, or a profile out of range.

    >>> stored = [Profile(step, width) for step in (500, 750, 1000) for width in (0.05, 0.1)]
    >>> abs(posthoc_weights(stored, wanted=Profile(1000, 0.05)).round(6)).tolist()
    [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    """
    if not snapshots:
        raise ValueError("expected at least one stored average, not none")
    lengths = _lengths(snapshots)
    cosines = _cosines(snapshots, snapshots)
    target = _cosines(snapshots, [wanted])
    # In units of the lengths the side condition of (2) is `counts @ solution = total`.
    counts, total = 1 / lengths, 1 / _lengths([wanted])[0]
    both = np.column_stack([target, counts])
    free, shift = np.linalg.lstsq(cosines, both, rcond=None)[0].T
    solution = free + shift * (total - counts @ free) / (counts @ shift)
    return solution / lengths / total


@checked
def residual(snapshots: Sequence[Profile], weights: np.ndarray, *, wanted: Profile) -> float:
    """||sum_i weights_i p_i - p|| / ||p||, the relative error of a reconstructed profile.

    0 is exact and 1 as bad as nothing at all. Snapshots of sigma_rel 0.05 and 0.10 at 20 even times
    give 0.002 for 0.075, 0.006 for 0.15, 0.06 for 0.25 and 0.09 for 0.02; more than about 0.1 is
    another average than the wanted one. Rounding alone leaves about 1e-8.

    Args:
      snapshots: the stored averages.
      weights: (n,) for example of `posthoc_weights`.
      wanted: the average that was to be made.

    Raises:
      ValueError: not one weight a snapshot, or a profile out of range.

    >>> from diffjax.posthoc_ema import Profile, posthoc_weights, residual
    >>> stored = [Profile(50 * i, width) for i in range(1, 21) for width in (0.05, 0.1)]
    >>> wanted = Profile(1000, 0.075)
    >>> round(residual(stored, posthoc_weights(stored, wanted=wanted), wanted=wanted), 3)
    0.002
    """
    if np.shape(weights) != (len(snapshots),):
        raise ValueError(f"expected {len(snapshots)} weights, not shape {np.shape(weights)}")
    profiles = [*snapshots, wanted]
    lengths = _lengths(profiles)
    error = np.append(weights, -1.0) * lengths / lengths[-1]
    squared = error @ _cosines(profiles, profiles) @ error
    return float(np.sqrt(max(squared, 0.0)))


def combine(trees: Iterable[Any], weights: np.ndarray) -> Any:
    """sum_i weights_i trees_i, leaf by leaf, summed in float64 on the host.

    Weights of both signs may be large, so float32 would lose digits. Trees are taken one at a time:
    a generator that loads them needs memory for two.

    Args:
      trees: pytrees of the same structure and shapes, with floating point leaves.
      weights: (n,) one a tree.

    Returns:
      NumPy arrays of the first tree's types.

    Raises:
      ValueError: not one weight a tree, trees that differ, or a leaf that is not floating point.

    >>> import numpy as np, diffjax as dj
    >>> trees = [{"w": np.array([1.0, 2.0])}, {"w": np.array([3.0, 2.0])}]
    >>> dj.posthoc_ema.combine(trees, np.array([2.0, -1.0]))["w"].tolist()
    [-1.0, 2.0]
    """
    weights = np.asarray(weights, np.float64)
    first, totals = None, []
    for i, (tree, weight) in enumerate(itertools.zip_longest(trees, weights.ravel())):
        if tree is None or weight is None:
            raise ValueError(
                f"expected one weight a tree, not {weights.size} weights for {i} trees"
            )
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        if first is None:
            first, totals = tree, [np.zeros(leaf.shape) for leaf in leaves]
            types = [leaf.dtype for leaf in leaves]
        _check_alike(tree, first)
        for total, leaf in zip(totals, leaves, strict=True):
            total += weight * leaf.astype(np.float64)
    if first is None:
        raise ValueError("expected at least one tree, not none")
    leaves = [np.asarray(total, kind) for total, kind in zip(totals, types, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(first), leaves)


def _check_alike(tree: Any, first: Any) -> None:
    """Raises ValueError where `combine` can't add two trees leaf by leaf."""
    found, expected = str(jax.tree.structure(tree)), str(jax.tree.structure(first))
    if found != expected:
        raise ValueError(f"expected trees of one structure, not {found} and {expected}")
    for leaf, like in zip(jax.tree.leaves(tree), jax.tree.leaves(first), strict=True):
        if np.shape(leaf) != np.shape(like):
            raise ValueError(
                f"expected leaves of one shape, not {np.shape(leaf)} and {np.shape(like)}"
            )
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"expected floating point leaves, not {jnp.result_type(leaf)}")


def _columns(
    profiles: Sequence[Profile],
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """(n,) steps and gammas in float64."""
    for profile in profiles:
        if not profile.step >= 1:
            raise ValueError(f"a profile's step must be 1 or more, not {profile.step}")
    return (
        np.array([profile.step for profile in profiles], np.float64),
        np.array([gamma_from_sigma_rel(profile.sigma_rel) for profile in profiles]),
    )


def _lengths(profiles: Sequence[Profile]) -> Float64[np.ndarray, " n"]:
    """(n,) ||p||, the root of (3) at a = b."""
    t, gamma = _columns(profiles)
    return (gamma + 1) / np.sqrt((2 * gamma + 1) * t)


def _cosines(profiles: Sequence[Profile], others: Sequence[Profile]) -> Float64[np.ndarray, "n m"]:
    """(n, m), equation (4)."""
    (t, gamma), (t_other, gamma_other) = _columns(profiles), _columns(others)
    t, gamma = t[:, None], gamma[:, None]
    of_later = np.where(t > t_other, gamma, gamma_other)
    ratio = np.minimum(t, t_other) / np.maximum(t, t_other)
    scale = np.sqrt((2 * gamma + 1) * (2 * gamma_other + 1)) / (gamma + gamma_other + 1)
    return scale * ratio ** (of_later + 0.5)
