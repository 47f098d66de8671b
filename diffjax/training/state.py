"""What a training run is at a step, and the one function that takes it to the next."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffjax import ema, losses, rng
from diffjax.models import UNet
from diffjax.schedules import Array
from diffjax.training.build import Diffusion

Batch = dict[str, Array]
Metrics = dict[str, Array]


class TrainState(NamedTuple):
    """All that training changes, apart from the data's position.

    Attributes:
      step: int32 scalar: updates made.
      params: the network's parameters, float32.
      opt_state: optax's state.
      ema_params: the moving average of params.
    """

    step: Array
    params: Any
    opt_state: Any
    ema_params: Any


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(
    network: UNet,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """A fresh state; parameters are a function of the seed. Not to be called within a trace."""
    # One program, not one for every shape of a leaf. It runs once, so what matters is how soon it
    # is compiled, and on a CPU LLVM's first level gives the last one's bits in half the time.
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 1} if on_cpu else None
    init = jax.jit(_initialiser(network, optimizer, image_shape), compiler_options=options)
    return init(rng.stream(seed, "init"))


def state_shapes(
    network: UNet, optimizer: optax.GradientTransformation, *, image_shape: tuple[int, int, int]
) -> TrainState:
    """The state with jax.ShapeDtypeStruct for arrays; nothing is computed."""
    return jax.eval_shape(_initialiser(network, optimizer, image_shape), rng.stream(0, "init"))


def _initialiser(
    network: UNet, optimizer: optax.GradientTransformation, image_shape: tuple[int, int, int]
) -> Callable[[Array], TrainState]:
    def init(key: Array) -> TrainState:
        params = network.init(key, jnp.zeros((1, *image_shape)), jnp.zeros((1,)))["params"]
        average = jax.tree.map(jnp.copy, params)  # its own buffers: the step donates both
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)

    return init


def to_model_range(images: Array) -> Array:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def make_train_step(
    network: UNet,
    diffusion: Diffusion,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float,
    label_dropout: float = 0.0,
    flip: bool = False,
    axis_name: str | None = None,
) -> TrainStep:
    """train_step(state, batch) -> (state, metrics), pure.

    It knows of devices through `axis_name` alone: gradients and metrics are means over that axis,
    and an example's times, noise, label dropout and flip depend on its place in the global batch.
    The network's own dropout alone draws by device.

    Args:
      network: the U-Net.
      diffusion: schedule, parametrisation, loss.
      optimizer: an optax transformation.
      seed: with the step, what all randomness follows from.
      ema_decay: see `ema.warmed_up_decay`.
      label_dropout: share of labels replaced by "no class".
      flip: whether half of the images are mirrored left to right.
      axis_name: the axis of a pmap, or None on one device.

    Returns:
      A function of a state and {"image": uint8 (B, H, W, C), "label": int32 (B,)}, whose metrics
      are float32 scalars: loss, grad_norm.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        local = batch["image"].shape[0]
        devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        place = 0 if axis_name is None else jax.lax.axis_index(axis_name)
        indices = place * local + jnp.arange(local)

        def key(name: str) -> Array:
            return rng.stream(seed, name, state.step)

        x_0 = to_model_range(batch["image"])
        if flip:
            mirrored = rng.per_example(key("flip"), indices, jax.random.bernoulli)
            x_0 = jnp.where(mirrored[:, None, None, None], x_0[:, :, ::-1], x_0)
        eps = rng.per_example(key("noise"), indices, lambda k: jax.random.normal(k, x_0.shape[1:]))
        t = diffusion.sample_times(
            key("time"), diffusion.schedule, indices=indices, batch_size=local * devices
        )
        cond = None
        if network.num_classes:
            dropped = rng.per_example(
                key("label"), indices, lambda k: jax.random.bernoulli(k, label_dropout)
            )
            cond = jnp.where(dropped, -1, batch["label"])

        dropout_key = jax.random.fold_in(key("dropout"), place)

        def loss_fn(params: Any) -> Array:
            def apply(x: Array, t: Array, cond: Any) -> Array:
                return network.apply(
                    {"params": params}, x, t, cond, train=True, rngs={"dropout": dropout_key}
                )

            return diffusion_loss(apply, diffusion, x_0, t=t, eps=eps, cond=cond).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        if axis_name is not None:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema.warmed_up_decay(state.step, decay=ema_decay)
        average = ema.update(state.ema_params, params, decay=decay)
        metrics = {"loss": loss, "grad_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, params, opt_state, average), metrics

    return train_step


def diffusion_loss(
    network: Callable[[Array, Array, Any], Array],
    diffusion: Diffusion,
    x_0: Array,
    *,
    t: Array,
    eps: Array,
    cond: Any,
) -> Array:
    """`losses.diffusion_loss` as the config's diffusion section has it: (B,)."""
    return losses.diffusion_loss(
        network, x_0, t=t, eps=eps, cond=cond,
        schedule=diffusion.schedule, parametrisation=diffusion.parametrisation,
        target=diffusion.target, weighting=diffusion.weighting, time_input=diffusion.time_input,
    )  # fmt: skip


def make_eval_loss(
    network: UNet, diffusion: Diffusion, *, seed: int
) -> Callable[[Any, Batch], Array]:
    """eval_loss(params, batch) -> scalar: the loss on given images at fixed times and noise.

    Times are stratified and noise is the same at every call, so two calls differ by the parameters
    alone.
    """

    def eval_loss(params: Any, batch: Batch) -> Array:
        x_0 = to_model_range(batch["image"])
        indices = jnp.arange(len(x_0))
        draw = rng.stream(seed, "eval_noise")
        eps = rng.per_example(draw, indices, lambda k: jax.random.normal(k, x_0.shape[1:]))
        t = diffusion.sample_times(
            rng.stream(seed, "eval_time"),
            diffusion.schedule,
            indices=indices,
            batch_size=len(x_0),
        )
        cond = batch["label"] if network.num_classes else None

        def apply(x: Array, t: Array, cond: Any) -> Array:
            return network.apply({"params": params}, x, t, cond)

        return diffusion_loss(apply, diffusion, x_0, t=t, eps=eps, cond=cond).mean()

    return jax.jit(eval_loss)
