"""The best model of a run, a shared model or a published SigLIP: one function loads it.

Arrays of a shared model lie in model.safetensors by their paths, float32: parameters
(params/image/fc/kernel, …) and running statistics (batch_stats/image/backbone/bn1/mean,
…).
"""

from typing import Any, NamedTuple

import numpy as np
import safetensors
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, local_copy, resolve_folder
from vse_jax.base.trees import flatten, merge
from vse_jax.checkpoints.folder import is_siglip
from vse_jax.checkpoints.runs import Checkpoints
from vse_jax.checkpoints.siglip import (
    check_zero_shot,
    is_zero_shot,
    load_siglip,
    resolve_siglip,
)
from vse_jax.checkpoints.torch.keys import listed
from vse_jax.checkpoints.torch.torch_file import unreadable_safetensors
from vse_jax.config import (
    EVALUATION,
    MODEL_FILE,
    Config,
    check_same_run,
    with_fields,
)
from vse_jax.data.digests import vocabulary_digest
from vse_jax.data.vocabulary import (
    find_vocabulary,
    resolve_vocab_size,
    resolve_vocabulary,
)
from vse_jax.distributed.mesh import (
    encoder_sharding,
    make_mesh,
    put_sharded,
    with_sharding,
)
from vse_jax.models.build import abstract_model


class LoadedModel(NamedTuple):
    """A model that is ready to encode.

    config: the model's, with the vocabulary and the sizes that its files decide.
    graphdef: the modules without their arrays.
    arrays: {"params", "batch_stats"} on the mesh.
    """

    config: Config
    graphdef: nnx.GraphDef
    arrays: dict[str, Any]
    mesh: Mesh


def resolve(config: Config, folder: AnyPath | None) -> Config:
    """The config with what the files that it names decide: vocabulary and sizes.

    `folder`: of the model that it uses or goes on with; None: there is none yet. If it
    is a published SigLIP's, both encoders' weights are there.

    Raises:
        InputError: no vocabulary or a bad one, another one than the model's, or a
            SigLIP of another architecture.
    """
    if folder is not None and is_siglip(folder):
        own = dict.fromkeys(("image.weights", "text.weights"), str(folder))
        config = with_fields(config, own)
    if folder is not None:
        config = resolve_vocabulary(config, folder)
    return resolve_siglip(resolve_vocab_size(config))


def load_model(
    config: Config, folder: AnyPath, mesh: Mesh | None = None
) -> LoadedModel:
    """The best checkpoint in a folder, else the shared model there, else a SigLIP.

    The last is the published one that the folder holds or, if it holds none, whose
    folder the config names; not trained further. `mesh`: where its arrays are placed;
    None: the config's, over all devices.

    Raises:
        InputError: no model, another one than the config's, or another vocabulary than
            the model's.
    """
    config = resolve(config, folder)
    mesh = mesh or make_mesh(config)
    is_run = (folder / "checkpoints").is_dir()
    is_shared = (folder / MODEL_FILE).is_file() and not is_siglip(folder)
    if is_run or is_shared:
        check_same_run(config, folder / "config.json", EVALUATION)
    elif is_siglip(folder):
        check_zero_shot(config, folder)
    elif not is_zero_shot(config):
        raise InputError(f"{folder}: no checkpoints there; train first")

    graphdef, abstract = abstract_model(config)
    abstract = with_sharding(abstract, encoder_sharding(mesh, abstract))
    if is_run:
        with Checkpoints(folder, read_only=True) as checkpoints:
            arrays, progress = checkpoints.restore_best(abstract)
        trained_with = progress.data.get("vocabulary")  # of a converted model not known
        if trained_with not in (None, vocabulary_digest(config)):
            raise InputError(
                f"{find_vocabulary(config)}: not the vocabulary that the model in "
                f"{folder} was trained with; name that with config.text.vocab"
            )
        rsum = progress.best_rsum
        logging.info("%s: best checkpoint, dev rsum %.1f", folder, rsum)
    elif is_shared:
        arrays = put_sharded(_read_arrays(folder / MODEL_FILE, abstract), abstract)
    else:
        assert config.image.weights is not None
        published = resolve_folder(config.image.weights)
        params = load_siglip(published, abstract["params"])
        arrays = abstract | {"params": put_sharded(params, abstract["params"])}
        logging.info("%s: the published model, not trained any further", published)
    return LoadedModel(config, graphdef, arrays, mesh)


def _read_arrays(file: AnyPath, abstract: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a shared model as a tree like `abstract`."""
    expected = flatten(abstract)
    problems = []
    try:
        with (
            local_copy(file) as local,
            safetensors.safe_open(local, "np") as content,
        ):
            # Names, shapes and types stand in the file's header.
            there = set(content.keys())
            unexpected = [f"{x} is unexpected" for x in sorted(there - expected.keys())]
            for name, leaf in expected.items():
                if name not in there:
                    problems.append(f"{name} is missing")
                    continue
                array, shape = content.get_slice(name), list(leaf.shape)
                found, dtype = list(array.get_shape()), array.get_dtype()
                if found != shape:
                    problems.append(f"{name} has shape {found}, expected {shape}")
                elif dtype != "F32":
                    problems.append(f"{name} is {dtype}, expected F32")
            if unexpected or problems:
                raise InputError(f"{file}: {listed(unexpected, problems)}")
            arrays = {name: content.get_tensor(name) for name in expected}
    except (OSError, safetensors.SafetensorError) as error:
        raise unreadable_safetensors(file, error) from None
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise InputError(f"{file}: NaN or infinity in {', '.join(broken)}")
    return merge(abstract, arrays)
