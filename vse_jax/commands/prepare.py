"""--mode=prepare: makes the data root that a config trains on."""

from vse_jax.base.errors import InputError
from vse_jax.config import Config
from vse_jax.data.prepare import openmoji, own_images


def prepare(config: Config) -> None:
    """Writes config.data.root from config.data.source or the embedded images.

    Raises:
        InputError: nothing to prepare from, or bad input (names file and line).
    """
    if "://" in config.data.root:
        raise InputError(
            f"config.data.root: {config.data.root}: prepare and export a local folder, "
            "then upload it"
        )
    if config.data.source is not None:
        own_images.prepare(config)
    elif config.data.name == "openmoji":
        openmoji.prepare(config)
    else:
        raise InputError(
            "config.data.source: name a CSV file or a folder of images with captions"
        )
