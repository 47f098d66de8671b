"""`config.evaluate.features`: the network whose features a Fréchet distance is measured in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffjax.errors import UserError
from diffjax.experiment.spec import from_spec, is_path
from diffjax.perceptual import EmbeddingNetwork

KEY = "evaluate.features"


def _efficientnet_lite0() -> EmbeddingNetwork:
    from diffjax.perceptual.efficientnet_lite0 import efficientnet_lite0_embedding

    return efficientnet_lite0_embedding()


def _inception(*, file: str = "") -> EmbeddingNetwork:
    from diffjax.perceptual.inception import inception

    return inception(file)


# "auto" and "classifier" are of the data set, not networks of their own.
FEATURES: Mapping[str, Callable[..., EmbeddingNetwork | None]] = {
    "auto": lambda: None,
    "classifier": lambda: None,
    "efficientnet_lite0": _efficientnet_lite0,
    "inception": _inception,
}


def features(config: Any, class_names: tuple[str, ...]) -> EmbeddingNetwork | None:
    """The network of `config.evaluate.features`, or None for the data set's own classifier.

    "auto" is the classifier for sets of two classes or more, and efficientnet_lite0 for others.

    Args:
      config: the config.
      class_names: of the training set.

    Raises:
      UserError: an unknown name or path, weights that are not installed or can't be read, or the
        classifier of a set without classes.
    """
    text = config.evaluate.features
    labelled = len(class_names) >= 2
    if text.strip() == "classifier" and not labelled:
        raise UserError(
            f"config.{KEY} = {text!r} needs a labelled set of two classes or more, and "
            f"{config.data.name!r} has {len(class_names)}: set it to 'efficientnet_lite0', or add "
            "labels (one sub-folder a class, or labels.csv)"
        )
    if text.strip() == "auto" and not labelled:
        return _efficientnet_lite0()
    network = from_spec(text, FEATURES, key=KEY)
    if is_path(text) and not isinstance(network, EmbeddingNetwork):
        raise UserError(
            f"config.{KEY} = {text!r} is a {type(network).__name__}: expected a "
            "diffjax.perceptual.EmbeddingNetwork"
        )
    return network
