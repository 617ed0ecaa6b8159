"""--mode=prepare: makes the data root that a config trains on."""

from vse_jax.base.errors import InputError
from vse_jax.config import Config
from vse_jax.data.prepare import openmoji, own_images
from vse_jax.data.prepare.region_tsv import prepare_regions
from vse_jax.data.prepare.sources import holds_regions, source_files


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
        folder, files = source_files(config.data.source)
        if holds_regions(files):
            prepare_regions(config, files)
        else:
            own_images.prepare(config, folder, files)
    elif config.data.name == "openmoji":
        openmoji.prepare(config)
    else:
        raise InputError(
            "config.data.source: name a file of captions, a folder with one, tars or "
            "region features"
        )
