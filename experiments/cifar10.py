"""CIFAR-10, 32x32 colour, ten classes (Krizhevsky 2009), with DDPM's U-Net of 35.7 M parameters.

    python -m diffjax.main --config=experiments/cifar10.py

reads the set that tensorflow_datasets has prepared; where there is none,

    python -m diffjax.main --config=experiments/cifar10.py --config.data.dir=<folder>

reads a folder of images with one sub-folder a class, below train/ and test/ where it has those.
Ho et al. 2020 train 800,000 steps of 128 images; no figure was measured with this config yet.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Appendix B of Ho et al. 2020, with v-prediction on a cosine schedule."""
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.name = "tfds:cifar10"
    config.data.dir = ""
    config.data.image_size = 0
    config.data.channels = 0
    config.data.flip = True
    config.data.memory_limit_mb = 1024

    config.first_stage = ConfigDict()
    config.first_stage.workdir = ""
    config.first_stage.checkpoint = "latest"
    config.first_stage.tile = 0

    config.condition = ConfigDict()
    config.condition.text = "none"
    config.condition.map = "none"

    config.model = ConfigDict()
    config.model.channels = 128
    config.model.multipliers = (1, 2, 2, 2)
    config.model.blocks = 2
    config.model.attention_resolutions = (16,)
    config.model.transformer_depth = 1
    config.model.head_channels = 256
    config.model.dropout = 0.1
    config.model.class_conditional = False
    config.model.fourier = ()
    config.model.patch = 1
    config.model.block = "resnet"
    config.model.scale_shift = False
    config.model.attention = "softmax"
    config.model.dtype = "bfloat16"
    config.model.kernels = "auto"
    config.model.remat = "none"

    config.diffusion = ConfigDict()
    config.diffusion.objective = "squared_error"
    config.diffusion.schedule = "cosine"
    config.diffusion.zero_terminal_snr = False
    config.diffusion.log_snr_shift = 0.0
    config.diffusion.parametrisation = "v"
    config.diffusion.loss_target = "same"
    config.diffusion.weighting = "uniform"
    config.diffusion.time_sampling = "low_discrepancy"
    config.diffusion.learned_weighting = False
    config.diffusion.self_conditioning = 0.0
    config.diffusion.offset_noise = 0.0
    config.diffusion.condition_dropout = 0.0

    config.train = ConfigDict()
    config.train.steps = 800_000
    config.train.batch_size = 128
    config.train.optimizer = "adam"
    config.train.learning_rate = 2e-4
    config.train.schedule = "constant"
    config.train.warmup_steps = 5000
    config.train.grad_clip = 1.0
    config.train.accumulate = 1
    config.train.on_not_finite = "stop"
    config.train.ema = "warmed_up"
    config.train.ema_decay = 0.9999
    config.train.ema_snapshots = ()
    config.train.log_every = 100
    config.train.eval_every = 5000
    config.train.checkpoint_every = 5000
    config.train.sample_every = 20_000

    config.parallel = ConfigDict()
    config.parallel.strategy = "pmap"
    config.parallel.fsdp = 0
    config.parallel.min_size = 65536
    config.parallel.overrides = ()
    config.parallel.devices = 0
    config.parallel.compile = True

    config.sample = ConfigDict()
    config.sample.sampler = "dpm_solver_pp_2m"
    config.sample.grid = "trailing"
    config.sample.steps = 50
    config.sample.guidance = "none"
    config.sample.threshold = "clip"
    config.sample.count = 100
    config.sample.batch_size = 250
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
    config.evaluate.num_samples = 10_000
    config.evaluate.scales = ()
    config.evaluate.likelihood = "none"
    config.evaluate.images = 0

    config.ema = ConfigDict()
    config.ema.sigma_rel = 0.1
    config.ema.step = 0
    return config
