"""`config.parallel`: the strategy for training on several devices."""

from collections.abc import Callable, Mapping
from typing import Any

from diffjax.distributed.fsdp import Fsdp
from diffjax.distributed.placement import Placement
from diffjax.distributed.strategy import DataParallel, Strategy, check_divides
from diffjax.experiment.spec import from_table


def _pmap(config: Any) -> DataParallel:
    return DataParallel()


def _fsdp(config: Any) -> Fsdp:
    c = config.parallel
    return Fsdp(fsdp=c.fsdp, min_size=c.min_size, overrides=c.overrides)


STRATEGIES: Mapping[str, Callable[[], Callable[[Any], Strategy]]] = {
    "pmap": lambda: _pmap,
    "fsdp": lambda: _fsdp,
}


def strategy(config: Any) -> Strategy:
    """The strategy of `config.parallel`, over all devices.

    Raises:
      UserError: an unknown name, or a batch or mesh that the number of devices does not divide.
    """
    made = from_table(config.parallel.strategy, STRATEGIES, key="parallel.strategy")(config)
    accumulate = config.train.get("accumulate", 1)  # an autoencoder's config has none
    check_divides(config.train.batch_size, devices=len(made.devices), accumulate=accumulate)
    return made


def is_sharded(config: Any) -> bool:
    """Whether the config shards a model's arrays.

    Raises:
      UserError: an unknown strategy.
    """
    return from_table(config.parallel.strategy, STRATEGIES, key="parallel.strategy") is _fsdp


def shardings(shapes: Any, config: Any) -> Any:
    """The shardings that `to_compute` places parameters by; None where they are replicated.

    Raises:
      UserError: an unknown strategy.
    """
    if not is_sharded(config):
        return None
    return Fsdp(min_size=config.parallel.min_size).shardings(shapes)


def to_compute(tree: Any, config: Any) -> Any:
    """Parameters on the devices that sample and evaluate: replicated, or sharded over all of them.

    A model may be sampled on other devices than those of its training, so the mesh and overrides of
    training are not used.

    Raises:
      UserError: an unknown strategy.
    """
    if is_sharded(config):
        return Fsdp(min_size=config.parallel.min_size).shard_state(tree)
    return Placement().replicate(tree)
