"""A U-Net's conditions: each is heard, none is a value like another, padding is nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.conditioning.transformer import TextTransformer
from diffjax.models import UNet
from diffjax.models.condition import (
    Condition,
    SpatialMap,
    Text,
    drop,
    drop_embedding,
    null,
)
from tests.weights import moved

X = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
T = jnp.array([3.0, 700.0])
MASK = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
SMALL = {"base_channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "head_channels": 8}


@pytest.fixture(scope="module")
def network():
    net = UNet(**SMALL, attention_resolutions=(8,), num_classes=3, text_width=5, map_channels=2)
    return net, parameters(net)


def parameters(net):
    return moved(jax.jit(net.init)(jax.random.key(1), X, T)["params"], scale=0.1)


def condition():
    tokens = jax.random.normal(jax.random.key(3), (2, 4, 5))
    pooled = jax.random.normal(jax.random.key(4), (2, 5))
    values = jax.random.normal(jax.random.key(5), (2, 8, 6, 2))
    return Condition(
        jnp.array([0, 2]), Text(tokens, MASK, pooled), SpatialMap(values, jnp.ones(2, bool))
    )


@functools.cache
def compiled(net):
    """One function a network: JAX would forget what it compiled for a bound method."""
    return jax.jit(net.apply)


def out(network, cond):
    net, params = network
    return np.asarray(compiled(net)({"params": params}, X, T, cond))


def test_padding_never_changes_the_output(network):
    cond = condition()
    text = cond.text
    padded = Text(
        jnp.pad(text.tokens, ((0, 0), (0, 3), (0, 0)), constant_values=9.0),
        jnp.pad(text.mask, ((0, 0), (0, 3))),
        text.pooled,
    )
    np.testing.assert_allclose(
        out(network, cond), out(network, cond._replace(text=padded)), atol=1e-5
    )


@pytest.mark.parametrize("part", ["label", "text", "map"])
def test_every_part_is_heard_and_can_be_left_out(network, part):
    cond = condition()
    without = cond._replace(**{part: getattr(null(cond), part)})
    absent = cond._replace(**{part: None})
    assert np.abs(out(network, cond) - out(network, without)).max() > 1e-3
    np.testing.assert_allclose(out(network, without), out(network, absent), atol=1e-5)


def test_a_dropped_condition_is_that_of_its_row_alone(network):
    cond = condition()
    some = out(network, drop(cond, jnp.array([True, False])))
    np.testing.assert_allclose(some[0], out(network, null(cond))[0], atol=1e-5)
    np.testing.assert_allclose(some[1], out(network, cond)[1], atol=1e-5)


def test_what_a_left_out_condition_holds_changes_nothing(network):
    cond = null(condition())
    other = cond._replace(
        text=cond.text._replace(tokens=cond.text.tokens + 1, pooled=cond.text.pooled - 2),
        map=cond.map._replace(values=cond.map.values + 3),
    )
    np.testing.assert_allclose(out(network, cond), out(network, other), atol=1e-5)


def test_an_array_stands_for_its_labels(network):
    labels = condition().label
    np.testing.assert_array_equal(out(network, labels), out(network, Condition(label=labels)))


@pytest.mark.parametrize("part", ["label", "text", "map"])
def test_a_condition_without_a_place_is_refused(part):
    net = UNet(**SMALL)
    with pytest.raises(ValueError, match=f"a {part} was given to a UNet that does not"):
        net.init(jax.random.key(0), X, T, Condition(**{part: getattr(condition(), part)}))


def test_a_map_of_another_size_is_refused(network):
    net, params = network
    cond = condition()
    wrong = cond.map._replace(values=cond.map.values[:, :4])
    with pytest.raises(ValueError, match="a map of"):
        net.apply({"params": params}, X, T, cond._replace(map=wrong))


@pytest.mark.slow
def test_a_text_network_is_trained_along():
    encoder = TextTransformer(7, width=8, layers=1, heads=2, length=4)
    net = UNet(**SMALL, text_width=8, text_encoder=encoder)
    params = parameters(net)
    ids = jnp.array([[2, 3, 4, 0], [5, 0, 0, 0]])

    def loss(params):
        return jnp.square(
            net.apply({"params": params}, X, T, Condition(text=Text(ids, MASK)))
        ).sum()

    slopes = jax.grad(loss)(params)["text_encoder"]
    assert all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(slopes["layer_0"]["expand"]))


def test_the_level_of_a_noised_map_is_heard_only_where_the_map_is():
    """The embedding's gradient and its parameters, with and without the level."""
    net = UNet(**SMALL, map_channels=2, map_level=True)
    params = parameters(net)
    values = jax.random.normal(jax.random.key(5), (2, 8, 6, 2))

    def loss(level, present):
        cond = Condition(map=SpatialMap(values, present, level))
        return jnp.square(compiled(net)({"params": params}, X, T, cond)[0]).sum()

    there = jax.grad(loss)(jnp.array([0.5, -3.0]), jnp.ones(2, bool))
    assert abs(there[0]) > 1e-4 and there[1] == 0.0  # the first example's own level alone
    np.testing.assert_array_equal(jax.grad(loss)(jnp.zeros(2), jnp.zeros(2, bool)), 0.0)
    without = jax.eval_shape(UNet(**SMALL, map_channels=2).init, jax.random.key(1), X, T)["params"]
    assert set(params) - set(without) == {"map_level"}


@pytest.mark.parametrize(("has", "given"), [(True, False), (False, True)])
def test_a_level_that_does_not_fit_the_network_is_named(has, given):
    net = UNet(**SMALL, map_channels=2, map_level=has)
    spatial = SpatialMap(
        jnp.zeros((2, 8, 6, 2)), jnp.ones(2, bool), jnp.zeros(2) if given else None
    )
    with pytest.raises(ValueError, match="map_level"):
        jax.eval_shape(net.init, jax.random.key(0), X, T, Condition(map=spatial))


@pytest.fixture(scope="module", params=[0, 5])
def decoder(request):
    """A network of image embeddings, with or without text next to them."""
    net = UNet(
        **SMALL, attention_resolutions=(8,), text_width=request.param, embedding_width=7
    )  # fmt: skip
    return net, parameters(net)


def test_an_image_embedding_is_heard_and_zeros_are_none(decoder):
    z = jax.random.normal(jax.random.key(6), (2, 7))
    cond = Condition(text=condition().text if decoder[0].text_width else None, embedding=z)
    first = out(decoder, cond)
    moved_by = out(decoder, cond._replace(embedding=z.at[0].add(1.0)))
    assert np.abs(first - moved_by).max((1, 2, 3))[0] > 1e-3
    np.testing.assert_array_equal(first[1], moved_by[1])
    nothing = out(decoder, cond._replace(embedding=jnp.zeros((2, 7))))
    if cond.text is None:
        np.testing.assert_array_equal(nothing, out(decoder, None))
    np.testing.assert_array_equal(nothing, out(decoder, cond._replace(embedding=None)))


def test_its_two_ways_in_are_both_of_use(decoder):
    """The tokens of cross-attention, and the vector that is added to that of the time."""
    net, params = decoder
    z = jax.random.normal(jax.random.key(6), (2, 7))
    text = condition().text if net.text_width else None
    for name in ("image_tokens", "image_embedding"):
        muted = params | {name: jax.tree.map(jnp.zeros_like, params[name])}
        a, b = (
            out((net, muted), Condition(text=text, embedding=by * z)) for by in (1.0, 2.0)
        )  # fmt: skip
        assert np.abs(a - b).max() > 1e-4, name


def test_an_embedding_is_dropped_by_itself():
    cond = condition()._replace(embedding=jnp.ones((2, 7)))
    first = drop_embedding(cond, jnp.array([True, False]))
    assert first.embedding.sum(-1).tolist() == [0.0, 7.0]
    assert first.label.tolist() == cond.label.tolist() and first.text.mask.any(1).all()
    rest = drop(cond, jnp.array([True, False]))
    assert rest.label.tolist() == [-1, 2] and rest.embedding.sum(-1).tolist() == [7.0, 7.0]
    nothing = null(cond)
    assert not nothing.embedding.any() and not nothing.text.mask.any()
    assert drop_embedding(condition(), jnp.array([True, True])).embedding is None


def test_an_embedding_of_another_length():
    net = UNet(**SMALL, embedding_width=7)

    def call(net, width):
        cond = Condition(embedding=jnp.ones((2, width)))
        jax.eval_shape(net.init, jax.random.key(0), X, T, cond)

    with pytest.raises(ValueError, match=r"embedding of \(2, 6\) was given for 2 images"):
        call(net, 6)
    with pytest.raises(ValueError, match="embedding_width"):
        call(UNet(**SMALL), 7)
