"""The diffusion transformer: sizes, conditions, and parity with DiT and JiT in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import remat
from diffjax.models.condition import Condition, Text
from diffjax.models.dit import SIZES, DiT
from diffjax.models.dit_blocks import (
    Gelu,
    LayerNorm,
    grid_positions,
    rotary_angles,
    rotated,
    sincos_positions,
)
from tests.weights import moved

pytestmark = pytest.mark.usefixtures("compile_quickly")
SMALL = {"width": 16, "depth": 3, "head_channels": 8}
X = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
T = jnp.array([100.0, 700.0])
PUBLISHED = {"norm": LayerNorm, "mlp": Gelu, "rotary": False, "qk_norm": False}


def randomised(module, *inputs, scale=0.2):
    shapes = jax.eval_shape(module.init, jax.random.key(2), *inputs)["params"]
    return moved(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes), scale=scale)


def applied(module, params, *inputs):
    return jax.jit(module.apply)({"params": params}, *inputs)


def test_the_published_sizes_have_their_numbers_of_parameters():
    """Peebles & Xie 2023, table 1: 33, 130, 458 and 675 million, on 32x32x4 latents."""
    for name, millions in (("S", 33), ("B", 130), ("L", 458), ("XL", 675)):
        module = DiT(**SIZES[name], num_classes=1000, out_channels=8, **PUBLISHED)
        shapes = jax.eval_shape(
            module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 4)), jnp.zeros(1)
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        assert round(count / 1e6) == millions


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 7, 5, 3), (2, 1, 1, 3), (2, 9, 12, 3)])
def test_one_network_takes_images_of_any_size(shape):
    module = DiT(**SMALL)
    params = randomised(module, X, T)
    found = applied(module, params, jnp.ones(shape), T)
    assert found.shape == shape and found.dtype == jnp.float32 and np.isfinite(found).all()


def test_it_starts_at_zero_and_has_blocks_that_do_nothing():
    module = DiT(**SMALL)
    params = module.init(jax.random.key(0), X, T)["params"]
    assert not np.any(module.apply({"params": params}, X, T))
    assert not np.any(params["blocks"]["modulation"]["kernel"])


def test_blocks_are_one_scanned_layer():
    params = randomised(DiT(**SMALL), X, T)
    assert params["blocks"]["qkv"]["kernel"].shape == (3, 16, 48)
    deeper = jax.eval_shape(DiT(**SMALL | {"depth": 30}).init, jax.random.key(0), X, T)["params"]
    assert jax.tree.structure(deeper) == jax.tree.structure(params)


@pytest.mark.parametrize("policy", [remat.dots, remat.full])
def test_rematerialised_blocks_have_the_same_gradient(policy):
    plain, saving = DiT(**SMALL), DiT(**SMALL, remat=policy)
    params = randomised(plain, X, T)
    one, other = (
        jax.jit(jax.grad(lambda p, m=m: jnp.square(m.apply({"params": p}, X, T)).sum()))(params)
        for m in (plain, saving)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


def test_what_a_texts_mask_hides_changes_nothing_and_what_it_shows_does():
    module = DiT(**SMALL, text_width=6)
    tokens = jax.random.normal(jax.random.key(1), (2, 5, 6))
    mask = jnp.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    params = randomised(module, X, T, Condition(text=Text(tokens, mask)))

    def of(tokens):
        return applied(module, params, X, T, Condition(text=Text(tokens, mask)))

    hidden = jnp.where(mask[..., None], tokens, 100.0)
    np.testing.assert_allclose(of(tokens), of(hidden), atol=1e-5)
    shown = jnp.where(mask[..., None], tokens + 1, tokens)
    assert np.abs(of(tokens) - of(shown))[0].max() > 1e-3
    np.testing.assert_allclose(of(tokens)[1], of(shown)[1], atol=1e-5)


def test_class_tokens_need_classes():
    with pytest.raises(ValueError, match="class_tokens = 4 needs a network with classes"):
        DiT(**SMALL, class_tokens=4).init(jax.random.key(0), X, T)


def test_class_tokens_join_at_their_block():
    label = jnp.array([0, 2])
    module = DiT(**SMALL, num_classes=3, class_tokens=4, class_tokens_from=1, bottleneck=5)
    params = randomised(module, X, T, label)
    assert params["blocks"]["qkv"]["kernel"].shape[0] == 1
    assert params["joined"]["qkv"]["kernel"].shape[0] == 2
    assert params["bottleneck"]["kernel"].shape == (12, 5)
    found = applied(module, params, X, T, label)
    assert np.abs(found - applied(module, params, X, T, jnp.array([1, 2])))[0].max() > 1e-3


def test_perturbed_blocks_attend_to_themselves():
    module = DiT(**SMALL)
    params = randomised(module, X, T)
    found = applied(module, params, X, T)
    one = applied(module.clone(perturbed=("block_1",)), params, X, T)
    assert np.abs(found - one).max() > 1e-3
    # Where every token attends to itself alone, a patch's result depends on no other patch.
    blind = module.clone(perturbed=module.attention_blocks(8))
    changed = X.at[:, :2, :2].add(1.0)
    difference = np.abs(applied(blind, params, X, T) - applied(blind, params, changed, T))
    assert difference[:, :2, :2].max() > 1e-3 and not difference[:, 2:, 2:].any()
    with pytest.raises(ValueError, match="'block_7' has no attention"):
        module.clone(perturbed=("block_7",)).init(jax.random.key(0), X, T)


@pytest.mark.parametrize("first_joined", [4, 1])
def test_dropout_in_the_middle_is_in_the_second_and_third_quarter_alone(first_joined):
    tokens = {"class_tokens": 2, "class_tokens_from": first_joined, "num_classes": 3}
    module = DiT(width=16, depth=4, head_channels=8, patch=2, dropout=0.5, **tokens)
    label = jnp.array([0, 2])
    params = randomised(module, X, T, label)

    def is_random(network, without):
        """Whether the result depends on the key where the blocks `without` add nothing."""
        idle = jax.tree.map(np.array, params)
        for name, first in (("blocks", 0), ("joined", first_joined)):
            for i in without:
                if first <= i < (first_joined if name == "blocks" else 4):
                    for leaf in idle[name]["modulation"].values():
                        leaf[i - first] = 0.0
        results = [
            network.apply(
                {"params": idle}, X, T, label, train=True, rngs={"dropout": jax.random.key(seed)}
            )
            for seed in (0, 1)
        ]
        return bool(np.abs(results[0] - results[1]).max() > 1e-5)

    middle = module.clone(dropout_middle=True)
    assert not is_random(middle, without=(1, 2))
    assert is_random(middle, without=(0, 1, 3)) and is_random(middle, without=(0, 2, 3))
    assert is_random(module, without=(1, 2, 3)) and is_random(module, without=(0, 1, 2))


def test_a_heads_channels_must_divide_the_width():
    with pytest.raises(ValueError, match="head_channels must divide width"):
        DiT(width=16, depth=1, head_channels=12).init(jax.random.key(0), X, T)


def test_rotary_products_depend_on_the_distance_alone():
    """Su et al. 2021, equation 11, in both directions of the plane."""
    angles = rotary_angles(grid_positions(6, 7), 8)
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    turned_q, turned_k = (rotated(jnp.tile(v, (1, 42, 1, 1)), angles)[0, :, 0] for v in (q, k))
    products = (turned_q @ turned_k.T).reshape(6, 7, 6, 7)
    np.testing.assert_allclose(products[3, 4, 1, 2], products[4, 5, 2, 3], rtol=1e-4)
    np.testing.assert_allclose(products[3, 4, 3, 1], products[0, 5, 0, 2], rtol=1e-4)
    assert abs(products[3, 4, 1, 2] - products[3, 4, 2, 1]) > 1e-4
    np.testing.assert_allclose(jnp.linalg.norm(turned_q, axis=-1), jnp.linalg.norm(q), rtol=1e-5)


def test_every_position_has_features_of_its_own():
    features = sincos_positions(grid_positions(5, 7), 16)
    assert features.shape == (35, 16) and len(np.unique(features.round(5), axis=0)) == 35
    assert np.abs(features).max() <= 1


def torch_dit(params, *, heads, classes):
    """DiT from its paper's description, with the parameters of ours; (x, t, label) -> output."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional

    def tensor(x):
        return torch.tensor(np.asarray(x), dtype=torch.float64)

    tree = jax.tree.map(tensor, params)
    blocks, width = tree["blocks"], params["patches"]["kernel"].shape[1]

    def linear(p, x):
        return F.linear(x, p["kernel"].T, p["bias"])

    def norm(x):
        return F.layer_norm(x, (width,), eps=1e-6)

    def forward(x, t, label):
        x, t = tensor(x), tensor(t)
        batch, height, wide, channels = x.shape
        # A patch embedding is a convolution whose stride is its size.
        kernel = tree["patches"]["kernel"].T.reshape(width, 2, 2, channels).permute(0, 3, 1, 2)
        h = F.conv2d(x.permute(0, 3, 1, 2), kernel, tree["patches"]["bias"], stride=2)
        rows, columns = h.shape[2:]
        h = h.flatten(2).transpose(1, 2)
        n = width // 4
        omega = 10_000.0 ** (-torch.arange(n, dtype=torch.float64) / n)

        def wave(place):
            return torch.cat(
                [torch.sin(place[:, None] * omega), torch.cos(place[:, None] * omega)], 1
            )

        row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
        column = torch.arange(columns, dtype=torch.float64).repeat(rows)
        h = h + torch.cat([wave(column), wave(row)], 1)
        frequencies = 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
        angles = t[:, None] * frequencies
        c = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
        c = linear(tree["time"]["out"], F.silu(linear(tree["time"]["in"], c)))
        c = F.silu(c + tree["label"]["table"]["embedding"][label])
        for i in range(len(blocks["qkv"]["kernel"])):
            p = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)
            s1, g1, a1, s2, g2, a2 = linear(p["modulation"], c)[:, None].chunk(6, dim=-1)
            q, k, v = linear(p["qkv"], norm(h) * (1 + g1) + s1).chunk(3, dim=-1)
            q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            h = h + a1 * linear(p["out"], y)
            y = F.gelu(linear(p["mlp"]["in"], norm(h) * (1 + g2) + s2), approximate="tanh")
            h = h + a2 * linear(p["mlp"]["out"], y)
        shift, scale = linear(tree["modulation"], c)[:, None].chunk(2, dim=-1)
        h = linear(tree["head"], norm(h) * (1 + scale) + shift)
        h = h.reshape(batch, rows, columns, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
        return h.reshape(batch, height, wide, -1).numpy()

    return forward


def torch_jit(params, *, heads, patch, start):
    """JiT from its paper's description, with the parameters of ours; (x, t, label) -> output."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    tree = jax.tree.map(lambda x: torch.tensor(np.asarray(x), dtype=torch.float64), params)
    width = params["patches"]["kernel"].shape[1]

    def linear(p, x):
        return F.linear(x, p["kernel"].T, p.get("bias"))

    def rms(p, x):
        return F.rms_norm(x, x.shape[-1:], p["scale"], eps=1e-6)

    def turned(x, places):
        """Pairs of channels as complex numbers, each turned by its place's angle."""
        n = x.shape[-1] // 4
        omega = 10_000.0 ** (-torch.arange(n, dtype=torch.float64) / n)
        angles = torch.cat([places[:, :1] * omega, places[:, 1:] * omega], dim=1)
        whole = torch.cat([angles, torch.zeros(x.shape[-2] - len(angles), 2 * n)])
        z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(z * torch.polar(torch.ones_like(whole), whole)).flatten(-2)

    def forward(x, t, label):
        x, t = (torch.tensor(np.asarray(a), dtype=torch.float64) for a in (x, t))
        batch, height, wide, channels = x.shape
        kernel = tree["bottleneck"]["kernel"]  # a convolution without bias, then one of size 1
        kernel = kernel.T.reshape(-1, patch, patch, channels).permute(0, 3, 1, 2)
        h = F.conv2d(x.permute(0, 3, 1, 2), kernel, stride=patch)
        h = F.conv2d(h, tree["patches"]["kernel"].T[:, :, None, None], tree["patches"]["bias"])
        rows, columns = h.shape[2:]
        h = h.flatten(2).transpose(1, 2)
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
        h = h + torch.tensor(sincos_positions(places.numpy(), width))
        angles = t[:, None] * 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
        time = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
        time = linear(tree["time"]["out"], F.silu(linear(tree["time"]["in"], time)))
        label = tree["label"]["table"]["embedding"][label]
        c = F.silu(time + label)
        layers = [
            jax.tree.map(lambda leaf, i=i: leaf[i], tree[name])
            for name in ("blocks", "joined")
            for i in range(len(tree[name]["qkv"]["kernel"]))
        ]
        for i, p in enumerate(layers):
            if i == start:
                h = torch.cat([h, label[:, None] + tree["class_tokens"]], dim=1)
            s1, g1, a1, s2, g2, a2 = linear(p["modulation"], c)[:, None].chunk(6, dim=-1)
            y = linear(p["qkv"], rms(p["norm"], h) * (1 + g1) + s1)
            q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in y.chunk(3, dim=-1))
            q, k = turned(rms(p["q_norm"], q), places), turned(rms(p["k_norm"], k), places)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            h = h + a1 * linear(p["out"], y)
            gate, value = linear(p["mlp"]["in"], rms(p["mlp_norm"], h) * (1 + g2) + s2).chunk(2, -1)
            h = h + a2 * linear(p["mlp"]["out"], F.silu(gate) * value)
        h = h[:, : rows * columns]
        shift, scale = linear(tree["modulation"], c)[:, None].chunk(2, dim=-1)
        h = linear(tree["head"], rms(tree["norm_out"], h) * (1 + scale) + shift)
        h = h.reshape(batch, rows, columns, patch, patch, -1).permute(0, 1, 3, 2, 4, 5)
        return h.reshape(batch, height, wide, -1).numpy()

    return forward


def test_parity_with_jit_in_torch():
    """Li & He 2025, "Back to basics: let denoising generative models denoise", section 4."""
    pytest.importorskip("torch")
    module = DiT(**SMALL, num_classes=4, bottleneck=6, class_tokens=5, class_tokens_from=1)
    label = jnp.array([3, 1])
    params = randomised(module, X, T, label)
    theirs = torch_jit(params, heads=2, patch=2, start=1)(X, T, np.array([3, 1]))
    ours = applied(module, params, X, T, label)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_parity_with_dit_in_torch():
    pytest.importorskip("torch")
    module = DiT(**SMALL, num_classes=4, out_channels=6, **PUBLISHED)
    label = jnp.array([3, 1])
    params = randomised(module, X, T, label)
    theirs = torch_dit(params, heads=2, classes=4)(X, T, np.array([3, 1]))
    ours = applied(module, params, X, T, label)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
