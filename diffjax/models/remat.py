"""What a block's way back may keep of its way forward; the rest is computed anew there.

A policy is one of `jax.checkpoint`'s: it is shown every operation and says whether its result is
kept. Chen et al. 2016, "Training deep nets with sublinear memory cost", trade memory for time so.
A convolution may be an accelerator's call, which no policy of jax's knows: results of `Ops.conv`
and `Ops.dense` bear the name `PRODUCT`.
"""

from collections.abc import Callable

import jax

# (operation, *operands, **parameters) -> whether the result is kept.
Policy = Callable[..., bool]

PRODUCT = "product"

_products = jax.checkpoint_policies.save_only_these_names(PRODUCT)
_either = jax.checkpoint_policies.save_from_both_policies

# All of a block but its input is computed anew: about a third more work, the least memory.
full: Policy = jax.checkpoint_policies.nothing_saveable
# Convolutions and products of matrices are kept; normalisations and what is elementwise are not.
dots: Policy = _either(jax.checkpoint_policies.dots_saveable, _products)
# As `dots`, but without products of activations among themselves: attention's (pixels x pixels)
# matrices, which grow by the fourth power of an image's side, are computed anew.
layers: Policy = _either(jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _products)
