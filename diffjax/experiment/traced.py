"""Checks of a resolved diffusion config by its data or a trace, before anything is computed."""

from typing import Any

import jax
import numpy as np

from diffjax.errors import UserError
from diffjax.experiment.model import as_user_error, check_sampling, stand_in
from diffjax.experiment.spec import is_path, parse_spec

CLIP_EXAMPLES = 512  # examples used to check that config.sample.threshold does not clip the data


def check_threshold(setup: Any) -> None:
    """Checks that thresholding does not clip data that are not images.

    Args:
      setup: a `diffusion.Experiment`.

    Raises:
      UserError: it does.
    """
    text = setup.config.sample.threshold
    spec = parse_spec(text, key="sample.threshold")
    if setup.space.images or spec.path not in ("clip", "dynamic"):
        return
    some = [setup.source[i]["image"] for i in range(min(CLIP_EXAMPLES, len(setup.source)))]
    low, high = float(np.min(some)), float(np.max(some))
    bounds = (spec.arguments.get("low", -1.0), spec.arguments.get("high", 1.0))
    if low < bounds[0] or high > bounds[1]:
        raise UserError(
            f"config.sample.threshold = {text!r} keeps samples within [{bounds[0]:g}, "
            f"{bounds[1]:g}], and the data is in [{low:.3g}, {high:.3g}]: set it to 'none'"
        )


def trace(setup: Any, *, trains: bool) -> None:
    """Traces the first state, a train step and a sampler around a stand-in for the network.

    Args:
      setup: a `diffusion.Experiment`.
      trains: whether it is trained; else the sampler is traced alone.

    Raises:
      UserError: invalid arguments of any of them.
    """
    if not trains:
        check_sampling(setup.model, setup.generator)
        return
    if not is_path(setup.config.diffusion.objective):  # a user's loss may depend on the network
        network = stand_in(setup.network, setup.diffusion, setup.space.shape[-1])
        setup = setup._replace(adapted=None).with_network(network)
    with as_user_error(setup.config):
        batch = setup.batch_shapes(setup.config.train.accumulate)
        jax.eval_shape(setup.train_step(), setup.state_shapes(), batch)
    check_sampling(setup.model, setup.generator)
