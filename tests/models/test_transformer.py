"""Transformer blocks: masks, a start at the identity, and parity with diffusers' blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models.transformer import Context, SpatialTransformer
from tests.weights import moved

X = jax.random.normal(jax.random.key(0), (2, 4, 3, 16))
TOKENS = jax.random.normal(jax.random.key(1), (2, 5, 6))
MASK = jnp.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)


def randomised(module, *inputs, scale=0.2):
    params = module.init(jax.random.key(2), *inputs)["params"]
    return moved(params, scale=scale)


def test_it_starts_as_the_identity():
    module = SpatialTransformer(head_channels=8)
    params = module.init(jax.random.key(0), X, Context(TOKENS, MASK))
    np.testing.assert_array_equal(module.apply(params, X, Context(TOKENS, MASK)), X)


def test_what_the_mask_hides_changes_nothing_and_what_it_shows_does():
    # In float64: how a processor sums depends on the length, and float32 shows it.
    with jax.enable_x64(True):
        check_masks(SpatialTransformer(head_channels=8, depth=2, dtype=jnp.float64))


def check_masks(module):
    params = randomised(module, X, Context(TOKENS, MASK))

    def out(tokens, mask):
        return module.apply({"params": params}, X.astype(jnp.float64), Context(tokens, mask))

    hidden = jnp.where(MASK[..., None], TOKENS, 100.0)
    np.testing.assert_allclose(out(TOKENS, MASK), out(hidden, MASK), atol=1e-6)
    longer = jnp.pad(TOKENS, ((0, 0), (0, 4), (0, 0)), constant_values=7.0)
    padded = jnp.pad(MASK, ((0, 0), (0, 4)))
    np.testing.assert_allclose(out(TOKENS, MASK), out(longer, padded), atol=1e-6)
    assert jnp.abs(out(TOKENS, MASK) - out(TOKENS.at[:, 0].add(1.0), MASK)).min(-1).max() > 1e-4


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="head_channels must divide"):
        SpatialTransformer(head_channels=7).init(jax.random.key(0), X, None)


@pytest.mark.parametrize("depth", [1, 2])
def test_it_is_the_transformer_of_diffusers(depth):
    torch = pytest.importorskip("torch", reason="parity needs torch")
    peers = pytest.importorskip("diffusers", reason="parity needs diffusers")
    theirs = peers.Transformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=16, cross_attention_dim=6,
        norm_num_groups=4, num_layers=depth, use_linear_projection=True,
    ).eval()  # fmt: skip
    theirs.norm.eps = 1e-5
    module = SpatialTransformer(depth, head_channels=8)
    params = randomised(module, X, Context(TOKENS, MASK))

    def put(name, layer):
        layer = dict(layer)
        with torch.no_grad():
            target = theirs.get_submodule(name)
            kernel = layer.get("kernel", layer.get("scale"))
            target.weight.copy_(torch.tensor(np.asarray(kernel).T))
            if "bias" in layer:
                target.bias.copy_(torch.tensor(np.asarray(layer["bias"])))

    put("norm", params["norm"])
    put("proj_in", params["in"])
    put("proj_out", params["out"])
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        for number, kind in ((1, "self"), (2, "cross")):
            for part in "qkv":
                put(f"{block}.attn{number}.to_{part}", params[f"{kind}{i}_{part}"])
            put(f"{block}.attn{number}.to_out.0", params[f"{kind}{i}_out"])
        for number, kind in ((1, "self"), (2, "cross"), (3, "mlp")):
            put(f"{block}.norm{number}", params[f"norm{i}_{kind}"])
        put(f"{block}.ff.net.0.proj", params[f"mlp{i}_in"])
        put(f"{block}.ff.net.2", params[f"mlp{i}_out"])
    with torch.no_grad():
        wanted = theirs(
            torch.tensor(np.asarray(X)).permute(0, 3, 1, 2),
            encoder_hidden_states=torch.tensor(np.asarray(TOKENS)),
            encoder_attention_mask=torch.tensor(np.asarray(MASK)),
        ).sample.permute(0, 2, 3, 1)
    found = module.apply({"params": params}, X, Context(TOKENS, MASK))
    np.testing.assert_allclose(found, wanted.numpy(), atol=5e-5)
