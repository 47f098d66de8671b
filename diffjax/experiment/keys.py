"""Every key of a config: its type, default, bounds and meaning, for each kind of config.

What a config is completed with and checked against; see `schema`.
"""

from collections.abc import Mapping

from diffjax.experiment.rules import (
    CHANNELS,
    CHECKPOINT,
    FORMATS,
    IMAGE_SIZE,
    LEVEL,
    LEVELS,
    MODEL_CHECKPOINT,
    NAME,
    NOT_NEGATIVE,
    NUMBER,
    NUMBERS,
    ON_BROKEN,
    ON_NOT_FINITE,
    OVERRIDES,
    PARAMETERS,
    POSITIVE,
    SEED,
    SHARE,
    SIZES,
    SPEC,
    SPECS,
    STAGES,
    STEP_CHECKPOINT,
    STEPS,
    SWITCH,
    TEXT,
    TEXTS,
    TIME_INPUT,
    WHOLES,
    Key,
    per_stage,
    whole,
)

# In the order in which --mode=config prints them.
_SEED = {"seed": Key(SEED, 0, "seed of all randomness in training")}
_DATA = {
    "data.name": Key(
        NAME, "", "digits, fashion_mnist, tfds:<name>, folder:<path>, or a path to your own"
    ),
    "data.dir": Key(TEXT, "", "folder of a TFDS or custom set; empty: $TFDS_DATA_DIR"),
    "data.image_size": Key(
        IMAGE_SIZE, 0, "side that images are resized to, or (height, width); 0: as stored"
    ),
    "data.channels": Key(CHANNELS, 0, "1 (grey) or 3 (RGB); 0: as stored"),
    "data.flip": Key(SWITCH, False, "mirror half of the training images left to right"),
    "data.augment": Key(
        SPECS,
        (),
        "changes of training images: flip, rotate90, crop, window, translate, colour, or a path",
    ),
    "data.memory_limit_mb": Key(whole(0), 1024, "a larger set is streamed from disk"),
    "data.on_broken": Key(
        ON_BROKEN, "stop", "whether images that can't be read stop the run or are skipped"
    ),
    "data.caption": Key(TEXT, "", "column of a folder's captions; empty: text, caption or prompt"),
}
_TRAIN = {
    "train.steps": Key(whole(1), 40_000, "updates of the parameters"),
    "train.batch_size": Key(whole(1), 256, "examples per step, over all devices"),
    "train.optimizer": Key(
        SPEC, "adamw(b2=0.99)", "adam, adamw, or a path to learning_rate -> optax transformation"
    ),
    "train.learning_rate": Key(POSITIVE, 5e-4, "peak learning rate, after the warm-up"),
    "train.schedule": Key(SPEC, "cosine", "schedule of the learning rate after the warm-up"),
    "train.warmup_steps": Key(whole(0), 500, "steps of linear warm-up"),
    "train.grad_clip": Key(NOT_NEGATIVE, 1.0, "largest global norm of the gradient; 0: no limit"),
    "train.on_not_finite": Key(
        ON_NOT_FINITE, "stop", "whether a step with a NaN or infinity stops the run or is skipped"
    ),
    "train.init_from": Key(
        TEXT, "", "run whose weights a new run starts from: <workdir>[@checkpoint]"
    ),
    "train.init_parameters": Key(
        PARAMETERS, "averaged", "which of its parameters: averaged, or raw with their average"
    ),
    "train.init_optimizer": Key(SWITCH, False, "whether its optimizer's moments are taken, too"),
    "train.init_strict": Key(SWITCH, False, "whether all of its arrays must fit"),
    "train.ema_decay": Key(SHARE, 0.9995, "decay of the averaged parameters"),
    "train.log_every": Key(whole(1), 100, "steps between lines of the log"),
    "train.eval_every": Key(whole(1), 1000, "steps between held-out losses"),
    "train.checkpoint_every": Key(whole(1), 1000, "steps between checkpoints"),
    "train.keep_every": Key(
        whole(0), 0, "steps between checkpoints that are kept besides the last and best; 0: none"
    ),
    "train.sample_every": Key(whole(1), 5000, "steps between pictures"),
}
_PARALLEL = {
    "parallel.strategy": Key(SPEC, "pmap", "pmap (replicated) or fsdp (parameters sharded)"),
    "parallel.fsdp": Key(whole(0), 0, "devices that parameters are sharded over; 0: all"),
    "parallel.min_size": Key(whole(1), 65536, "smaller arrays are not sharded"),
    "parallel.overrides": Key(
        OVERRIDES, (), "(regular expression of array names, sharded axis or None) pairs"
    ),
    "parallel.devices": Key(whole(0), 0, "devices that --mode=plan plans for; 0: local ones"),
    "parallel.compile": Key(SWITCH, True, "whether --mode=plan compiles, for temporary memory"),
}
DIFFUSION: Mapping[str, Key] = {
    **_SEED,
    **_DATA,
    "data.prompt": Key(
        TEXT, "", "caption of every image of a set without captions, or several, separated by |"
    ),
    "data.prior": Key(
        TEXT,
        "",
        "folder of images that every second example is taken of, such as samples of the class in "
        "DreamBooth; empty: none",
    ),
    "data.prior_prompt": Key(TEXT, "", "caption of every image of data.prior"),
    "data.embedding": Key(
        SPEC,
        "none",
        "embedding that takes the images' place as x_0, for a prior: efficientnet_lite0, clip, "
        "inception, or a path",
    ),
    "first_stage.workdir": Key(TEXT, "", "workdir of a trained autoencoder; empty: no first stage"),
    "first_stage.checkpoint": Key(CHECKPOINT, "latest", "checkpoint of the first stage"),
    "first_stage.tile": Key(whole(0), 0, "side of tiles that latents are decoded in; 0: whole"),
    "condition.text": Key(SPEC, "none", "text encoder: none, minilm, clip, t5, transformer"),
    "condition.map": Key(
        SPEC,
        "none",
        "map given to the network: low_resolution, super_resolution, silhouette, edges",
    ),
    "condition.keep_map": Key(
        SWITCH,
        False,
        "keep the map where condition_dropout and guidance drop class and text, as in cascades",
    ),
    "condition.embedding": Key(
        SPEC,
        "none",
        "embedding of its own image that the network is given, for a prior's decoder",
    ),
    "embedding.dimensions": Key(
        whole(0), 128, "whitened components of an embedding; 0: all of it, scaled to length sqrt(D)"
    ),
    "model.name": Key(
        SPEC, "unet", "the network: unet, dit, edm2, prior, stable_diffusion, or a path to your own"
    ),
    "model.class_conditional": Key(SWITCH, True, "whether the network takes the class"),
    "diffusion.objective": Key(
        SPEC,
        "squared_error",
        "squared_error, hybrid, vlb, vdm; of few-step models: mean_flow, consistency, "
        "continuous_consistency, progressive, shortcut, distribution_matching",
    ),
    "diffusion.teacher": Key(
        TEXT, "", "model that a few-step model is distilled from: <workdir>[@checkpoint]"
    ),
    "diffusion.teacher_guidance": Key(
        SPEC,
        "none",
        "guidance of the teacher, which the student learns: none, classifier_free(scale=2.0)",
    ),
    "diffusion.pairs": Key(
        SPEC,
        "none",
        "noise and the teacher's samples of it instead of data (reflow): none, "
        "ode(count=50000, steps=25)",
    ),
    "diffusion.schedule": Key(SPEC, "cosine", "the noise schedule"),
    "diffusion.zero_terminal_snr": Key(SWITCH, False, "rescale a discrete schedule to SNR 0 at T"),
    "diffusion.log_snr_shift": Key(NUMBER, 0.0, "added to a continuous schedule's log-SNR"),
    "diffusion.parametrisation": Key(SPEC, "v", "what the network predicts"),
    "diffusion.time_input": Key(
        TIME_INPUT,
        "auto",
        "what the network is given of t: scaled (0 to 1000), unit (0 to 1; for objectives that "
        "differentiate in time), log_sigma (EDM's), step (t - 1, Stable Diffusion's); auto: by "
        "parametrisation and objective",
    ),
    "diffusion.loss_target": Key(SPEC, "same", "what the squared error is measured in"),
    "diffusion.weighting": Key(SPEC, "uniform", "weight of the squared error by noise level"),
    "diffusion.time_sampling": Key(SPEC, "low_discrepancy", "distribution of training times"),
    "diffusion.learned_weighting": Key(SWITCH, False, "learn a log-variance by noise level (EDM2)"),
    "diffusion.self_conditioning": Key(SHARE, 0.0, "share of examples with self-conditioning"),
    "diffusion.offset_noise": Key(NOT_NEGATIVE, 0.0, "strength of noise shared by all pixels"),
    "diffusion.augment": Key(
        SPEC,
        "none",
        "augmentation that the network is given, and samples are without: none or edm",
    ),
    "diffusion.condition_dropout": Key(SHARE, 0.1, "share of examples without their condition"),
    "diffusion.embedding_dropout": Key(
        SHARE, 0.1, "share of examples without condition.embedding, dropped by itself"
    ),
    **_TRAIN,
    "train.accumulate": Key(whole(1), 1, "micro-batches per batch"),
    "train.ema": Key(SPEC, "warmed_up", "the average: warmed_up, constant, inverse, power"),
    "train.ema_snapshots": Key(NUMBERS, (), "sigma_rel of power averages kept for --mode=ema"),
    **_PARALLEL,
    "sample.sampler": Key(SPEC, "dpm_solver_pp_2m", "the sampler"),
    "sample.grid": Key(SPEC, "trailing", "the times of its steps"),
    "sample.steps": Key(STEPS, 40, "number of steps"),
    "sample.guidance": Key(SPEC, "none", "guidance, such as classifier_free(scale=1.5)"),
    "sample.threshold": Key(SPEC, "clip", "how x_0 is kept in range: none, clip, dynamic"),
    "sample.count": Key(whole(1), 100, "number of samples"),
    "sample.batch_size": Key(whole(1), 250, "samples per batch"),
    "sample.format": Key(
        FORMATS, "grid,npz", "files of --mode=sample: png (one per sample), grid, npz, or several"
    ),
    "sample.labels": Key(WHOLES, (), "classes, in turn; -1 for none; empty: every class"),
    "sample.prompt": Key(TEXT, "", "prompts separated by |, or file:PATH"),
    "sample.negative_prompt": Key(TEXT, "", "prompt that guidance moves away from"),
    "sample.maps": Key(TEXT, "", "image files that maps are made from"),
    "sample.augmentation_level": Key(
        LEVEL, 0.0, "noise added to the map of super_resolution: 0 for none, 1 for noise alone"
    ),
    "sample.prior": Key(
        TEXT, "", "prior that draws the embeddings of prompts for a decoder: <workdir>[@checkpoint]"
    ),
    "sample.candidates": Key(
        whole(1), 2, "embeddings drawn for each prompt, of which the nearest to the text is kept"
    ),
    "sample.seed": Key(SEED, 0, "seed of the noise"),
    "sample.checkpoint": Key(MODEL_CHECKPOINT, "latest", "checkpoint to sample from"),
    "edit.task": Key(SPEC, "vary(strength=0.5)", "the task of --mode=edit"),
    "edit.images": Key(TEXT, "", "image files"),
    "edit.mask": Key(TEXT, "", "image file, white where the image is kept"),
    "edit.labels": Key(WHOLES, (), "classes of the images"),
    "edit.prompt": Key(TEXT, "", "one prompt, or one per image separated by |"),
    "edit.count": Key(whole(1), 5, "number of variants, or of pictures between two images"),
    "evaluate.num_samples": Key(whole(2), 10_000, "samples that distances are computed from"),
    "evaluate.features": Key(
        SPEC,
        "auto",
        "what distances are measured in: auto (classifier for labelled sets, else "
        "efficientnet_lite0), classifier, efficientnet_lite0, inception(file='PATH')",
    ),
    "evaluate.scales": Key(NUMBERS, (), "guidance scales to compare"),
    "evaluate.likelihood": Key(SPEC, "none", "none, vlb, vdm or ode"),
    "evaluate.images": Key(whole(0), 0, "images that a likelihood is computed for; 0: all"),
    "ema.sigma_rel": Key(POSITIVE, 0.1, "width of the average that --mode=ema rebuilds"),
    "ema.step": Key(whole(0), 0, "last step of that average; 0: the last of the run"),
}
_AUTOENCODER_TRAIN = _TRAIN | {
    "train.steps": Key(whole(1), 20_000, "updates of the parameters"),
    "train.optimizer": _TRAIN["train.optimizer"]._replace(default="adam(b1=0.5, b2=0.9)"),
    "train.learning_rate": _TRAIN["train.learning_rate"]._replace(default=3e-4),
    "train.ema_decay": _TRAIN["train.ema_decay"]._replace(default=0.999),
    "train.sample_every": _TRAIN["train.sample_every"]._replace(default=2000),
}
AUTOENCODER: Mapping[str, Key] = {
    **_SEED,
    **_DATA,
    "autoencoder.latent_channels": Key(whole(1), 4, "channels of the latents"),
    "autoencoder.channels": Key(whole(1), 64, "channels of the first level"),
    "autoencoder.multipliers": Key(
        SIZES, (1, 2, 4), "channels of each level / autoencoder.channels"
    ),
    "autoencoder.blocks": Key(whole(1), 2, "residual blocks per level"),
    "autoencoder.patch": Key(whole(1), 1, "side of patches folded into channels"),
    "autoencoder.layout": Key(
        SPEC, "diffjax", "diffjax, or diffusers: an AutoencoderKL, for --format=diffusers"
    ),
    "autoencoder.regulariser": Key(SPEC, "kl(weight=1e-3)", "kl or vq"),
    "autoencoder.dtype": Key(SPEC, "bfloat16", "compute type: float32 or bfloat16"),
    "autoencoder.kernels": Key(SPEC, "auto", "backend of convolutions: auto, onednn, xla"),
    "loss.reconstruction": Key(SPEC, "l1", "pixel error: l1 or l2"),
    "loss.perceptual": Key(SPEC, "classifier", "network whose features are compared, or none"),
    "loss.perceptual_weight": Key(NOT_NEGATIVE, 0.1, "weight of the perceptual distance"),
    "loss.adversarial": Key(SPEC, "patch(channels=64, layers=2)", "discriminator, or none"),
    "loss.adversarial_weight": Key(NOT_NEGATIVE, 0.2, "weight of the adversarial loss"),
    "loss.adversarial_start": Key(whole(0), 4000, "first step with the discriminator"),
    **_AUTOENCODER_TRAIN,
    **_PARALLEL,
    "sample.count": Key(whole(1), 40, "images that are reconstructed"),
    "sample.batch_size": Key(whole(1), 250, "images per batch"),
    "sample.checkpoint": Key(CHECKPOINT, "latest", "checkpoint to reconstruct with"),
    "evaluate.num_samples": Key(whole(2), 10_000, "images that distances are computed from"),
    "evaluate.features": Key(
        SPEC,
        "auto",
        "what distances are measured in: auto (classifier for labelled sets, else the perceptual "
        "network), classifier, efficientnet_lite0, inception(file='PATH')",
    ),
}
_IMAGE_SAMPLES: Mapping[str, Key] = {
    "sample.count": Key(whole(1), 100, "number of samples"),
    "sample.batch_size": Key(whole(1), 100, "samples per batch"),
    "sample.format": DIFFUSION["sample.format"],
    "sample.labels": Key(WHOLES, (), "classes, in turn; empty: every class"),
    "sample.seed": Key(SEED, 0, "seed of the samples"),
}
PIXELCNN: Mapping[str, Key] = {
    **_SEED,
    **_DATA,
    "pixelcnn.channels": Key(whole(1), 160, "channels of both streams"),
    "pixelcnn.blocks": Key(whole(1), 5, "gated blocks per level"),
    "pixelcnn.levels": Key(whole(1), 3, "resolutions, each half of the previous one"),
    "pixelcnn.components": Key(whole(1), 10, "logistic distributions in a pixel's mixture"),
    "pixelcnn.dropout": Key(SHARE, 0.5, "rate in the gated blocks"),
    "pixelcnn.class_conditional": Key(SWITCH, True, "whether the network takes the class"),
    "pixelcnn.dtype": Key(SPEC, "bfloat16", "compute type: float32 or bfloat16"),
    "pixelcnn.kernels": Key(SPEC, "auto", "backend of convolutions: auto, onednn, xla"),
    **_TRAIN,
    "train.optimizer": _TRAIN["train.optimizer"]._replace(default="adam(b1=0.95, b2=0.9995)"),
    "train.learning_rate": _TRAIN["train.learning_rate"]._replace(default=1e-3),
    "train.accumulate": DIFFUSION["train.accumulate"],
    **_PARALLEL,
    **_IMAGE_SAMPLES,
    "sample.checkpoint": Key(CHECKPOINT, "latest", "checkpoint to sample from"),
    "evaluate.likelihood": Key(
        SPEC, "exact", "exact (bits/dim of the test images), or none: distances of samples"
    ),
    "evaluate.images": DIFFUSION["evaluate.images"],
    "evaluate.num_samples": DIFFUSION["evaluate.num_samples"],
    "evaluate.features": DIFFUSION["evaluate.features"],
}
GAN: Mapping[str, Key] = {
    **_SEED,
    **_DATA,
    "gan.loss": Key(SPEC, "r3gan(gamma=0.1)", "losses of both networks: r3gan or hinge"),
    "gan.latent_size": Key(whole(1), 64, "size of z, which samples are made of"),
    "gan.channels": Key(SIZES, (48, 96, 192), "channels of each level, each half as wide"),
    "gan.blocks": Key(whole(1), 1, "residual blocks per level"),
    "gan.spectral_norm": Key(SWITCH, False, "whether the discriminator's kernels have norm 1"),
    "gan.discriminator_rate": Key(
        POSITIVE, 1.0, "learning rate of the discriminator / train.learning_rate"
    ),
    "gan.class_conditional": Key(SWITCH, True, "whether the networks take the class"),
    "gan.dtype": Key(SPEC, "float32", "compute type: float32 or bfloat16"),
    "gan.kernels": Key(SPEC, "auto", "backend of convolutions: auto, onednn, xla"),
    **_TRAIN,
    "train.optimizer": _TRAIN["train.optimizer"]._replace(default="adam(b1=0.0, b2=0.99)"),
    "train.learning_rate": _TRAIN["train.learning_rate"]._replace(default=2e-4),
    "train.grad_clip": _TRAIN["train.grad_clip"]._replace(default=0.0),
    "train.ema_decay": _TRAIN["train.ema_decay"]._replace(default=0.999),
    "train.accumulate": DIFFUSION["train.accumulate"],
    **_PARALLEL,
    **_IMAGE_SAMPLES,
    "sample.checkpoint": Key(STEP_CHECKPOINT, "latest", "checkpoint to sample from"),
    "evaluate.num_samples": DIFFUSION["evaluate.num_samples"],
    "evaluate.features": DIFFUSION["evaluate.features"],
}
# Settings of `sample` that a cascade may override for each stage.
PER_STAGE = ("sampler", "grid", "steps", "guidance", "threshold", "augmentation_level")
CASCADE: Mapping[str, Key] = {
    "cascade.stages": Key(STAGES, (), "workdirs: of the base model, then of each upsampler"),
    "cascade.configs": Key(
        TEXTS, (), "config files that train the stages, for --mode=train to name: FILE[:variant]"
    ),
    **{
        f"cascade.{name}": Key(
            per_stage(DIFFUSION[f"sample.{name}"].rule),
            (),
            f"of each stage, in place of its run's config.sample.{name}",
        )
        for name in PER_STAGE
    },
    "cascade.checkpoint": Key(per_stage(MODEL_CHECKPOINT), (), "of each stage; None for latest"),
    "sample.count": Key(whole(1), 24, "number of samples"),
    "sample.batch_size": Key(whole(1), 64, "samples per batch, in every stage"),
    **{
        f"sample.{name}": DIFFUSION[f"sample.{name}"]
        for name in ("format", "labels", "prompt", "negative_prompt", "seed")
    },
    "evaluate.num_samples": DIFFUSION["evaluate.num_samples"],
    "evaluate.features": DIFFUSION["evaluate.features"],
    "evaluate.augmentation_levels": Key(
        LEVELS, (), "noise levels of the last stage's low-resolution images to compare"
    ),
}
