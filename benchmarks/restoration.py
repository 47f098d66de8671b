"""How near inverse problems come to the image: 16 test images, degraded and restored.

    python -m benchmarks.restoration --workdir=runs/fashion_mnist_conditional-quick \
        --config=experiments/fashion_mnist_conditional.py:quick

prints root mean squares over pixels in [-1, 1]: of the restored images against the true ones, and
of what the operator makes of the restored ones against what was measured.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.program import exit_code
from diffjax import flags, grids, inverse_problems, samplers
from diffjax.experiment.dataset import load_split
from diffjax.experiment.diffusion import resolve
from diffjax.experiment.restore import restore_params
from diffjax.images import to_model_range

IMAGES, STEPS = 16, 100
DPS_SCALES = (10.0, 40.0, 80.0, 160.0, 320.0)
OPERATORS = {
    "means of 4x4 pixels": inverse_problems.average_pool(4),
    "a blur of std 1.5": inverse_problems.blur(inverse_problems.gaussian_kernel(1.5)),
}


def rms(x: Any) -> float:
    return float(jnp.sqrt(jnp.square(x).mean()))


def main(arguments: list[str]) -> None:
    """Restores and prints."""
    config, workdir, *_ = flags.parse([*arguments, "--config.sample.guidance=none"])
    setup = resolve(config)
    _, params = restore_params(setup, workdir)
    schedule, test = setup.diffusion.schedule, load_split(config, "test")
    x_0 = to_model_range(jnp.asarray(np.stack([test[i]["image"] for i in range(IMAGES)])))
    no_class = jnp.full(IMAGES, -1) if setup.conditions.num_classes else None
    key = jax.random.key(0)

    def restored(wrap: Callable[..., Any], params: Any, x_T: Any) -> Any:
        guided = wrap(setup.generator.guided(params), schedule)
        return samplers.ddim(
            setup.generator.threshold(guided), x_T, grid=grids.trailing(schedule, STEPS),
            key=key, cond=no_class, eta=1.0,
        ).x_0  # fmt: skip

    for name, operator in OPERATORS.items():
        y = operator.apply(x_0)
        alone = jnp.clip(operator.pseudo_inverse(y), -1, 1)
        print(f"{name}: A+ alone: error {rms(alone - x_0):.3f}")
        methods: dict[str, Callable[..., Any]] = {
            f"DPS, scale {scale:g}": functools.partial(
                inverse_problems.posterior_sampling, scale=scale
            )
            for scale in DPS_SCALES
        }
        methods["pseudo-inverse guidance"] = functools.partial(
            inverse_problems.pseudo_inverse, inverse=operator.pseudo_inverse
        )
        for method, wrap in methods.items():
            wrap = functools.partial(wrap, operator=operator.apply, y=y)
            x = jax.jit(functools.partial(restored, wrap))(
                params, jax.random.normal(key, x_0.shape)
            )
            print(
                f"{name}: {method}: error {rms(x - x_0):.3f}, fit {rms(operator.apply(x) - y):.4f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
