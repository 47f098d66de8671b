"""What an experiment starts from: every key at its default.

    from diffjax.experiment import defaults

    def get_config():
        config = defaults.diffusion()
        config.data.name = "fashion_mnist"
        config.train.steps = 10_000
        return config

`python -m diffjax.main --config=FILE --mode=config` prints what a file comes to, and
`--help=train.steps` what a key means. The fields of `config.model` are those of the network that
`config.model.name` names, so they are not there before the experiment sets them.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from diffjax.experiment import schema


def diffusion() -> ConfigDict:
    """A diffusion model: a U-Net, v-prediction, a cosine schedule. `data.name` is to be set."""
    return _config(schema.DIFFUSION)


def autoencoder() -> ConfigDict:
    """The first stage of a latent diffusion model. `data.name` is to be set."""
    return _config(schema.AUTOENCODER)


def _config(keys: Mapping[str, schema.Key]) -> ConfigDict:
    config = ConfigDict()
    for key, entry in keys.items():
        *sections, name = key.split(".")
        section = config
        for part in sections:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
        section[name] = entry.default
    config.user = ConfigDict()
    return config
