"""The maps of diffjax's small classifier, whose weights are included."""

from typing import Any

from diffjax.models.classifier import SMALLEST_SIDE, Classifier
from diffjax.perceptual.classifier_weights import SHIPPED_WEIGHTS, load_classifier
from diffjax.perceptual.feature_network import FeatureNetwork
from diffjax.perceptual.images import check_sides
from diffjax.types import Array


def classifier(file: str = "") -> FeatureNetwork:
    """A trained `models.classifier.Classifier`, with its running batch statistics.

    Args:
      file: an .npz written by `python -m diffjax.evaluation.classifier_features`; "" for the
        included one, trained on Fashion-MNIST's grey 28x28 images.

    Returns:
      a network whose maps have 32, 64 and 96 channels, at 1/2, 1/4 and 1/8 of the sides rounded
      up. It raises ValueError for images below 8x8 or with another number of channels than it was
      trained on.

    Raises:
      UserError: no such file, or one of another format.
    """
    trained = load_classifier(file or SHIPPED_WEIGHTS)
    model = Classifier(num_classes=len(trained.class_names))
    channels = trained.image_shape[-1]
    name = f"the {trained.data} classifier"

    def apply(variables: Any, images: Array) -> list[Array]:
        check_sides(images, SMALLEST_SIDE, name)
        if images.shape[-1] != channels:
            raise ValueError(
                f"got images of {images.shape[-1]} channels for {name}; expected {channels}, as in "
                "its training; train one on your own images with "
                "python -m diffjax.evaluation.classifier_features"
            )
        _, sown = model.apply(variables, images, train=False, mutable=["intermediates"])
        return list(sown["intermediates"]["maps"])

    return FeatureNetwork(name, trained.variables, apply)
