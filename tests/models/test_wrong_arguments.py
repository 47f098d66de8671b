"""What the U-Net and the autoencoder say of wrong fields and inputs: one line that names them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.models.autoencoder import Decoder, Encoder
from diffjax.models.condition import Condition, SpatialMap, Text
from diffjax.models.dit import DiT
from diffjax.models.edm2 import EDM2UNet
from diffjax.models.unet import UNet
from tests.messages import refuses

X, T, Z = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2), jnp.zeros((2, 2, 2, 4))
TEXT = Text(jnp.zeros((2, 3, 4)), jnp.ones((2, 3), bool))
MAP = SpatialMap(X[:, 1:], jnp.ones(2, bool))
NOT_IMAGES = (None, 3, "x", X[0], X[None], X[:0], X.astype(int), (255 * X).astype(np.uint8))
NOT_WHOLE = (None, "8", 7.5, -8, True)


def unet(x=X, t=T, cond=None, **fields):
    fields = {"base_channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1,
              "head_channels": 8, **fields}  # fmt: skip
    # Not as arguments of eval_shape, which would refuse what is no array.
    return jax.eval_shape(lambda key: UNet(**fields).init(key, x, t, cond), jax.random.key(0))


def dit(x=X, t=T, cond=None, **fields):
    fields = {"width": 8, "depth": 2, "head_channels": 4, **fields}
    return jax.eval_shape(lambda key: DiT(**fields).init(key, x, t, cond), jax.random.key(0))


def edm2(x=X, t=T, cond=None, **fields):
    fields = {"base_channels": 8, "head_channels": 4, **fields}
    return jax.eval_shape(lambda key: EDM2UNet(**fields).init(key, x, t, cond), jax.random.key(0))


def encoder(x=X, **fields):
    fields = {"out_channels": 4, "channels": 8, **fields}
    return jax.eval_shape(lambda key: Encoder(**fields).init(key, x), jax.random.key(0))


def decoder(z=Z, size=None, **fields):
    fields = {"out_channels": 1, "channels": 8, **fields}
    return jax.eval_shape(lambda key: Decoder(**fields).init(key, z, size), jax.random.key(0))


def each(network, name, values, word=None, **others):
    return [(network, {name: value, **others}, word or name) for value in values]


CASES = [
    *each(unet, "base_channels", (0, *NOT_WHOLE)),
    *each(unet, "channel_multipliers", (3, (), None, ("a",), (0,), (1.5,))),
    *each(unet, "num_res_blocks", NOT_WHOLE),
    *each(unet, "attention_resolutions", ("8", (5,), 8, None)),
    *each(unet, "head_channels", (0, 3, *NOT_WHOLE)),
    *each(unet, "dropout", (2.0, -1, "x", None, np.nan)),
    *each(unet, "num_classes", NOT_WHOLE), *each(unet, "text_width", NOT_WHOLE),
    *each(unet, "map_channels", NOT_WHOLE), *each(unet, "patch", (0, *NOT_WHOLE)),
    *each(unet, "perturbed", ("middle_0", None)), *each(unet, "perturbed", (("no",),), "'no'"),
    *each(unet, "resample", ("nosuch", None)), *each(unet, "dtype", ("floaty", 3, None, int)),
    *each(unet, "out_channels", (0, -1, "a")), *each(unet, "attention_fn", (None, 3)),
    *each(unet, "block", (None, 3)), *each(unet, "time_features", (None,)),
    *each(unet, "fourier", (3, ("a",))), *each(unet, "remat", (3,)),
    *each(unet, "x", NOT_IMAGES),
    *each(unet, "t", (None, "x", 5, T[:1], T[:, None], T[0], jnp.zeros(3))),
    *each(unet, "cond", ("a", {"label": 1}, 3, [1, 2], TEXT, T, jnp.zeros(3, int)), num_classes=3),
    *each(unet, "cond", (T.astype(int), Condition(label=T.astype(int))), "num_classes"),
    *each(unet, "cond", (Condition(text=TEXT),), "text_width", text_width=8),
    *each(unet, "cond", (Condition(map=MAP),), "map", map_channels=1),
    *each(dit, "width", (0, 6, *NOT_WHOLE)), *each(dit, "depth", (0, *NOT_WHOLE)),
    *each(dit, "head_channels", (0, 3, *NOT_WHOLE)), *each(dit, "patch", (0, *NOT_WHOLE)),
    *each(dit, "mlp_ratio", (0, -1.0, "x", None)), *each(dit, "norm", (None, 3)),
    *each(dit, "mlp", (None, 3)), *each(dit, "class_tokens", (2, *NOT_WHOLE)),
    *each(dit, "perturbed", (("block_2",),), "'block_2'"), *each(dit, "x", NOT_IMAGES),
    *each(edm2, "label_balance", (2.0, "x", None)), *each(edm2, "bandwidth", ("x", None)),
    *each(edm2, "head_channels", (0, 3, *NOT_WHOLE)), *each(edm2, "x", NOT_IMAGES),
    *(
        case
        for network in (dit, edm2)
        for name, values in {
            "dropout": (2.0, -1, "x", None), "dtype": ("floaty", 3, None, int),
            "attention_fn": (None, 3), "out_channels": (0, "a"), "remat": (3,),
            "perturbed": ("middle_0", None), "num_classes": NOT_WHOLE,
        }.items()
        for case in each(network, name, values)
    ),
    *each(encoder, "out_channels", (0, *NOT_WHOLE)), *each(encoder, "channels", (0, *NOT_WHOLE)),
    *each(encoder, "multipliers", ((), 3, None, (0,))), *each(encoder, "patch", (0, *NOT_WHOLE)),
    *each(encoder, "head_channels", (3,)), *each(encoder, "mix", (3,)),
    *each(encoder, "x", NOT_IMAGES),
    *each(decoder, "z", NOT_IMAGES), *each(decoder, "size", (3, "ab", (9,), (0, 8), (8.0, 8))),
    *each(decoder, "size", ((40, 40),), "images of 40x40"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "changes", "word"), CASES)
def test_a_wrong_field_or_input_is_named(network, changes, word):
    refuses(lambda: network(**changes), word, errors=(UserError, ValueError))


def test_what_is_allowed_stays_allowed():
    unet(base_channels=np.int64(12), num_res_blocks=0, channel_multipliers=[1, 2], dtype="bfloat16")
    unet(num_classes=3, cond=np.array([0, -1]), t=np.array([1, 2]))
    decoder(size=(np.int64(7), 8))
