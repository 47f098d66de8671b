"""The U-Net: sizes, conditions, types, and parity with a U-Net in PyTorch."""

import functools
import itertools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import ConvNeXtBlock, UNet, linear_attention, no_attention, remat
from diffjax.models.embeddings import random_time_features, timestep_embedding
from tests.weights import normal_like

SMALL = {"base_channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "head_channels": 8}
T = jnp.array([3.0, 700.0])


pytestmark = pytest.mark.usefixtures("compile_quickly")


def images(*shape):
    return jax.random.normal(jax.random.key(0), (2, *shape))


def shapes(module, *inputs, **options):
    return jax.eval_shape(functools.partial(module.init, **options), jax.random.key(0), *inputs)


def randomised(module, *inputs, scale=0.2):
    return normal_like(shapes(module, *inputs), scale=scale)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((28, 28, 1), 1), ((32, 32, 3), 1), ((32, 32, 3), 2), ((7, 5, 1), 1), ((7, 5, 1), 2),
     ((7, 5, 1), 3), ((29, 31, 3), 1), ((29, 31, 3), 3), ((1, 1, 1), 1), ((1, 1, 1), 2)],
    ids=str,
)  # fmt: skip
def test_any_size_comes_back_at_its_size(shape, patch):
    network, x = (
        UNet(**(SMALL | {"channel_multipliers": (1, 2, 2), "patch": patch})),
        images(*shape),
    )
    params = shapes(network, x, T)
    out = jax.eval_shape(network.apply, params, x, T)
    assert out.shape == x.shape and out.dtype == jnp.float32


def test_odd_sizes_are_finite_and_see_the_whole_image():
    network, x = UNet(**SMALL, patch=2), images(7, 5, 1)
    params = randomised(network, x, T)
    apply = jax.jit(network.apply)
    out = apply(params, x, T)
    assert np.isfinite(out).all()
    moved = apply(params, x.at[0, 6, 4].add(1.0), T) - out
    # The lowest map's attention joins all pixels of an image, and only of that image.
    assert np.all(moved[0] != 0) and np.all(moved[1] == 0)


def test_output_is_zero_at_the_start():
    network, x = UNet(**SMALL, patch=2), images(8, 8, 1)
    out, _ = jax.jit(network.init_with_output)(jax.random.key(0), x, T)
    np.testing.assert_array_equal(out, np.zeros_like(x))


def test_out_channels():
    network, x = UNet(**SMALL, out_channels=6, patch=2), images(7, 8, 3)
    assert jax.eval_shape(network.apply, shapes(network, x, T), x, T).shape == (2, 7, 8, 6)


def test_levels_give_a_run_of_logits_a_channel():
    network = UNet(
        **(SMALL | {"channel_multipliers": (1,)}), num_pixel_levels=16, level_features=4, patch=2
    )
    x = images(7, 6, 3)
    out = jax.jit(network.apply)(randomised(network, x, T), x, T)
    assert out.shape == (2, 7, 6, 3 * 16) and out.dtype == jnp.float32
    assert np.isfinite(out).all() and out.std() > 0
    twice = network.clone(out_channels=2, patch=1)
    assert jax.eval_shape(twice.apply, shapes(twice, x, T), x, T).shape == (2, 7, 6, 2 * 16)


def test_too_few_level_features_are_refused():
    with pytest.raises(ValueError, match="level_features must be at least 3, not 2"):
        shapes(UNet(**SMALL, num_pixel_levels=16, level_features=2), images(8, 8, 1), T)


def test_fourier_features_widen_the_stem_and_nothing_else():
    x = images(7, 6, 3)
    plain, fourier = (shapes(UNet(**SMALL, fourier=n), x, T)["params"] for n in ((), (6, 7)))
    wide = fourier.pop("stem")["kernel"].shape, plain.pop("stem")["kernel"].shape
    assert wide == ((3, 3, 3 + 2 * 2 * 3, 8), (3, 3, 3, 8))
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, fourier)
    network = UNet(**SMALL, fourier=(6, 7), patch=2)
    assert jax.eval_shape(network.apply, shapes(network, x, T), x, T).shape == x.shape


def test_a_network_that_asks_for_neither_has_the_parameters_it_had():
    names = set(shapes(UNet(**SMALL), images(8, 8, 1), T)["params"])
    assert names == {
        "time", "stem", "down0_0", "down0", "down1_0", "middle_0", "middle_0_attention",
        "middle_1", "up1_0", "up1_1", "up1", "up0_0", "up0_1", "norm", "head",
    }  # fmt: skip


def test_classes_and_no_class():
    network, x = UNet(**SMALL, num_classes=10), images(8, 8, 1)
    labels = jnp.array([3, 4])
    params = randomised(network, x, T, labels)
    apply = jax.jit(network.apply)
    conditional, null = apply(params, x, T, labels), apply(params, x, T)
    assert not np.allclose(conditional, null)
    np.testing.assert_allclose(apply(params, x, T, jnp.array([-1, -1])), null, rtol=1e-5, atol=1e-5)
    mixed = apply(params, x, T, jnp.array([3, -1]))
    np.testing.assert_allclose(mixed[0], conditional[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mixed[1], null[1], rtol=1e-5, atol=1e-5)
    # Initialised without labels, it has the same parameters.
    assert jax.tree.structure(shapes(network, x, T)) == jax.tree.structure(params)


def test_labels_for_an_unconditional_network_are_refused():
    with pytest.raises(ValueError, match="a label was given to a UNet that does not"):
        shapes(UNet(**SMALL), images(8, 8, 1), T, jnp.array([0, 1]))


def test_time_matters_and_examples_are_apart():
    network, x = UNet(**SMALL), images(8, 8, 1)
    params = randomised(network, x, T)
    apply = jax.jit(network.apply)
    out = apply(params, x, T)
    later = apply(params, x, T.at[0].set(50.0))
    assert not np.allclose(out[0], later[0])
    np.testing.assert_array_equal(out[1], later[1])


@pytest.mark.parametrize("resample", ["average", "adm"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 5, 1), (29, 31, 3), (1, 1, 1)])
def test_any_size_with_any_change_of_resolution(shape, resample):
    network, x = (
        UNet(**(SMALL | {"channel_multipliers": (1, 2, 2)}), resample=resample),
        images(*shape),
    )
    params = shapes(network, x, T)
    assert jax.eval_shape(network.apply, params, x, T).shape == x.shape
    blocks = {"down0", "down1", "up1", "up2"}
    assert blocks & set(params["params"]) == (blocks if resample == "adm" else set())
    if resample == "adm":  # ResNetBlocks, which see the time
        assert all("embedding" in params["params"][name] for name in blocks)


def test_changes_of_resolution_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"resample must be one of .* not 'fir'"):
        shapes(UNet(**SMALL, resample="fir"), images(8, 8, 1), T)
    with pytest.raises(ValueError, match="resample='adm' needs ResNetBlock"):
        shapes(UNet(**SMALL, resample="adm", block=ConvNeXtBlock), images(8, 8, 1), T)


@pytest.mark.parametrize(
    "options",
    [{"block": ConvNeXtBlock}, {"attention_fn": linear_attention, "attention_resolutions": (8, 4)},
     {"scale_shift": False}, {"block": functools.partial(ConvNeXtBlock, expansion=3)},
     {"resample": "adm"}, {"resample": "average"}, {"resample": "adm", "remat": remat.full},
     {"time_features": random_time_features}],
    ids=["convnext", "linear attention", "scale_shift False", "partial", "adm", "average",
         "adm, remat", "fourier"],
)  # fmt: skip
def test_variants_run_and_depend_on_their_input(options):
    network, x = UNet(**SMALL, **options), images(8, 8, 1)
    params = randomised(network, x, T)
    out = jax.jit(network.apply)(params, x, T)
    assert out.shape == x.shape and np.isfinite(out).all() and out.std() > 0


class Traced(nn.Module):
    """A block that keeps its input and output."""

    features: int
    dropout: float
    scale_shift: bool
    dtype: type
    ops: object

    @nn.compact
    def __call__(self, x, embedding, train):
        self.sow("intermediates", "input", x)
        y = nn.Dense(self.features)(x)
        self.sow("intermediates", "output", y)
        return y


@pytest.mark.parametrize(("scale_skips", "scale"), [(False, 1.0), (True, 2**-0.5)])
@pytest.mark.parametrize(("first", "sizes"), [(False, (12, 6)), (True, (6, 3))])
def test_skips_and_sizes_of_levels(first, sizes, scale_skips, scale):
    """What the blocks of a level are given: the encoder's maps, from last to first, at its size."""
    network = UNet(**SMALL, block=Traced, resample_first=first, scale_skips=scale_skips)
    x = images(12, 12, 1)
    params = randomised(network, x, T)
    _, kept = jax.jit(lambda p: network.apply(p, x, T, capture_intermediates=True))(params)
    kept = kept["intermediates"]
    for level, size in enumerate(sizes):
        for name in (f"down{level}_0", f"up{level}_0", f"up{level}_1"):
            assert kept[name]["input"][0].shape[1:3] == (size, size), name
    encoder = [kept["stem"]["__call__"][0]]
    for level in (0, 1):
        resampled = [kept[f"down{level}"]["__call__"][0]] if f"down{level}" in kept else []
        block = kept[f"down{level}_0"]["output"]
        encoder += [*resampled, *block] if first else [*block, *resampled]
    decoder = [kept[f"up{level}_{i}"]["input"][0] for level in (1, 0) for i in (0, 1)]
    if first:
        assert kept["up0"]["__call__"][0].shape[1:3] == (12, 12)
        width = 8 + 8  # the first level's channels, and the stem's
        assert params["params"]["norm"]["scale"].shape == (width,)
    for skip, found in zip(reversed(encoder), decoder, strict=first is False):
        channels = skip.shape[-1]
        np.testing.assert_allclose(found[..., -channels:], scale * skip, rtol=1e-5, atol=1e-6)


def test_the_order_with_resampling_first_costs_less():
    x = images(32, 32, 3)

    def flops(**options):
        network = UNet(**SMALL, **options)
        lowered = jax.jit(network.apply).lower(shapes(network, x, T), x, T)
        return lowered.cost_analysis()["flops"]

    # Blocks at a quarter of the pixels; the stem and the head stay.
    assert flops(resample_first=True) < 0.45 * flops()


@pytest.mark.parametrize("resample", ["conv", "average", "adm"])
@pytest.mark.parametrize("shape", [(7, 5, 1), (16, 12, 3), (1, 1, 1)], ids=str)
def test_any_size_with_resampling_first(shape, resample):
    network, x = (
        UNet(**SMALL, resample=resample, resample_first=True, scale_skips=True),
        images(*shape),
    )
    out = jax.jit(network.apply)(randomised(network, x, T), x, T)
    assert out.shape == x.shape and np.isfinite(out).all() and np.std(out) > 0


def test_attention_heights_are_those_of_the_order():
    network = UNet(**SMALL, resample_first=True, attention_resolutions=(8,))
    assert network.attention_blocks(32) == ("down1_0", "middle_0", "up1_0", "up1_1")
    with pytest.raises(ValueError, match=r"heights \[16, 8\] for images 32 high"):
        UNet(**SMALL, resample_first=True, attention_resolutions=(32,)).attention_blocks(32)


def test_attention_sits_where_it_is_asked_for():
    x = images(9, 6, 1)  # heights 9 and 5
    names = lambda **o: {  # noqa: E731
        k for k in shapes(UNet(**SMALL, **o), x, T)["params"] if "attention" in k
    }
    assert names() == {"middle_0_attention"}
    assert names(attention_resolutions=(9,)) - names() == {
        "down0_0_attention", "up0_0_attention", "up0_1_attention"
    }  # fmt: skip
    assert names(attention_resolutions=(5,)) - names() == {
        "down1_0_attention", "up1_0_attention", "up1_1_attention"
    }  # fmt: skip
    with pytest.raises(
        ValueError, match=r"\[7\] are not among this network's map heights \[9, 5\]"
    ):
        names(attention_resolutions=(5, 7))
    with pytest.raises(ValueError, match="head_channels must divide"):
        shapes(UNet(**(SMALL | {"head_channels": 5})), x, T)


def test_bfloat16_computes_low_and_keeps_float32_outside():
    x = images(8, 8, 1)
    network = UNet(**SMALL, dtype=jnp.bfloat16, attention_resolutions=(8,))
    params = randomised(network, x, T, scale=0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(network, x, T))} == {jnp.dtype("float32")}
    out = jax.jit(network.apply)(params, x, T)
    assert out.dtype == jnp.float32
    exact = jax.jit(UNet(**SMALL, attention_resolutions=(8,)).apply)(params, x, T)
    assert 0 < np.abs(out - exact).max() < 0.05 * np.abs(exact).max()


def test_dropout_needs_a_key():
    network, x = UNet(**SMALL, dropout=0.3), images(8, 8, 1)
    params = shapes(network, x, T)
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(lambda p: network.apply(p, x, T, train=True), params)


def torch_unet(torch, params, x, t, labels, head_channels):
    """A U-Net of two levels, one block each, written anew from the papers in PyTorch."""
    f = torch.nn.functional
    p = jax.tree.map(lambda a: torch.tensor(np.array(a)), params["params"])

    def dense(h, layer):
        return f.linear(h, layer["kernel"].T, layer["bias"])

    def conv(h, layer, stride=1):
        return f.conv2d(h, layer["kernel"].permute(3, 2, 0, 1), layer["bias"], stride, padding=1)

    def norm(h, layer):
        groups = {8: 2, 16: 4, 24: 4, 32: 8}[h.shape[1]]  # powers of two, 4 channels or more each
        return f.group_norm(h, groups, layer["scale"], layer["bias"], eps=1e-5)

    def block(h, name):
        q = p[name]
        y = conv(f.silu(norm(h, q["norm1"])), q["conv1"])
        scale, shift = dense(f.silu(emb), q["embedding"])[..., None, None].chunk(2, dim=1)
        y = conv(f.silu(norm(y, q["norm2"]) * (1 + scale) + shift), q["conv2"])
        if "skip" in q:
            h = dense(h.permute(0, 2, 3, 1), q["skip"]).permute(0, 3, 1, 2)
        return h + y

    def attention(h, name):
        q = p[name]
        b, c, *_ = h.shape
        tokens = norm(h, q["norm"]).flatten(2).transpose(1, 2)
        qkv = dense(tokens, q["qkv"]).chunk(3, dim=2)
        qkv = [a.reshape(b, -1, c // head_channels, head_channels).transpose(1, 2) for a in qkv]
        y = f.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        return h + dense(y, q["out"]).transpose(1, 2).reshape(h.shape)

    features = torch.tensor(np.array(timestep_embedding(t, 8)))
    emb = dense(f.silu(dense(features, p["time"]["in"])), p["time"]["out"])
    emb = emb + p["label"]["table"]["embedding"][labels]
    h0 = conv(torch.tensor(np.array(x).transpose(0, 3, 1, 2)), p["stem"])
    h1 = block(h0, "down0_0")
    h2 = conv(h1, p["down0"]["conv"], stride=2)
    h3 = block(h2, "down1_0")
    h = block(attention(block(h3, "middle_0"), "middle_0_attention"), "middle_1")
    h = block(torch.cat([h, h3], 1), "up1_0")
    h = block(torch.cat([h, h2], 1), "up1_1")
    h = f.interpolate(h, scale_factor=2, mode="nearest")[:, :, : h1.shape[2], : h1.shape[3]]
    h = conv(h, p["up1"]["conv"])
    h = block(torch.cat([h, h1], 1), "up0_0")
    h = block(torch.cat([h, h0], 1), "up0_1")
    return conv(f.silu(norm(h, p["norm"])), p["head"]).numpy().transpose(0, 2, 3, 1)


def test_the_whole_network_is_that_of_torch():
    torch = pytest.importorskip("torch", reason="a second implementation of the U-Net")
    network, x, labels = UNet(**SMALL, num_classes=3), images(7, 6, 2), jnp.array([1, 2])
    params = randomised(network, x, T, labels)
    ours = jax.jit(network.apply)(params, x, T, labels)
    theirs = torch_unet(torch, params, x, T, [1, 2], head_channels=8)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


def test_a_perturbed_block_attends_to_nothing_but_itself():
    network = UNet(**(SMALL | {"attention_resolutions": (8,)}))
    x = images(8, 8, 1)
    params = randomised(network, x, T)
    assert network.attention_blocks(8) == ("down0_0", "middle_0", "up0_0", "up0_1")
    plain = network.apply(params, x, T)
    outputs = [
        network.clone(perturbed=blocks).apply(params, x, T)
        for blocks in ((), ("middle_0",), ("down0_0",), network.attention_blocks(8))
    ]
    np.testing.assert_array_equal(outputs[0], plain)
    for a, b in itertools.combinations(outputs, 2):
        assert not np.allclose(a, b, atol=1e-4)


def test_no_attention_is_attention_whose_map_is_the_identity():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 1, 4))
    alone = jnp.eye(5, dtype=bool)[None, None]
    masked = jax.nn.dot_product_attention(q, k, v, mask=alone)
    np.testing.assert_allclose(no_attention(q, k, v), masked, atol=1e-6)


def test_a_perturbed_block_without_attention_is_refused():
    with pytest.raises(ValueError, match=r"down0_0' has no attention: expected one of \('middle_0"):
        shapes(UNet(**SMALL, perturbed=("down0_0",)), images(8, 8, 1), T)
