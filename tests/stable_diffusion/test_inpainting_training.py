"""Training of inpainting networks: a step against torch's, and the masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import data, rng
from diffjax.experiment import kinds
from diffjax.latent import random_masks
from diffjax.training.objective import LossInputs
from tests.stable_diffusion.test_fine_tuning import (
    begun,
    cache,
    parameters,
    pictures,
    small,
    texts_of,
    train,
    training,
)

FIXTURES = cache, pictures, small


@pytest.mark.usefixtures("cache")
def test_a_step_is_torchs(tiny, small, pictures):
    import torch

    folder, network, pipeline = small("sd15_inpaint")
    setup = kinds.resolve(training(folder, pictures, diffusion__condition_dropout=0.0))
    state = begun(setup)
    batch = next(setup.batches())
    _, metrics = jax.jit(setup.train_step())(state, batch)

    def key(name):
        return rng.stream(2, name, 0)

    indices = jnp.arange(4)
    x_0, _ = setup.space.read(jax.tree.map(jnp.asarray, batch), key=key, indices=indices)
    inputs = LossInputs(x_0, None, key, indices, 4, state.step)
    draws = setup.objective.draw(state.objective_state, inputs)
    source = data.load(f"folder:{pictures}", image_size=16)
    rows = next(data.batches(source, batch_size=4, seed=2))
    np.testing.assert_array_equal(batch["pixels"], rows["image"])
    known = rng.per_example(key("mask"), indices, lambda k: random_masks.known(k, (16, 16)))
    assert 0 < known.mean() < 1
    masked = tiny.nchw(np.where(known > 0.5, rows["image"] / np.float32(127.5) - 1, 0))
    # A latent is known if all four of its pixels are.
    drawn = torch.nn.functional.max_pool2d(1 - tiny.nchw(np.asarray(known)), 2)
    with torch.no_grad():
        latents = pipeline.vae.encode(masked).latent_dist.mean * pipeline.vae.config.scaling_factor
    tokens, _ = texts_of(pipeline, [source.captions[row] for row in rows["caption"]])
    n = torch.tensor(np.asarray(draws.t)).long() - 1
    eps = tiny.nchw(np.asarray(draws.eps))
    x_t = pipeline.scheduler.add_noise(tiny.nchw(np.asarray(x_0)), eps, n)
    network.zero_grad()
    output = network(torch.cat([x_t, drawn, latents], 1), n, encoder_hidden_states=tokens).sample
    loss = torch.nn.functional.mse_loss(output, eps)
    loss.backward()
    norm = torch.stack([p.grad.square().sum() for p in network.parameters()]).sum().sqrt()
    np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm.item(), rtol=1e-4)


def test_masks():
    keys = jax.random.split(jax.random.key(0), 400)
    masks = np.asarray(jax.vmap(lambda key: random_masks.known(key, (24, 32)))(keys))
    assert masks.shape == (400, 24, 32, 1) and set(np.unique(masks)) == {0.0, 1.0}
    share = masks.mean((1, 2, 3))
    # A quarter is unknown as a whole, and of most others there is some of both.
    assert 0.2 < (share == 0).mean() < 0.32
    assert ((share > 0) & (share < 1)).mean() > 0.6
    # No place is more likely than another by much, but for the edges.
    assert masks.mean(0)[4:-4, 4:-4].min() > 0.25 and masks.mean(0).max() < 0.75


def test_a_rectangle_and_a_stroke_are_what_they_should_be():
    for seed in range(20):
        key = jax.random.key(seed)
        boxes = np.asarray(random_masks.rectangles(key, (40, 40)))
        assert boxes.any()
        stroke = np.asarray(random_masks.strokes(key, (40, 40)))
        # A brush of at least 3 pixels, and at most 10, along 5 lines within the image.
        assert 3 <= stroke.sum() <= 5 * 10 * 57


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_a_run_is_resumed(small, pictures, tmp_path):
    folder = small("sd15_inpaint")[0]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for workdir, steps in ((whole, 2), (halves, 1), (halves, 2)):
        assert train(folder, pictures, workdir, f"--config.train.steps={steps}") == 0
    jax.tree.map(np.testing.assert_array_equal, parameters(whole), parameters(halves))
