"""What kind of model a folder holds, and its config; nothing here loads JAX.

It is a run's, a shared one, or a SigLIP of Hugging Face.
"""

import json
from pathlib import Path

from vse_jax.base.errors import InputError
from vse_jax.config import MODEL_FILE, Config, load_config


def is_siglip(folder: Path) -> bool:
    """Whether a folder's config.json is one of Hugging Face, of a SigLIP."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(kind, dict) and str(kind.get("model_type")).startswith("siglip")


def check_trainable(folder: Path) -> None:
    """Raises InputError where a run would mix with a model that came from elsewhere."""
    if (folder / MODEL_FILE).is_file() or is_siglip(folder):
        raise InputError(
            f"{folder}: holds a model that is not trained here; name another --workdir"
        )


def model_config(folder: Path, *, trust_code: bool = False) -> Config:
    """The config of the model in a folder.

    `trust_code`: a shared model's own classes may be imported.

    Raises:
        InputError: no model's folder, or of a model that cannot be used here; names
            what is wrong.
    """
    if is_siglip(folder):
        # On demand: it loads jax, and the command line is quick to refuse without.
        from vse_jax.checkpoints.siglip import siglip_config  # noqa: PLC0415

        return siglip_config(folder)
    return load_config(folder / "config.json", trust_code=trust_code)
