"""The digits with a custom transformer, loss and sampler, and optax's Lion.

python -m diffjax.main --config=examples/doors/digits_transformer.py
"""

from diffjax.experiment import defaults


def get_config():
    config = defaults.diffusion()
    config.data.name = "digits"
    config.model.update(name="transformer:Transformer", depth=4, width=64)
    config.diffusion.objective = "losses:huber(delta=0.5)"
    config.train.optimizer = "optax:lion(b2=0.98, weight_decay=0.01)"
    config.train.update(steps=3000, batch_size=64, learning_rate=5e-4, warmup_steps=100)
    config.train.update(ema_decay=0.99, log_every=100, sample_every=1000)
    config.sample.update(sampler="sampling:euler", grid="sampling:even(power=2.0)", steps=30)
    config.sample.guidance = "sampling:classifier_free(scale=1.5)"
    return config
