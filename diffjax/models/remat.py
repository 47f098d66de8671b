"""Rematerialisation policies: which results of a block are kept for the backward pass.

The rest is recomputed (Chen et al. 2016, "Training deep nets with sublinear memory cost"). A policy
is as in `jax.checkpoint`: it decides for every operation whether its result is kept. JAX's policies
do not recognise an accelerator's convolutions, so the results of `Ops.conv` and `Ops.dense` are
named `PRODUCT`.
"""

from collections.abc import Callable

import jax

# (operation, *operands, **parameters) -> whether to keep the result.
Policy = Callable[..., bool]

PRODUCT = "product"

_products = jax.checkpoint_policies.save_only_these_names(PRODUCT)
_either = jax.checkpoint_policies.save_from_both_policies

# Keeps only a block's input: the least memory, about a third more computation.
full: Policy = jax.checkpoint_policies.nothing_saveable
# Keeps convolutions and matrix products; recomputes normalisations and elementwise operations.
dots: Policy = _either(jax.checkpoint_policies.dots_saveable, _products)
# As `dots`, but recomputes products of two activations: attention's (pixels x pixels) matrices,
# which grow with the fourth power of an image's side.
layers: Policy = _either(jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _products)
