"""--mode=export_model: the best model as programs that run without this package."""

import json
from pathlib import Path

import jax

from vse_jax.base.files import whole_folder, write_atomically
from vse_jax.checkpoints import preprocessing
from vse_jax.checkpoints.export import PLATFORMS, export_towers
from vse_jax.checkpoints.load import load_model
from vse_jax.checkpoints.share import write_arrays
from vse_jax.config import Config
from vse_jax.data.tokenizers import caption_tokenizer
from vse_jax.distributed.mesh import on_one_device


def export_model(config: Config, workdir: Path) -> None:
    """Writes W/exported/: both towers as StableHLO, and what prepares their inputs.

    Its README.txt says what the files are, and has a program that reads them.

    Raises:
        InputError: no model or no vocabulary, or the folder cannot be written.
    """
    _, mesh = on_one_device(config)
    config, graphdef, model, _ = load_model(config, workdir, mesh)
    tokenizer = caption_tokenizer(config)
    towers = export_towers(config, graphdef, jax.device_get(model))
    target = workdir / "exported"
    with whole_folder(target, replace=True) as folder:
        for name, tower in towers.items():
            write_atomically(folder / f"{name}_tower.stablehlo", tower.program)
            write_arrays(folder / f"{name}_tower.safetensors", tower.arrays)
        about = json.dumps(preprocessing.described(config), indent=1) + "\n"
        texts = {
            "preprocessing.json": about,
            preprocessing.tokenizer_name(config): tokenizer.as_json(),
            "README.txt": preprocessing.readme(config),
        }
        for name, text in texts.items():
            write_atomically(folder / name, text.encode())
    size = sum(file.stat().st_size for file in target.iterdir()) / 1e6
    print(f"{target}: both towers for {', '.join(PLATFORMS)}, {size:,.1f} MB")
