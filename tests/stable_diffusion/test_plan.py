"""What a folder needs, from its configs alone, against diffusers' numbers of parameters."""

import math
import shutil

import pytest

from diffjax.experiment import model_folder, plan, plan_sampling
from diffjax.models import lora
from diffjax.stable_diffusion import unet
from tests.stable_diffusion.test_config import config_of


@pytest.fixture
def configs(folders, tmp_path):
    """family -> (a folder without weights, diffusers' pipeline)."""

    def of(family):
        whole, pipeline = folders(family)
        folder = tmp_path / family
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors", "vocab*"))
        return folder, pipeline

    return of


def settled(folder, **changes):
    changes = {"parallel__compile": False, "model__dtype": "bfloat16"} | changes
    return model_folder.settled(config_of(folder, **changes))


def number(*networks):
    return sum(p.numel() for network in networks for p in network.parameters())


@pytest.mark.parametrize("family", ("sdxl_inpaint", pytest.param("sd21", marks=pytest.mark.slow)))
def test_a_plan_of_sampling(configs, family):
    folder, pipeline = configs(family)
    found = plan_sampling.plan_here(settled(folder, data__image_size=(32, 16)))
    texts = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
    texts = [encoder for encoder in texts if encoder is not None]
    assert found.network == number(pipeline.unet) and found.of_network == 2 * found.network
    assert found.texts == number(*texts) and found.of_texts == 2 * found.texts
    assert found.stage == number(pipeline.vae) and found.of_stage == 2 * found.stage
    assert found.size == (32, 16) and found.of_sampling is None
    text = plan.as_text(found)
    assert (
        f"network, {found.network / 1e6:.2f} M parameters" in text and "4 images of 32x16" in text
    )
    # Guidance takes two evaluations; twice the pixels take twice the work, but for attention.
    one = plan_sampling.plan_here(settled(folder, sample__guidance="none"))
    assert 3.5 < found.flops / one.flops < 4.6


@pytest.mark.slow
def test_temporary_memory_grows_with_the_batch(configs):
    folder, _ = configs("sd15")
    # What does not depend on the batch, such as weights in another type, is most of it here.
    few, more, many = (
        plan_sampling.plan_here(
            settled(folder, parallel__compile=True, sample__batch_size=count, sample__steps=2)
        )
        for count in (2, 10, 18)
    )
    for name in ("of_sampling", "of_decoding"):
        sizes = [getattr(one, name) for one in (few, more, many)]
        growth = sizes[1] - sizes[0]
        assert growth > 0 and 0.7 < (sizes[2] - sizes[1]) / growth < 1.4, sizes
    assert "total" in plan.as_text(few)


def test_a_plan_of_fine_tuning(configs):
    folder, pipeline = configs("sd15")
    config = settled(folder, data__name="folder:/no/such")
    found = plan.plan_here(config)
    size = number(pipeline.unet)
    assert found.parameters == size and found.of_parameters == found.of_averages == 4 * size
    assert found.of_folder == 2 * number(pipeline.text_encoder, pipeline.vae)

    config = settled(folder, data__name="folder:/no/such", model__lora="lora(rank=3)")
    adapters = plan.plan_here(config)
    kernels = lora.chosen(unet.read(folder / "unet").shapes(), r"(self|cross)\d_(q|k|v|out)")
    # Of 9 transformer blocks, 2 attentions of 4 maps each.
    assert len(kernels) == 8 * (2 + 1 + 3)
    assert adapters.parameters == sum(3 * sum(shape) for shape in kernels.values())
    # What is frozen is in half precision, and takes no moments.
    assert math.isclose(adapters.of_others, 2 * size, rel_tol=1e-3)
    assert adapters.flops < 0.8 * found.flops
