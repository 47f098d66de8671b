"""Train states as checkpoints store them.

Field names on disk are those of version 0.1, so that its runs can be continued.
"""

from typing import Any, NamedTuple

import optax

from diffjax.training.autoencoder_objective import StageHistory
from diffjax.training.objective import ObjectiveState
from diffjax.training.train_step import TrainState


class StoredObjective(NamedTuple):
    """What is stored of an `ObjectiveState`: all but what is frozen."""

    params: Any
    history: Any


class StoredDiffusion(NamedTuple):
    """A diffusion model's stored state; see `TrainState`."""

    step: Any
    params: Any
    opt_state: Any
    ema_params: Any
    learned: StoredObjective
    learned_opt_state: Any
    profiles: tuple[Any, ...]


class StoredAutoencoder(NamedTuple):
    """An autoencoder's stored state; `discriminator` is {"params", "opt_state"}, or {} for none."""

    step: Any
    params: Any
    opt_state: Any
    ema_params: Any
    codebook: Any
    discriminator: Any
    scaling: Any


def store_diffusion(state: TrainState) -> StoredDiffusion:
    """The stored form of a state."""
    learned = StoredObjective(*state.objective_state[:2])
    return StoredDiffusion(*state._replace(objective_state=learned))  # type: ignore[arg-type]


def restore_diffusion(stored: StoredDiffusion, *, frozen: Any = None) -> TrainState:
    """The inverse of `store_diffusion`, with the frozen arrays of the objective."""
    learned = ObjectiveState(*stored.learned, frozen=frozen)
    return TrainState(*stored._replace(learned=learned))  # type: ignore[arg-type]


def store_autoencoder(state: TrainState) -> StoredAutoencoder:
    """The stored form of a state."""
    params, history, _ = state.objective_state
    discriminator = {"params": params, "opt_state": state.objective_opt_state} if params else {}
    return StoredAutoencoder(
        *state[:4], codebook=history.codebook, discriminator=discriminator, scaling=history.scaling
    )


def restore_autoencoder(stored: StoredAutoencoder) -> TrainState:
    """The inverse of `store_autoencoder`."""
    history = StageHistory(stored.codebook, stored.scaling)
    if not stored.discriminator:
        return TrainState(*stored[:4], ObjectiveState({}, history), optax.EmptyState())
    return TrainState(
        *stored[:4],
        ObjectiveState(stored.discriminator["params"], history),
        stored.discriminator["opt_state"],
    )
