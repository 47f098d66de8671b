"""`config.parallel.strategy` becomes what runs a training on several devices."""

from collections.abc import Callable, Mapping
from typing import Any

from diffjax.distributed.everywhere import Everywhere
from diffjax.distributed.fsdp import Fsdp
from diffjax.distributed.parallel import DataParallel, Strategy, check_divides
from diffjax.experiment.spec import from_table


def _pmap(config: Any) -> DataParallel:
    return DataParallel(config.train.batch_size, accumulate=_accumulate(config))


def _fsdp(config: Any) -> Fsdp:
    c = config.parallel
    made = Fsdp(fsdp=c.fsdp, min_size=c.min_size, overrides=c.overrides)
    check_divides(
        config.train.batch_size, devices=len(made.devices), accumulate=_accumulate(config)
    )
    return made


def _accumulate(config: Any) -> int:
    return config.train.get("accumulate", 1)  # an autoencoder's config has none


STRATEGIES: Mapping[str, Callable[[], Callable[[Any], Strategy]]] = {
    "pmap": lambda: _pmap,
    "fsdp": lambda: _fsdp,
}


def strategy(config: Any) -> Strategy:
    """What `config.parallel.strategy` names, over all devices.

    Raises:
      UserError: an unknown name, or a batch or mesh that does not divide among the devices.
    """
    return from_table(config.parallel.strategy, STRATEGIES, key="parallel.strategy")(config)


def is_sharded(config: Any) -> bool:
    """Whether a model is cut into parts under this config.

    Raises:
      UserError: an unknown strategy.
    """
    return from_table(config.parallel.strategy, STRATEGIES, key="parallel.strategy") is _fsdp


def to_compute(tree: Any, config: Any) -> Any:
    """Trained numbers where they are sampled and evaluated: a copy a device, or cut among all.

    A model is sampled on other devices than it was trained on, so the mesh and the overrides of its
    training do not count.

    Raises:
      UserError: an unknown strategy.
    """
    if is_sharded(config):
        return Fsdp(min_size=config.parallel.min_size).spread(tree)
    return Everywhere().copies(tree)
