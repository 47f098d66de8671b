"""`config.model.lora`: adapters of a folder's network are trained, in the place of all of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffjax.errors import UserError
from diffjax.experiment.spec import from_table
from diffjax.models import lora
from diffjax.models.network import Network
from diffjax.types import Array

# The queries, keys, values and outputs of attention.
ATTENTION = r"(self|cross)\d+_(q|k|v|out)$"


class Lora(NamedTuple):
    """See `models.lora`."""

    rank: int
    alpha: float
    layers: str


def _lora(rank: int = 8, alpha: float | None = None, layers: str = ATTENTION) -> Lora:
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha must be above 0, not {alpha}")
    return Lora(rank, float(rank if alpha is None else alpha), layers)


LORAS: Mapping[str, Callable[..., Lora | None]] = {"none": lambda: None, "lora": _lora}


class Adapted(NamedTuple):
    """Adapters, and the parameters that they are trained on.

    Attributes:
      lora: rank, alpha and layers.
      shapes: of the frozen parameters, with jax.ShapeDtypeStruct for arrays.
      base: reads the frozen parameters.
      digest: changes with them.
    """

    lora: Lora
    shapes: Any
    base: Callable[[], Any]
    digest: str

    def init(self, key: Array) -> Any:
        """The adapters of step 0."""
        return lora.init(key, self.shapes, rank=self.lora.rank, layers=self.lora.layers)

    def merged(self, base: Any, adapters: Any) -> Any:
        """The network's parameters."""
        return lora.merge(base, lora.of_tree(adapters, alpha=self.lora.alpha))

    def apply(
        self, network: Network, frozen: Any, adapters: Any, *args: Any, **options: Any
    ) -> Array:
        """The output of a network of Linen modules, with the adapters' own paths."""
        with lora.intercepted(lora.of_tree(adapters, alpha=self.lora.alpha)):
            return network.apply(frozen, *args, **options)


def of_config(
    config: Any, *, shapes: Any, base: Callable[[], Any], digest: Callable[[], str]
) -> Adapted | None:
    """The adapters of `config.model.lora`; None for none.

    Raises:
      UserError: an unknown name, invalid arguments, or layers that the network does not have.
    """
    text = config.model.lora
    found: Lora | None = from_table(text, LORAS, key="model.lora")
    if found is None:
        return None
    try:
        lora.chosen(shapes, found.layers)
    except ValueError as error:
        raise UserError(f"config.model.lora = {text!r}: {error}") from None
    return Adapted(found, shapes, base, digest())
