"""EDM2's U-Net: sizes, magnitudes, what the projection keeps, and parity with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.models import linear_attention, remat
from diffjax.models.condition import Condition, SpatialMap, Text
from diffjax.models.edm2 import SIZES, EDM2UNet
from diffjax.models.edm2_blocks import MPBlock, mp_cat, mp_fourier, mp_silu, mp_sum
from diffjax.models.linen import from_linen
from diffjax.models.unet import UNet
from tests.weights import normal_like

SMALL = {
    "base_channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "head_channels": 4,
    "attention_resolutions": (4,),
}  # fmt: skip
X = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
T = jnp.array([-1.0, 0.4])
LABEL = jnp.array([1, -1])


# One level: what costs the least to compile.
LEAST = SMALL | {"channel_multipliers": (1,), "attention_resolutions": (8,)}


def randomised(module, *inputs, scale=0.5):
    shapes = jax.eval_shape(module.init, jax.random.key(2), *inputs)["params"]
    return normal_like(shapes, scale=scale)


def applied(module, params, *inputs):
    return jax.jit(module.apply)({"params": params}, *inputs)


def kernels(params):
    """The magnitude-preserving weights: those of more than one axis, however they are called."""
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.ndim > 1
    }


SLOW = pytest.mark.slow
MILLIONS = [
    ("XS", 125), ("XXL", 1523), pytest.param("S", 280, marks=SLOW),
    pytest.param("M", 498, marks=SLOW), pytest.param("L", 777, marks=SLOW),
    pytest.param("XL", 1119, marks=SLOW),
]  # fmt: skip


@pytest.mark.parametrize("name, millions", MILLIONS)
def test_the_published_sizes_have_their_numbers_of_parameters(name, millions):
    """Karras et al. 2024, table 2: on 64x64x4 latents of 1,000 classes."""
    module = EDM2UNet(**SIZES[name], num_classes=1000)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 4)), jnp.zeros(1))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) / 1e6) == millions


def test_layers_keep_the_variance_of_what_is_independent():
    a, b = jax.random.normal(jax.random.key(1), (2, 4000, 30))
    np.testing.assert_allclose(jnp.square(mp_silu(a)).mean(), 1, atol=0.02)
    for t in (0.0, 0.3, 0.5, 1.0):
        np.testing.assert_allclose(jnp.square(mp_sum(a, b, t)).mean(), 1, atol=0.02)
        both = mp_cat(a, b[:, :10], t)
        np.testing.assert_allclose(jnp.square(both).mean(), 1, atol=0.02)
        # Each contributes by its share to a linear map, whatever their numbers of channels.
        parts = [float(jnp.square(part).sum()) ** 0.5 for part in (both[:, :30], both[:, 30:])]
        np.testing.assert_allclose(parts[1] * (1 - t), parts[0] * t, rtol=0.02, atol=1e-6)
    features = mp_fourier(jnp.linspace(-1.5, 1.1, 500), 256)
    np.testing.assert_allclose(jnp.square(features).mean(), 1, atol=0.02)


def magnitudes(module, x, t, label):
    """parameters -> the root mean square of every block's output."""

    @jax.jit
    def of(params):
        _, found = module.apply(
            {"params": params}, x, t, label,
            capture_intermediates=lambda layer, name: isinstance(layer, MPBlock),
        )  # fmt: skip
        blocks = found["intermediates"].items()
        return {name: jnp.sqrt(jnp.square(h["__call__"][0]).mean()) for name, h in blocks}

    return of


@pytest.mark.parametrize("depth", [1, 3, pytest.param(6, marks=pytest.mark.slow)])
def test_magnitudes_do_not_depend_on_the_depth(depth):
    """Over 16 draws of the weights they are within 7 % of 1 after every block of the encoder, and
    within 15 % in the decoder, which normalises nothing: zeros around the maps make them smaller
    there. One draw of 32 channels is off by up to a quarter. Attention would make them smaller,
    too, as the mean of many values."""
    module = EDM2UNet(
        base_channels=32, channel_multipliers=(1, 1), num_res_blocks=depth, head_channels=32,
        num_classes=10, perturbed=("middle_0",),
    )  # fmt: skip
    x, t = jax.random.normal(jax.random.key(0), (2, 24, 24, 3)), jnp.array([-1.5, 1.0])
    label = jnp.array([3, -1])
    shapes = jax.eval_shape(module.init, jax.random.key(1), x, t, label)["params"]
    of = magnitudes(module, x, t, label)
    found = {}
    for seed in range(16):
        drawn = normal_like(shapes, scale=1.0, seed=seed)
        drawn = jax.tree.map(lambda leaf: leaf if leaf.ndim else 0 * leaf, drawn)  # gains
        for name, value in of(drawn).items():
            found.setdefault(name, []).append(float(value))
    assert len(found) == 2 * depth + 1 + 2 + 2 * (depth + 1) + 1
    each = np.sqrt(np.square(list(found.values())).mean(axis=1))
    for name, value in zip(found, each, strict=True):
        assert abs(value - 1) < (0.07 if name.startswith("down") else 0.15), (name, value)


def test_it_starts_at_zero_and_without_its_embedding():
    module = EDM2UNet(**LEAST, num_classes=3)
    params = jax.jit(module.init)(jax.random.key(0), X, T)["params"]
    assert not np.any(applied(module, params, X, T, LABEL))
    params["gain"] = jnp.ones(())
    found = applied(module, params, X, T, LABEL)
    assert np.any(found)
    np.testing.assert_array_equal(found, applied(module, params, X, T + 1, LABEL * 0))


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 7, 5, 3), (2, 8, 13, 3)])
@pytest.mark.parametrize("patch", [1, 2])
def test_one_network_takes_images_of_any_size(shape, patch):
    module = EDM2UNet(**SMALL | {"attention_resolutions": ()}, patch=patch, out_channels=6)
    params = randomised(module, X, T)
    found = jax.eval_shape(lambda p: module.apply({"params": p}, jnp.ones(shape), T), params)
    assert found.shape == (*shape[:3], 6) and found.dtype == jnp.float32
    if shape[1] == 7:
        assert np.isfinite(applied(module, params, jnp.ones(shape), T)).all()


def test_what_it_computes_is_the_same_after_the_projection():
    module = EDM2UNet(**SMALL, num_classes=3)
    params = randomised(module, X, T, LABEL)
    scaled = jax.tree.map(lambda leaf: leaf * (3.0 if leaf.ndim > 1 else 1.0), params)
    before, after = (applied(module, p, X, T, LABEL) for p in (params, module.project(scaled)))
    assert np.abs(before).max() > 0.1
    np.testing.assert_allclose(before, after, atol=2e-3 * np.abs(before).max())
    # Gains are no weights.
    np.testing.assert_array_equal(module.project(params)["gain"], params["gain"])


def test_projected_weights_have_the_norm_of_their_inputs_number():
    module = EDM2UNet(**SMALL, num_classes=3)
    found = kernels(module.project(randomised(module, X, T, LABEL)))
    assert len(found) > 30
    for kernel in found.values():
        inputs = kernel.reshape(-1, kernel.shape[-1])
        norms = np.linalg.norm(inputs, axis=0)
        np.testing.assert_allclose(norms, len(inputs) ** 0.5, rtol=1e-3)


def test_gradients_are_orthogonal_to_the_weights():
    module = EDM2UNet(**LEAST, num_classes=3)
    params = module.project(randomised(module, X, T, LABEL))
    grads = jax.jit(
        jax.grad(lambda p: jnp.square(module.apply({"params": p}, X, T, LABEL) - X).sum())
    )(params)
    grads, params = kernels(grads), kernels(params)
    for name, kernel in params.items():
        along = np.sum(kernel * grads[name], axis=tuple(range(kernel.ndim - 1)))
        sizes = [
            np.sqrt(np.sum(np.square(x), axis=tuple(range(kernel.ndim - 1))))
            for x in (kernel, grads[name])
        ]
        assert np.all(np.abs(along) <= 1e-3 * sizes[0] * sizes[1] + 1e-6), name


def test_a_gradient_is_finite_where_all_is_zero():
    module = EDM2UNet(**LEAST)
    params = jax.tree.map(jnp.zeros_like, randomised(module, X, T))
    grads = jax.jit(jax.grad(lambda p: module.apply({"params": p}, 0 * X, T).sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("policy", [remat.dots, remat.full])
def test_rematerialised_blocks_have_the_same_gradient(policy):
    plain, saving = EDM2UNet(**LEAST), EDM2UNet(**LEAST, remat=policy)
    params = randomised(plain, X, T)
    one, other = (
        jax.jit(jax.grad(lambda p, m=m: jnp.square(m.apply({"params": p}, X, T)).sum()))(params)
        for m in (plain, saving)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), one, other)


def test_bfloat16_is_close_to_float32():
    module = EDM2UNet(**LEAST)
    params = randomised(module, X, T)
    exact = applied(module, params, X, T)
    found = applied(module.clone(dtype=jnp.bfloat16), params, X, T)
    assert found.dtype == jnp.float32
    assert np.abs(found - exact).mean() < 0.05 * np.abs(exact).mean()


def test_a_map_is_seen_where_it_is_present():
    module = EDM2UNet(**LEAST, map_channels=2)
    values = jax.random.normal(jax.random.key(3), (2, 8, 6, 2))
    spatial = SpatialMap(values, jnp.array([True, False]))
    params = randomised(module, X, T)
    found = applied(module, params, X, T, Condition(map=spatial))
    without = applied(module, params, X, T)
    assert np.abs(found - without)[0].max() > 1e-3
    np.testing.assert_allclose(found[1], without[1], atol=1e-5)


def test_blocks_with_attention_are_those_of_the_unet_and_can_be_perturbed():
    module = EDM2UNet(**SMALL)
    names = module.attention_blocks(8)
    assert names == ("down1_0", "middle_0", "up1_0", "up1_1")
    assert names == UNet(**SMALL).attention_blocks(8)
    module = EDM2UNet(**LEAST)
    params = randomised(module, X, T)
    network = from_linen(module)
    found = jax.jit(network.apply)(params, X, T, None)
    one = jax.jit(network.perturbed(("down0_0",)).apply)(params, X, T, None)
    assert np.abs(found - one).max() > 1e-3
    other = applied(module.clone(attention_fn=linear_attention), params, X, T)
    assert np.abs(found - other).max() > 1e-3
    with pytest.raises(ValueError, match="'down1' has no attention"):
        module.clone(perturbed=("down1",)).init(jax.random.key(0), X, T)


TEXT = Condition(text=Text(jnp.zeros((2, 3, 4)), jnp.ones((2, 3), bool)))
NOISY_MAP = Condition(map=SpatialMap(jnp.zeros((2, 8, 6, 1)), jnp.ones(2, bool), jnp.zeros(2)))


@pytest.mark.parametrize(
    "fields, cond, message",
    [
        ({}, LABEL, "a label was given to an EDM2UNet that does not support it"),
        ({}, TEXT, "a text was given to an EDM2UNet that does not support it"),
        ({"map_channels": 1}, NOISY_MAP, "a map's log_snr was given to an EDM2UNet"),
        ({"head_channels": 5}, None, "head_channels must divide channels"),
        ({"attention_resolutions": (5,)}, None, r"\[5\] are not among .* \[8, 4\] for images 8"),
        ({"concat_balance": 1.5}, None, r"EDM2UNet.concat_balance is 1.5: expected \[0, 1\]"),
        ({"channel_multipliers": ()}, None, "EDM2UNet.channel_multipliers is"),
    ],
)
def test_what_it_does_not_take_is_refused(fields, cond, message):
    with pytest.raises((ValueError, UserError), match=message):
        jax.eval_shape(EDM2UNet(**SMALL | fields).init, jax.random.key(0), X, T, cond)


def torch_edm2(params, *, heads, classes, levels, blocks, attention):
    """EDM2 from its paper's description, with the parameters of ours; (x, t, label) -> output."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    tree = jax.tree.map(lambda x: torch.tensor(np.asarray(x), dtype=torch.float64), params)

    def normalised(x, *dims):
        length = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
        count = np.prod([x.shape[d] for d in dims])
        return x / (1e-4 + length / np.sqrt(count))

    def layer(p, x, gain=1.0):
        """A convolution, or a matrix, of weights (out, in, ...) with norm 1 each."""
        w = p["kernel"]
        w = w.permute(3, 2, 0, 1) if w.ndim == 4 else w.T
        w = normalised(w, *range(1, w.ndim)) * (gain / np.sqrt(w[0].numel()))
        if w.ndim == 2 and x.ndim == 4:
            w = w[:, :, None, None]
        return F.linear(x, w) if x.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)

    def silu(x):
        return F.silu(x) / 0.596

    def mixed(a, b, t):
        return torch.lerp(a, b, t) / np.sqrt((1 - t) ** 2 + t**2)

    def joined(a, b, t=0.5):
        scale = np.sqrt((a.shape[1] + b.shape[1]) / ((1 - t) ** 2 + t**2))
        weights = [scale / np.sqrt(x.shape[1]) * s for x, s in ((a, 1 - t), (b, t))]
        return torch.cat([a * weights[0], b * weights[1]], dim=1)

    def block(name, x, vector, attends):
        p, encoder = tree[name], name.startswith("down")
        if encoder:
            x = normalised(layer(p["skip"], x) if "skip" in p else x, 1)
        scale = layer(p["embedding"], vector, p["gain"]) + 1
        y = silu(layer(p["conv1"], silu(x)) * scale[:, :, None, None])
        y = layer(p["conv2"], y)
        if not encoder and "skip" in p:
            x = layer(p["skip"], x)
        x = mixed(x, y, 0.3)
        if attends:
            p = p["attention"]
            qkv = layer(p["qkv"], x).unflatten(1, (3, heads(x), -1))
            q, k, v = normalised(qkv, 3).flatten(4).unbind(1)
            logits = torch.einsum("nhcq,nhck->nhqk", q, k / np.sqrt(q.shape[2]))
            y = torch.einsum("nhqk,nhck->nhcq", logits.softmax(dim=3), v)
            x = mixed(x, layer(p["out"], y.reshape(x.shape)), 0.3)
        return x.clip(-256, 256)

    def forward(x, t, label):
        x = torch.tensor(np.asarray(x), dtype=torch.float64).permute(0, 3, 1, 2)
        drawn = np.random.RandomState(0)
        width = params["stem"]["kernel"].shape[-1]
        frequencies, phases = drawn.standard_normal(width), drawn.uniform(size=width)
        angles = 2 * np.pi * (np.asarray(t, np.float64)[:, None] * frequencies + phases)
        features = torch.tensor(np.cos(angles) * np.sqrt(2))
        rows = np.asarray(label, np.int64) % (classes + 1)
        one_hot = F.one_hot(torch.tensor(rows), classes + 1).double()
        of_label = layer(tree["label"], one_hot * np.sqrt(classes + 1))
        vector = silu(mixed(layer(tree["time"], features), of_label, 0.5))
        h = layer(tree["stem"], torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        skips = [h]
        for level in range(levels):
            if level:
                h = block(f"down{level - 1}", F.avg_pool2d(h, 2), vector, False)
                skips.append(h)
            for i in range(blocks):
                h = block(f"down{level}_{i}", h, vector, level in attention)
                skips.append(h)
        h = block("middle_0", h, vector, True)
        h = block("middle_1", h, vector, False)
        for level in reversed(range(levels)):
            for i in range(blocks + 1):
                h = block(f"up{level}_{i}", joined(h, skips.pop()), vector, level in attention)
            if level:
                h = block(f"up{level}", F.interpolate(h, scale_factor=2), vector, False)
        return layer(tree["head"], h, tree["gain"]).permute(0, 2, 3, 1).numpy()

    return forward


def test_it_computes_what_edm2_in_pytorch_computes():
    module = EDM2UNet(
        base_channels=8, channel_multipliers=(1, 2, 3), num_res_blocks=1,
        attention_resolutions=(4, 2), head_channels=4, num_classes=3,
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(0), (3, 8, 12, 2))
    t, label = jnp.array([-1.4, 0.0, 1.0]), jnp.array([0, 2, -1])
    params = randomised(module, x, t, label)
    other = torch_edm2(
        params, heads=lambda x: x.shape[1] // 4, classes=3, levels=3, blocks=1, attention=(1, 2)
    )
    theirs = other(x, t, label)
    assert np.abs(theirs).std() > 0.05
    np.testing.assert_allclose(applied(module, params, x, t, label), theirs, atol=1e-5)
