"""The text network that is trained from scratch: against torch, padding, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax.conditioning.transformer import TextTransformer, TransformerLayer
from tests.weights import normal_like

NETWORK = TextTransformer(vocabulary=30, width=16, layers=2, heads=4, length=10)
IDS = jax.random.randint(jax.random.key(0), (3, 6), 2, 30)
MASK = jnp.arange(6) < jnp.array([6, 1, 4])[:, None]


def randomised(module, *inputs):
    """Parameters all drawn at random: ones and zeros would hide what is swapped."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return normal_like(shapes, scale=0.3)


def test_a_layer_is_torchs():
    torch = pytest.importorskip("torch", reason="a second implementation of the layer")
    x = jax.random.normal(jax.random.key(2), (3, 6, 16))
    layer = TransformerLayer(heads=4)
    params = randomised(layer, x, MASK)
    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), params["params"])
    theirs = torch.nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0.0, norm_first=True, batch_first=True, layer_norm_eps=1e-6,
        activation=lambda h: torch.nn.functional.gelu(h, approximate="tanh"),
    )  # fmt: skip
    a = p["attention"]
    with torch.no_grad():
        parts = [a[name] for name in ("query", "key", "value")]
        theirs.self_attn.in_proj_weight.copy_(torch.cat([part["kernel"].T for part in parts]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([part["bias"] for part in parts]))
        for module, ours in (
            (theirs.self_attn.out_proj, a["out"]),
            (theirs.linear1, p["expand"]),
            (theirs.linear2, p["contract"]),
        ):
            module.weight.copy_(ours["kernel"].T)
            module.bias.copy_(ours["bias"])
        for module, ours in (
            (theirs.norm1, p["attention_norm"]),
            (theirs.norm2, p["mlp_norm"]),
        ):
            module.weight.copy_(ours["scale"])
            module.bias.copy_(ours["bias"])
        mask = np.asarray(MASK)
        expected = theirs(torch.tensor(np.asarray(x)), src_key_padding_mask=torch.tensor(~mask))
    found = np.asarray(layer.apply(params, x, MASK))
    np.testing.assert_allclose(found[mask], expected.numpy()[mask], rtol=1e-4, atol=1e-4)


def test_padding_changes_nothing():
    params = randomised(NETWORK, IDS, MASK)
    tokens, pooled = NETWORK.apply(params, IDS, MASK)
    assert tokens.shape == (3, 6, 16) and pooled.shape == (3, 16)
    more_ids = jnp.pad(jnp.where(MASK, IDS, 3), ((0, 0), (0, 4)), constant_values=9)
    more, more_pooled = NETWORK.apply(params, more_ids, jnp.pad(MASK, ((0, 0), (0, 4))))
    np.testing.assert_allclose(more[:, :6], tokens, atol=1e-5)
    np.testing.assert_allclose(more_pooled, pooled, atol=1e-5)
    assert np.all(np.asarray(tokens)[~np.asarray(MASK)] == 0)


def test_every_word_sees_every_other_and_its_place():
    params = randomised(NETWORK, IDS, MASK)
    full = jnp.ones_like(MASK)
    tokens, _ = NETWORK.apply(params, IDS, full)
    for place in (0, 3, 5):
        other, _ = NETWORK.apply(params, IDS.at[0, place].add(1) % 30, full)
        moved = np.abs(other - tokens).max(-1)
        assert np.all(moved[0] > 1e-4) and np.all(moved[1:] == 0)
    _, one = NETWORK.apply(params, jnp.array([[4, 9]]), jnp.ones((1, 2), bool))
    _, other = NETWORK.apply(params, jnp.array([[9, 4]]), jnp.ones((1, 2), bool))
    assert np.abs(one - other).max() > 1e-3


def test_no_text_gives_zeros_and_finite_gradients():
    params = randomised(NETWORK, IDS, MASK)
    none = jnp.zeros_like(MASK)
    tokens, pooled = NETWORK.apply(params, IDS, none)
    assert np.all(np.asarray(tokens) == 0) and np.all(np.asarray(pooled) == 0)

    def loss(params):
        tokens, pooled = NETWORK.apply(params, IDS, none.at[0].set(MASK[0]))
        return jnp.square(tokens).sum() + jnp.square(pooled).sum()

    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(jax.grad(loss)(params)))


def test_bfloat16_is_near_float32():
    params = NETWORK.init(jax.random.key(0), IDS, MASK)
    low = NETWORK.clone(dtype=jnp.bfloat16)
    for one, exact in zip(
        low.apply(params, IDS, MASK), NETWORK.apply(params, IDS, MASK), strict=True
    ):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(jnp.float32), exact, atol=0.1)


def test_it_learns_the_order_of_words():
    """Whether 2 comes before 3: what a bag of words cannot tell."""
    ids = jnp.array([[2, 3], [3, 2]] * 4)
    mask = jnp.ones_like(ids, bool)
    target = jnp.array([1.0, -1.0] * 4)
    params = NETWORK.init(jax.random.key(0), ids, mask)
    optimiser = optax.adam(1e-2)

    def loss(params):
        return jnp.square(NETWORK.apply(params, ids, mask)[1][:, 0] - target).mean()

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state = optimiser.init(params)
    for _ in range(60):
        params, state, value = step(params, state)
    assert value < 0.05


@pytest.mark.parametrize(
    ("change", "message"), (({"heads": 3}, "can't have 3 heads"), ({"length": 5}, "takes up to 5"))
)
def test_wrong_sizes(change, message):
    with pytest.raises(ValueError, match=message):
        NETWORK.clone(**change).init(jax.random.key(0), IDS, MASK)
