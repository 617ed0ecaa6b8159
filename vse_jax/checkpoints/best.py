"""The best model of a run, for everything that uses one."""

from pathlib import Path

from absl import logging
from flax import nnx
from jax.sharding import Mesh

from vse_jax.base.errors import InputError
from vse_jax.checkpoints.model_folder import is_siglip
from vse_jax.checkpoints.runs import Checkpoints
from vse_jax.checkpoints.shared import read_model
from vse_jax.checkpoints.zero_shot import is_zero_shot, zero_shot_model
from vse_jax.config import EVALUATION_FREE, MODEL_FILE, Config, check_same_run
from vse_jax.data.digests import vocabulary_digest
from vse_jax.data.vocabulary import (
    find_vocabulary,
    settle_vocab_size,
    settle_vocabulary,
)
from vse_jax.distributed.mesh import (
    make_mesh,
    put_sharded,
    state_sharding,
    with_sharding,
)
from vse_jax.evaluation.encode import Model
from vse_jax.models.build import abstract_model


def load_best(
    config: Config, workdir: Path, mesh: Mesh | None = None
) -> tuple[nnx.GraphDef, Model, Mesh]:
    """(graph definition, model, mesh) of the best checkpoint in `workdir`.

    Or, where there are no checkpoints, of the shared model that lies there, or of the
    published SigLIP that the config names.

    The mesh is the config's, over all devices, where none is given.

    Raises:
        InputError: no model, another one than the config's, or another vocabulary than
            the model's.
    """
    settle_vocabulary(config, workdir)
    settle_vocab_size(config)
    mesh = mesh or make_mesh(config)
    has_checkpoints = (workdir / "checkpoints").is_dir()
    shared = (workdir / MODEL_FILE).is_file() and not is_siglip(workdir)
    if not has_checkpoints and not shared:
        if is_zero_shot(config):
            return zero_shot_model(config, mesh)
        raise InputError(f"{workdir}: no checkpoints there; train first")
    check_same_run(config, workdir / "config.json", EVALUATION_FREE)
    graphdef, abstract = abstract_model(config)
    abstract = with_sharding(abstract, state_sharding(mesh, abstract))
    if not has_checkpoints:
        return graphdef, put_sharded(read_model(workdir, abstract), abstract), mesh
    with Checkpoints(workdir, read_only=True) as checkpoints:
        model, data = checkpoints.restore_best(abstract)
    trained_with = data.get("vocabulary")  # of a converted model not known
    if trained_with not in (None, vocabulary_digest(config)):
        raise InputError(
            f"{find_vocabulary(config)}: not the vocabulary that the model in "
            f"{workdir} was trained with; name that with config.text.vocab"
        )
    logging.info("%s: best checkpoint, dev rsum %.1f", workdir, data["rsum"])
    return graphdef, model, mesh
