"""Folders of runs as training leaves them, with weights nobody trained."""

from pathlib import Path

from flax import nnx

from vse_jax.checkpoints.runs import Checkpoints, TrainProgress
from vse_jax.config import save_config
from vse_jax.models.build import build_model, split_model


def write_run(config, folder: Path, seed: int = 0) -> Path:
    """`folder` with config.json and a best checkpoint of start values."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.json")
    _, model = split_model(build_model(config, rngs=nnx.Rngs(seed)))
    with Checkpoints(folder) as checkpoints:
        progress = TrainProgress(1, 1, best_rsum=1.0, best_step=1, best_epoch=1)
        checkpoints.save(model, None, progress)
    return folder
