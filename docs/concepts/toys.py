"""What the pages of concepts draw with: data whose best denoiser is known, and figures of one look.

A mixture of Gaussians keeps its form under noise, so that its score, its posterior mean and its
density at every noise level are closed formulas: x_t is a mixture whose component k has the mean
signal m_k and the variances signal^2 v_k + noise^2, and given k

    E[x_0 | x_t] = m_k + signal v_k / (signal^2 v_k + noise^2) (x_t - signal m_k),           (1)

along each axis of that component. Sums over k are weighed by p(k | x_t).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import diffjax as dj
from diffjax import data
from diffjax.process import scales_like

# Okabe and Ito's colours, which people with any kind of colour blindness can tell apart.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PINK, SKY, GREY = "#CC79A7", "#56B4E9", "#6E6E6E"
COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY, "#000000")

plt.rcParams.update(
    {
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "figure.dpi": 110,
        "savefig.facecolor": "white",
        "axes.prop_cycle": plt.cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.labelsize": 10,
        "font.size": 9,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "image.cmap": "cividis",
        "lines.linewidth": 1.6,
    }
)


class Mixture(NamedTuple):
    """A mixture of K Gaussians in groups that share their axes.

    Attributes:
      means: (groups, n, D), in the axes of their group.
      axes: (groups, D, D) orthogonal: x in a group's axes is x @ axes.
      variances: (groups, D) along these axes.
      log_weights: (groups, n), of all groups together.
      shape: of one x_0; D is its size.
    """

    means: jax.Array
    axes: jax.Array
    variances: jax.Array
    log_weights: jax.Array
    shape: tuple[int, ...]


class _Posterior(NamedTuple):
    log_joint: jax.Array  # (groups, B, n) log p(x_t, k)
    x_0: jax.Array  # (groups, B, D): the mean of the group's components given x_t


def _posterior(mixture: Mixture, x_t: jax.Array, signal: Any, noise: Any) -> _Posterior:
    x = x_t.reshape(len(x_t), -1)
    signal, noise = (jnp.reshape(jnp.broadcast_to(a, (len(x),)), (-1, 1)) for a in (signal, noise))

    def of_group(means: Any, axes: Any, variances: Any, log_weights: Any) -> _Posterior:
        y = x @ axes
        total = signal**2 * variances + noise**2  # (B, D)
        # |y - signal m|^2 / total, expanded, so that nothing has the shape (B, n, D).
        squares = (
            (y**2 / total).sum(1)[:, None]
            - 2 * (signal * y / total) @ means.T
            + (signal**2 / total) @ (means**2).T
        )
        log_joint = log_weights - (squares + jnp.log(2 * jnp.pi * total).sum(1)[:, None]) / 2
        share = jax.nn.softmax(log_joint, axis=1)
        mean = share @ means
        x_0 = mean + signal * variances / total * (y - signal * mean)
        return _Posterior(log_joint, x_0 @ axes.T)

    return jax.vmap(of_group)(mixture.means, mixture.axes, mixture.variances, mixture.log_weights)


def best_denoiser(mixture: Mixture, schedule: dj.schedules.Schedule) -> dj.denoisers.Denoiser:
    """The denoiser that every loss of this library has its minimum at, equation (1).

    A condition is None or (B,) integers: the group that x_0 is of; -1 for any.
    """

    def denoise(x_t: jax.Array, t: Any, cond: Any = None) -> dj.Estimates:
        scales = scales_like(schedule, t, x_t)
        signal, noise = (jnp.reshape(a, (-1,)) if jnp.ndim(a) else a for a in scales)
        found = _posterior(mixture, x_t, signal, noise)
        log_share = jax.nn.logsumexp(found.log_joint, axis=2).T  # (B, groups)
        if cond is not None:
            wanted = cond[:, None]
            other = (wanted >= 0) & (wanted != jnp.arange(log_share.shape[1]))
            log_share = jnp.where(other, -jnp.inf, log_share)
        x_0 = jnp.einsum("bg,gbd->bd", jax.nn.softmax(log_share, axis=1), found.x_0)
        x_0 = x_0.reshape(x_t.shape)
        return dj.Estimates(x_0, dj.parametrisations.eps_from_x0(x_t, x_0, scales))

    return denoise


def log_density(mixture: Mixture, x: jax.Array, *, signal: float = 1.0, noise: float = 0.0) -> Any:
    """log q(x_t), (B,); of the data themselves by default."""
    log_joint = _posterior(mixture, x, signal, noise).log_joint
    return jax.nn.logsumexp(log_joint, axis=(0, 2))


def draw(mixture: Mixture, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """x_0 (count, ...) and the group of each."""
    of_k, of_noise = jax.random.split(key)
    _, n, size = mixture.means.shape
    k = jax.random.categorical(of_k, mixture.log_weights.reshape(-1), shape=(count,))
    g, i = k // n, k % n
    y = mixture.means[g, i] + jnp.sqrt(mixture.variances[g]) * jax.random.normal(
        of_noise, (count, size)
    )
    return jnp.einsum("bd,bed->be", y, mixture.axes[g]).reshape(count, *mixture.shape), g


def points(centres: Any, *, std: float = 0.1, weights: Any = None) -> Mixture:
    """Round Gaussians: centres (groups, n, D) or (n, D)."""
    centres = jnp.asarray(centres, jnp.float32)
    if centres.ndim == 2:
        centres = centres[None]
    groups, n, size = centres.shape
    weights = (
        jnp.ones((groups, n)) if weights is None else jnp.reshape(jnp.asarray(weights), (groups, n))
    )
    return Mixture(
        centres,
        jnp.tile(jnp.eye(size), (groups, 1, 1)),
        jnp.full((groups, size), std**2),
        jnp.log(weights / weights.sum()),
        (size,),
    )


def two_peaks() -> Mixture:
    """On the line: a third of the mass at -1, two thirds at 0.8."""
    return points([[-1.0], [0.8]], std=0.15, weights=[1 / 3, 2 / 3])


def spirals(arms: int = 2, *, std: float = 0.05, length: int = 40) -> Mixture:
    """In the plane: one group an arm."""
    s = np.linspace(0.1, 1.0, length)
    angle = 1.6 * np.pi * s + 2 * np.pi * np.arange(arms)[:, None] / arms
    return points(1.6 * s[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1), std=std)


def digits(*, bandwidth: float = 0.35, floor: float = 0.03, count: int = 130) -> Mixture:
    """A density of scikit-learn's digits: `count` images of each class, in [-1, 1], 8x8x1.

    Around each image is a Gaussian with the covariance of its class times bandwidth^2, and the
    images are moved towards their class's mean, so that the whole has the class's covariance;
    `floor` is the standard deviation of noise on all pixels.
    """
    source = data.load("digits")
    images = np.asarray(source.images, np.float64).reshape(len(source.images), -1) / 127.5 - 1
    labels = np.asarray(source.labels)
    means, axes, variances = [], [], []
    for label in range(10):
        x = images[labels == label][:count]
        mean = x.mean(0)
        spread, basis = np.linalg.eigh(np.cov(x.T))
        means.append((mean + np.sqrt(1 - bandwidth**2) * (x - mean)) @ basis)
        axes.append(basis)
        variances.append(bandwidth**2 * np.maximum(spread, 0) + floor**2)
    means, axes, variances = (
        jnp.asarray(np.stack(a), jnp.float32) for a in (means, axes, variances)
    )
    return Mixture(
        means, axes, variances, jnp.full(means.shape[:2], -np.log(10 * count)), (8, 8, 1)
    )


def real_digits(count: int, *, split: str = "test") -> tuple[jax.Array, jax.Array]:
    """(count, 8, 8, 1) in [-1, 1] and their labels, in turn 0, 1, 2, ..."""
    source = data.load("digits", split=split)
    labels = np.asarray(source.labels)
    order = [np.flatnonzero(labels == i % 10)[i // 10] for i in range(count)]
    images = np.asarray(source.images)[order]
    return jnp.asarray(images, jnp.float32) / 127.5 - 1, jnp.asarray(labels[order])


def panels(
    rows: int, columns: int, *, size: tuple[float, float] = (2.6, 2.6), **options: Any
) -> tuple[Figure, Any]:
    """A figure of rows x columns axes of `size` inches each."""
    return plt.subplots(rows, columns, figsize=(size[0] * columns, size[1] * rows), **options)


def plain(ax: Axes, title: str = "", *, limit: float | None = None) -> Axes:
    """Axes without ticks; square, of [-limit, limit], where a limit is given."""
    ax.set(xticks=[], yticks=[], title=title)
    ax.spines[:].set_visible(False)
    if limit is not None:
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    return ax


def scatter(ax: Axes, x: Any, *, colour: Any = BLUE, size: float = 3.0, **options: Any) -> None:
    """Points of the plane."""
    ax.scatter(*np.asarray(x).T, s=size, c=colour, linewidths=0, **options)


def pictures(
    images: Any, *, rows: Any = (), columns: Any = (), size: float = 0.78, title: str = ""
) -> Figure:
    """Images (rows, columns, H, W, 1) in [-1, 1] on a grid, with captions of rows and columns."""
    images = np.asarray(images)
    across, down = images.shape[1], images.shape[0]
    wide = 1.5 if len(rows) else 0.0
    fig, axes = plt.subplots(
        down,
        across,
        figsize=(size * across + wide, size * down + 0.3 * (len(columns) > 0)),
        squeeze=False,
    )
    for i in range(down):
        for j in range(across):
            ax = axes[i, j]
            ax.imshow(images[i, j, ..., 0], cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if i == 0 and j < len(columns):
                ax.set_title(str(columns[j]), fontsize=9)
        if i < len(rows):
            axes[i, 0].set_ylabel(rows[i], rotation=0, ha="right", va="center", fontsize=9)
    if title:
        fig.suptitle(title, fontsize=10)
    return fig
