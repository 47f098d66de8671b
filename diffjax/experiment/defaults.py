"""Configs with every key at its default, which an experiment starts from.

    from diffjax.experiment import defaults

    def get_config():
        config = defaults.diffusion()
        config.data.name = "fashion_mnist"
        config.train.steps = 10_000
        return config

`python -m diffjax.main --config=FILE --mode=config` prints the complete config of a file, and
`--help=train.steps` explains a key. The fields of `config.model` depend on the network of
`config.model.name`, so they are absent until the experiment sets them.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from diffjax.experiment import keys, schema


def diffusion() -> ConfigDict:
    """A diffusion model: a U-Net, v-prediction, a cosine schedule. Set `data.name`."""
    return _config(keys.DIFFUSION)


def autoencoder() -> ConfigDict:
    """The first stage of a latent diffusion model. Set `data.name`."""
    return _config(keys.AUTOENCODER)


def pixelcnn() -> ConfigDict:
    """PixelCNN++, an autoregressive model to compare with. Set `data.name`."""
    return _config(keys.PIXELCNN)


def gan() -> ConfigDict:
    """A generator and a discriminator, with R3GAN's loss, to compare with. Set `data.name`."""
    return _config(keys.GAN)


def cascade() -> ConfigDict:
    """A base model and the upsamplers after it, each trained by itself. Set `cascade.stages`."""
    return _config(keys.CASCADE)


def _config(of_kind: Mapping[str, keys.Key]) -> ConfigDict:
    config = ConfigDict()
    for key, entry in of_kind.items():
        *sections, name = key.split(".")
        section = config
        for part in sections:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
        several = entry.rule.kind is object
        section[name] = schema.any_type(entry.default) if several else entry.default
    config.user = ConfigDict()
    return config
