"""--mode=embed: the embeddings of a split as files."""

import os
from dataclasses import replace

import numpy as np

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, any_path, whole_folder
from vse_jax.checkpoints.load import load_model
from vse_jax.config import Config, load_config, own_vocabulary, with_paths
from vse_jax.data.dataset import Split, read_split
from vse_jax.distributed.compile_cache import CompileCache
from vse_jax.distributed.multihost import on_process_zero
from vse_jax.evaluation.encode import Embedder, Embeddings
from vse_jax.evaluation.retrieval import check_finite, ensemble


def embed(config: Config, workdir: AnyPath, model: AnyPath | None = None) -> None:
    """Writes embeddings/<split>/{images,captions,caption_images}.npy and image_ids.txt.

    To `workdir`, of config.eval.split by the best model in the folder `model`, or in
    `workdir`: float32 [N, D] and [C, D]; int64 [C], the row of the image that each
    caption belongs to. The folder is written whole or not at all, and replaces an
    earlier one.
    """
    split = read_split(config, config.eval.split)
    embeddings = embed_best(config, workdir, split, model)

    def write() -> None:
        folder = workdir / "embeddings" / split.name
        with whole_folder(folder, replace=True) as new:
            np.save(new / "images.npy", embeddings.images)
            np.save(new / "captions.npy", embeddings.captions)
            np.save(new / "caption_images.npy", split.caption_images)
            ids = "".join(f"{image_id}\n" for image_id in split.image_ids)
            (new / "image_ids.txt").write_bytes(ids.encode())
        print(
            f"{folder}: images {embeddings.images.shape}, "
            f"captions {embeddings.captions.shape}"
        )

    on_process_zero(write)


def embed_best(
    config: Config,
    workdir: AnyPath,
    split: Split,
    model: AnyPath | None = None,
    embedder: Embedder | None = None,
) -> Embeddings:
    """Embeddings by the best model in `model` or else `workdir`, or by an ensemble.

    With config.eval.ensemble they are those of its models put together, so that their
    inner products are the mean of the models' similarities.
    """
    if config.eval.ensemble is None:
        return _embed_with(config, model or workdir, split, embedder)
    if model is not None:
        raise InputError("config.eval.ensemble: names the models; leave out --model")
    members = []
    for name in config.eval.ensemble.split(","):
        folder = any_path(name, "config.eval.ensemble")
        member = load_config(folder / "config.json")
        member = with_paths(member, os.path.expanduser)
        # A member reads the data of `config`, on its devices; its own are the lengths
        # of captions and the vocabulary that lies in its folder.
        text = member.text
        data = replace(
            config.data,
            max_tokens=member.data.max_tokens,
            token_buckets=member.data.token_buckets,
        )
        if text.kind == config.text.kind and own_vocabulary(folder, text.kind) is None:
            text = replace(text, vocab=config.text.vocab or text.vocab)
        member = replace(
            member, data=data, text=text, mesh=config.mesh, eval=config.eval
        )
        embeddings = _embed_with(member, folder, read_split(member, split.name), None)
        members.append((embeddings.images, embeddings.captions))
    return Embeddings(*ensemble(members))


def _embed_with(
    config: Config, folder: AnyPath, split: Split, embedder: Embedder | None
) -> Embeddings:
    """Embeddings by the best model in a folder; without an ensemble."""
    config, graphdef, model, mesh = load_model(config, folder)
    with CompileCache() as programs:
        embedder = embedder or Embedder(config, graphdef, model, mesh, programs)
        found = embedder.embed(model, split)
    check_finite(f"{folder}, images of {split.name!r}", found.images)
    check_finite(f"{folder}, captions of {split.name!r}", found.captions)
    return found
