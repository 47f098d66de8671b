"""From data back to the noise that a deterministic sampler would have made it from."""

from typing import Any

import jax
import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.sampling.samplers.loop import NoiseFn, Samples, run
from diffjax.types import Array, Data


def ddim_inversion(
    denoise: Denoiser,
    x_0: Data,
    *,
    grid: Grid,
    cond: Any = None,
    keep_trajectory: bool = False,
    iterations: int = 0,
) -> Samples:
    """DDIM run upwards: x_T such that `ddim` on the same grid leads back to about x_0.

    Song et al. 2021a, section 4.3: eps at x_s stands for eps at x_t, so the error of the way up and
    down is of order 1 in the step. With iterations, each step solves for the x_t whose own eps
    leads to x_s (a fixed point; Pan et al. 2023, "AIDI"), which is exact where it converges: at all
    but few steps.

    Args:
      denoise: x_t, t, cond -> Estimates.
      x_0: (B, ...) data.
      grid: the sampler's, falling as always; its signal must not be zero at the first time.
      cond: passed to the denoiser.
      keep_trajectory: whether to return every x_t, x_0 first.
      iterations: of the fixed point; each is one more evaluation a step.

    Returns:
      Samples, whose x_0 is x_T.

    Raises:
      ValueError: negative iterations, or a grid that begins at pure noise, from which no data
        can be recovered.
    """
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, not {iterations}")
    if grid.signal_scale[0] == 0:
        raise ValueError(
            "ddim_inversion needs some signal at the grid's first time: leave out the one of pure "
            "noise"
        )
    signal, noise = (column[::-1] for column in grid.scales)
    rising = Grid(grid.t[::-1], signal, noise)
    clean = noise[:-1] == 0
    ratio = signal[1:] / signal[:-1]
    columns = {
        "ratio": ratio,
        "of_eps": noise[1:] - ratio * noise[:-1],
        # At clean data there is no noise to estimate: the next time is asked instead.
        "t_at": np.where(clean, rising.t[1:], rising.t[:-1]),
    }

    def step(carry: None, x_s: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        def up(eps: Data) -> Data:
            return c["ratio"] * x_s + c["of_eps"] * eps

        x_t = up(denoise(x_s, c["t_at"].astype(c["t"].dtype), cond).eps)
        if iterations:
            x_t = jax.lax.fori_loop(
                0, iterations, lambda _, x: up(denoise(x, c["t_next"], cond).eps), x_t
            )
        return carry, x_t

    return run(
        step, x_0, grid=rising, coefficients=columns, key=None, keep_trajectory=keep_trajectory
    )
