"""Fashion-MNIST's likelihood in bits per dimension: 28x28, 8 bits (Xiao et al. 2017; MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist_likelihood.py
    python -m diffjax.main --config=experiments/fashion_mnist_likelihood.py --mode=evaluate

2.935 +- 0.009 bits/dim on all 10,000 test images by the continuous-time bound, after an hour beside
other work on 2 cores of an AMD EPYC with AVX2 and without a GPU (2026-11-25); see RESULTS.md.

A pixel's 256 levels get logits, which the likelihood of the noisy pixel joins (`categorical`): with
them a small network learns in minutes what one that predicts eps takes far longer for.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The continuous-time bound, by a network that tells levels apart."""
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.name = "fashion_mnist"
    config.data.dir = ""
    config.data.image_size = 0
    config.data.channels = 0
    config.data.flip = False
    config.data.memory_limit_mb = 1024

    config.first_stage = ConfigDict()
    config.first_stage.workdir = ""
    config.first_stage.checkpoint = "latest"
    config.first_stage.tile = 0

    config.condition = ConfigDict()
    config.condition.text = "none"
    config.condition.map = "none"

    config.model = ConfigDict()
    config.model.channels = 64
    config.model.multipliers = (1, 1)
    config.model.blocks = 2
    config.model.attention_resolutions = ()
    config.model.transformer_depth = 1
    config.model.head_channels = 32
    config.model.dropout = 0.0
    config.model.class_conditional = False
    config.model.fourier = ()
    config.model.patch = 2
    config.model.block = "resnet"
    config.model.scale_shift = True
    config.model.attention = "softmax"
    config.model.dtype = "float32"
    config.model.kernels = "auto"
    config.model.remat = "none"

    config.diffusion = ConfigDict()
    config.diffusion.objective = "vdm(gamma='network')"
    config.diffusion.schedule = "linear_log_snr(log_snr_min=-6.0, log_snr_max=13.3)"
    config.diffusion.zero_terminal_snr = False
    config.diffusion.log_snr_shift = 0.0
    config.diffusion.parametrisation = "categorical"
    config.diffusion.loss_target = "same"
    config.diffusion.weighting = "uniform"
    config.diffusion.time_sampling = "low_discrepancy"
    config.diffusion.learned_weighting = False
    config.diffusion.self_conditioning = 0.0
    config.diffusion.offset_noise = 0.0
    config.diffusion.condition_dropout = 0.0

    config.train = ConfigDict()
    config.train.steps = 7500
    config.train.batch_size = 32
    config.train.optimizer = "adam(b2=0.99)"
    config.train.learning_rate = 1e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 100
    config.train.grad_clip = 1.0
    config.train.accumulate = 1
    config.train.on_not_finite = "stop"
    config.train.ema = "warmed_up"
    config.train.ema_decay = 0.999
    config.train.ema_snapshots = (0.05, 0.1)
    config.train.log_every = 100
    config.train.eval_every = 500
    config.train.checkpoint_every = 500
    config.train.sample_every = 2000

    config.parallel = ConfigDict()
    config.parallel.strategy = "pmap"
    config.parallel.fsdp = 0
    config.parallel.min_size = 65536
    config.parallel.overrides = ()
    config.parallel.devices = 0
    config.parallel.compile = True

    config.sample = ConfigDict()
    config.sample.sampler = "ancestral"
    config.sample.grid = "linspace"
    config.sample.steps = 100
    config.sample.guidance = "none"
    config.sample.threshold = "none"
    config.sample.count = 50
    config.sample.batch_size = 50
    config.sample.labels = ()
    config.sample.prompt = ""
    config.sample.negative_prompt = ""
    config.sample.maps = ""
    config.sample.seed = 0
    config.sample.checkpoint = "latest"

    config.edit = ConfigDict()
    config.edit.task = "vary(strength=0.5)"
    config.edit.images = ""
    config.edit.mask = ""
    config.edit.labels = ()
    config.edit.prompt = ""
    config.edit.count = 5

    config.evaluate = ConfigDict()
    config.evaluate.num_samples = 2000
    config.evaluate.scales = ()
    config.evaluate.likelihood = "vdm"
    config.evaluate.images = 0

    config.ema = ConfigDict()
    config.ema.sigma_rel = 0.1
    config.ema.step = 0

    return config
