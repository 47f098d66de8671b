"""Training and sampling in PyTorch as fast as it goes, doing what diffjax's step and sampler do.

channels_last, fused attention, autocast for bfloat16, torch.compile over loss and sampling step,
fused Adam, foreach clipping and averaging. Nothing is read back from the device between steps.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from benchmarks import cases, torch_dit, torch_unet
from benchmarks.cases import Case, Side
from benchmarks.workload import Workload
from diffjax.errors import UserError
from diffjax.experiment import objective, process, sampling
from diffjax.experiment.spec import from_spec
from diffjax.schedules import Scales

NETWORKS: Mapping[str, Callable[..., Any]] = {
    "unet": torch_unet.from_config,
    "dit": torch_dit.from_config,
}
OPTIMIZERS: Mapping[str, Callable[..., Any]] = {
    "adam": lambda b1=0.9, b2=0.999, eps=1e-8: partial(
        torch.optim.Adam, betas=(b1, b2), eps=eps, fused=True
    ),
    "adamw": lambda b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01: partial(
        torch.optim.AdamW, betas=(b1, b2), eps=eps, weight_decay=weight_decay, fused=True
    ),
}


class Parametrisation(NamedTuple):
    """What a network predicts, in tensors: `diffjax.parametrisations` of the same name.

    Attributes:
      target: (x_0, eps, scales) -> what is predicted.
      estimates: (prediction, x_t, scales) -> (x_0, eps).
    """

    target: Callable[[Tensor, Tensor, Any], Tensor]
    estimates: Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor]]


# A pair is (signal_scale, noise_scale).
PARAMETRISATIONS = {
    "x0": Parametrisation(
        lambda x_0, eps, pair: x_0,
        lambda x_0, x_t, pair: (x_0, (x_t - pair[0] * x_0) / pair[1]),
    ),
    "eps": Parametrisation(
        lambda x_0, eps, pair: eps,
        lambda eps, x_t, pair: ((x_t - pair[1] * eps) / pair[0], eps),
    ),
    "v": Parametrisation(  # of a variance preserving schedule: signal^2 + noise^2 = 1
        lambda x_0, eps, pair: pair[0] * eps - pair[1] * x_0,
        lambda v, x_t, pair: (pair[0] * x_t - pair[1] * v, pair[1] * x_t + pair[0] * v),
    ),
    "velocity": Parametrisation(
        lambda x_0, eps, pair: eps - x_0,
        lambda value, x_t, pair: (
            (x_t - pair[1] * value) / (pair[0] + pair[1]),
            (x_t + pair[0] * value) / (pair[0] + pair[1]),
        ),
    ),
}


class Diffusion(NamedTuple):
    """A config's diffusion on a device. Tables are float32, (T+1,), over t = 0..T."""

    signal: Tensor
    noise: Tensor
    weight: Tensor
    parametrisation: Parametrisation
    target: Parametrisation
    stratified: bool

    @property
    def T(self) -> int:
        return len(self.signal) - 1


def diffusion_of(config: Any, device: torch.device) -> Diffusion:
    """The config's diffusion section for PyTorch.

    Raises:
      UserError: a schedule, parametrisation or time sampling that was not written for PyTorch.
    """
    ours = process.diffusion(config)
    target = objective.loss_target(config, ours)
    times = config.diffusion.time_sampling
    supported = {
        "diffusion.schedule": ours.schedule.discrete,
        "diffusion.parametrisation": ours.parametrisation.name in PARAMETRISATIONS,
        "diffusion.loss_target": target.name in PARAMETRISATIONS,
        "diffusion.time_sampling": times in ("uniform", "low_discrepancy"),
    }
    for key, is_supported in supported.items():
        if not is_supported:
            raise UserError(
                f"config.{key}: the PyTorch step has discrete schedules, no EDM and even times: "
                "write the other in benchmarks/torch_side.py"
            )
    T = int(ours.schedule.T)
    scales = ours.schedule(np.arange(T + 1))
    weights = objective.weighting(config)(ours.schedule, jnp.arange(1, T + 1), target)
    weight = np.concatenate([[0.0], np.asarray(weights)])  # t = 0 is not asked for

    def table(x: np.ndarray) -> Tensor:
        return torch.tensor(x, dtype=torch.float32, device=device)

    return Diffusion(
        table(scales.signal_scale), table(scales.noise_scale), table(weight),
        PARAMETRISATIONS[ours.parametrisation.name], PARAMETRISATIONS[target.name],
        times == "low_discrepancy",
    )  # fmt: skip


class _Setup:
    """What training and sampling share."""

    def __init__(self, case: Case, side: Side, device: str) -> None:
        if device == "gpu" and not torch.cuda.is_available():
            raise UserError(
                "this PyTorch sees no GPU: install its CUDA wheel, or pass --device=cpu"
            )
        self.case, self.side = case, side
        self.config = cases.config_of(case, side)
        self.device = torch.device("cuda" if device == "gpu" else "cpu")
        if device == "gpu":
            # What XLA does with float32 on a GPU, too.
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        torch.manual_seed(self.config.seed)
        make = NETWORKS[self.config.model.name]
        network = make(
            self.config.model, image_shape=case.image_shape, num_classes=cases.NUM_CLASSES
        )
        network.to(self.device)
        # PyTorch documents memory_format; its stubs do not know it.
        self.network = network.to(memory_format=torch.channels_last)
        self.diffusion = diffusion_of(self.config, self.device)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self.side.mode == "eager":
            return function
        mode = "max-autotune" if self.device.type == "cuda" else None
        return torch.compile(function, mode=mode)

    def predict(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.side.dtype == "bfloat16"
        ):
            return self.network(x_t, t.float() * (1000.0 / self.diffusion.T), labels)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def workload(self, step: Callable[[], None]) -> Workload:
        on_gpu = self.device.type == "cuda"
        device = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
        parameters = sum(p.numel() for p in self.network.parameters())
        return Workload(step, self.wait, parameters, None, device)


def train(case: Case, side: Side, device: str) -> Workload:
    """`diffjax.training.train_step.make_train_step`, from a uint8 batch on the host to the EMA."""
    setup = _Setup(case, side, device)
    setup.network.train()
    config, diffusion = setup.config, setup.diffusion
    size = case.batch_size

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        x_0 = images.float() / 127.5 - 1.0
        if config.data.flip:
            mirrored = torch.rand(size, 1, 1, 1, device=images.device) < 0.5
            x_0 = torch.where(mirrored, x_0.flip(3), x_0)
        if diffusion.stratified:
            places = torch.arange(size, device=images.device) / size
            level = (torch.rand(1, device=images.device) + places) % 1.0
        else:
            level = torch.rand(size, device=images.device)
        t = (1 + (level * diffusion.T).long()).clamp(1, diffusion.T)
        cond = None
        if config.model.class_conditional:
            dropped = torch.rand(size, device=images.device) < config.diffusion.condition_dropout
            cond = torch.where(dropped, -1, labels)
        eps = torch.randn_like(x_0)
        scales = Scales(
            diffusion.signal[t][:, None, None, None], diffusion.noise[t][:, None, None, None]
        )
        x_t = scales.signal_scale * x_0 + scales.noise_scale * eps
        output = setup.predict(x_t, t, cond)
        if diffusion.target is not diffusion.parametrisation:
            x_0_hat, eps_hat = diffusion.parametrisation.estimates(output, x_t, scales)
            output = diffusion.target.target(x_0_hat, eps_hat, scales)
        error = (output - diffusion.target.target(x_0, eps, scales)).square().mean((1, 2, 3))
        return (diffusion.weight[t] * error).mean()

    loss_fn = setup.compiled(loss_of)
    parameters = list(setup.network.parameters())
    average = [p.detach().clone() for p in parameters]
    make = from_spec(config.train.optimizer, OPTIMIZERS, key="train.optimizer")
    # The schedule's value is one number a step: nothing to time.
    optimizer = make(parameters, lr=config.train.learning_rate)
    clip = config.train.grad_clip or float("inf")
    batches = cases.batches(case)
    done = 0

    def step() -> None:
        nonlocal done
        batch = batches[done % len(batches)]
        images = torch.from_numpy(batch["image"]).to(setup.device, non_blocking=True)
        labels = torch.from_numpy(batch["label"]).to(setup.device, torch.int64, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        loss_fn(images.permute(0, 3, 1, 2), labels).backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip, foreach=True)
        optimizer.step()
        with torch.no_grad():
            decay = min(config.train.ema_decay, (1 + done) / (10 + done))
            torch._foreach_lerp_(average, parameters, 1 - decay)
        done += 1

    return setup.workload(step)


def sample(case: Case, side: Side, device: str) -> Workload:
    """A batch by deterministic DDIM with clipped estimates, from noise to uint8 on the host."""
    setup = _Setup(case, side, device)
    setup.network.eval()
    config, diffusion = setup.config, setup.diffusion
    grid = sampling.sampling(config, process.diffusion(config).schedule).grid
    height, width, channels = case.image_shape
    shape = (case.sample_size, channels, height, width)
    labels = None
    if config.model.class_conditional:
        labels = torch.arange(case.sample_size, device=setup.device) % cases.NUM_CLASSES
    # One row a step: t, the pair now, the pair next. A tensor, as a compiled step must not be
    # specialised to its numbers.
    rows = np.stack(
        [grid.t[:-1], grid.signal_scale[:-1], grid.noise_scale[:-1],
         grid.signal_scale[1:], grid.noise_scale[1:]], axis=1,
    )  # fmt: skip
    table = torch.tensor(rows, dtype=torch.float32, device=setup.device)

    def ddim_step(x_t: Tensor, row: Tensor) -> Tensor:
        t, signal, noise, next_signal, next_noise = row.unbind()
        scales = Scales(signal, noise)
        output = setup.predict(x_t, t.expand(len(x_t)), labels)
        x_0 = diffusion.parametrisation.estimates(output, x_t, scales)[0].clamp(-1, 1)
        return next_signal * x_0 + next_noise / noise * (x_t - signal * x_0)

    next_x = setup.compiled(ddim_step)

    @torch.inference_mode()
    def step() -> None:
        x = torch.randn(shape, device=setup.device).to(memory_format=torch.channels_last)
        for row in table:
            x = next_x(x, row)
        images = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        images.permute(0, 2, 3, 1).cpu().numpy()

    return setup.workload(step)
