"""Embeds a split, ranks it, writes metrics, embeddings and the picture to look at."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import saved
from vse_jax.base.config import EVALUATION_FREE_FIELDS, check_same_run
from vse_jax.base.errors import InputError
from vse_jax.base.files import write_atomically
from vse_jax.base.progress import progress
from vse_jax.data.captions import CaptionTokens, caption_tokens
from vse_jax.data.layout import Split, read_split
from vse_jax.data.pipeline import eval_batches
from vse_jax.data.regions import NpyRows
from vse_jax.devices import preemption
from vse_jax.devices.cluster import check_same_data
from vse_jax.devices.mesh import (
    batch_sharding,
    make_mesh,
    put_batch,
    replicated,
    state_sharding,
)
from vse_jax.evaluation.cxc import cxc_metrics
from vse_jax.evaluation.eccv import eccv_metrics
from vse_jax.evaluation.ranking import ensemble, retrieval_metrics
from vse_jax.search.report import format_table, retrieval_picture
from vse_jax.training.checkpoint import Checkpoints
from vse_jax.training.state import abstract_model, merge_model, with_sharding


@dataclass(frozen=True)
class Embeddings:
    """images: float32 [N, D]; captions: float32 [C, D]; rows in the split's order."""

    images: np.ndarray
    captions: np.ndarray


class Evaluator:
    """Runs the towers over whole splits; compiles each shape once for its lifetime.

    Args:
        config: the run's config.
        graphdef: of the model.
        mesh: devices; each batch is spread over all of them.
    """

    def __init__(self, config: ConfigDict, graphdef: nnx.GraphDef, mesh: Mesh):
        self._config = config
        self._mesh = mesh
        self._tokens: dict[str, CaptionTokens] = {}  # of the splits seen so far

        def jitted(method: str):
            def run(model, batch, index):
                encode = getattr(merge_model(graphdef, model), method)
                return encode(batch), index

            _, abstract = abstract_model(config)
            return jax.jit(
                run,
                in_shardings=(
                    state_sharding(mesh, abstract),
                    batch_sharding(mesh),
                    batch_sharding(mesh),
                ),
                out_shardings=replicated(mesh),  # every process gets all rows
            )

        self._encode_images = jitted("encode_images")
        self._encode_captions = jitted("encode_captions")
        self._caption_features = jitted("caption_features")

    def tokens(self, split: Split) -> CaptionTokens:
        """The split's captions as token ids.

        Raises:
            InputError: the processes of the run do not read the same split.
        """
        if split.name not in self._tokens:
            tokens = caption_tokens(self._config, split.captions)
            check_same_data(split, tokens)
            self._tokens[split.name] = tokens
        return self._tokens[split.name]

    def embed(self, model, split: Split, features: NpyRows | None = None) -> Embeddings:
        """Embeds every image once and every caption once.

        Args:
            model: {"params", "batch_stats"}.
            split: what to embed.
            features: of its captions' tokens, where they are kept (`token_features`).
        """
        self.tokens(split)  # first of all: processes that differ would wait for ever
        dim = self._config.embed_dim
        images = np.full((len(split.image_ids), dim), np.nan, np.float32)
        captions = np.full((len(split.captions), dim), np.nan, np.float32)
        for rows, index in self._run(self._encode_images, model, split, "images"):
            images[index] = rows
        for rows, index in self._run(
            self._encode_captions, model, split, "captions", features
        ):
            captions[index] = rows
        return Embeddings(images, captions)

    def evaluate(self, model, split: Split, features: NpyRows | None = None) -> dict:
        """Recalls and ranks of a split; the arguments are those of `embed`."""
        embeddings = self.embed(model, split, features)
        return retrieval_metrics(
            embeddings.images, embeddings.captions, split.captions_per_image
        )

    def token_features(self, model, split: Split):
        """Yields (caption, its tokens' last hidden states [length, hidden])."""
        lengths = self.tokens(split).lengths
        for features, index in self._run(
            self._caption_features, model, split, "captions"
        ):
            for caption, rows in zip(index, features, strict=True):
                yield caption, rows[: lengths[caption]]

    def _run(self, encode, model, split: Split, what: str, features=None):
        """Yields (rows, their indices in the split) batch by batch."""
        sharding = batch_sharding(self._mesh)
        batches = eval_batches(
            self._config,
            split,
            what,
            self.tokens(split) if what == "captions" else None,
            features,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        count = len(split.image_ids if what == "images" else split.captions)
        total = -(-count // self._config.eval.batch_size)
        for batch, index in progress(
            batches, f"{split.name}: {what}", total=total, unit="batch"
        ):
            where = jax.make_array_from_process_local_data(sharding, index)
            rows, index = jax.device_get(
                encode(model, put_batch(batch, sharding), where)
            )
            yield rows[index >= 0], index[index >= 0]
            preemption.check()


def load_best(config: ConfigDict, workdir: Path) -> tuple[Evaluator, dict]:
    """(evaluator, model) of the best checkpoint in `workdir`.

    Raises:
        InputError: no checkpoint, or of another model.
    """
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"{workdir}: no checkpoints there; train first")
    check_same_run(config, workdir / "config.json", EVALUATION_FREE_FIELDS)
    mesh = make_mesh(config)
    graphdef, abstract = abstract_model(config)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        model, data = checkpoints.restore_best(with_sharding(mesh, abstract))
    logging.info("%s: best checkpoint, dev rsum %.1f", workdir, data["rsum"])
    return Evaluator(config, graphdef, mesh), model


def embed_best(config: ConfigDict, workdir: Path, split: Split) -> Embeddings:
    """Embeddings of `split` by the best checkpoint in `workdir`, or by an ensemble.

    With config.eval.ensemble they are those of its members put together, so that their
    inner products are the mean of the members' similarities.
    """
    if config.eval.ensemble is None:
        evaluator, model = load_best(config, workdir)
        return evaluator.embed(model, split)
    members = []
    for name in config.eval.ensemble.split(","):
        member = saved.get_config(name)
        member.data.root, member.data.name = config.data.root, config.data.name
        member.data.format, member.data.cache = config.data.format, config.data.cache
        member.data.on_bad_image = config.data.on_bad_image
        member.mesh, member.eval = config.mesh, config.eval
        if member.text.kind == config.text.kind and config.text.vocab is not None:
            member.text.vocab = config.text.vocab
        evaluator, model = load_best(member, Path(name))
        embeddings = evaluator.embed(model, read_split(member, split.name))
        members.append((embeddings.images, embeddings.captions))
    return Embeddings(*ensemble(members))


def split_metrics(config: ConfigDict, split: Split, embeddings: Embeddings) -> dict:
    """The contents of eval_<split>.json: recalls, and CxC and ECCV when asked for."""
    images, captions = embeddings.images, embeddings.captions
    metrics = retrieval_metrics(images, captions, split.captions_per_image)
    if config.eval.cxc:
        metrics["cxc"] = cxc_metrics(images, captions, split.root / "cxc_annots")
    if config.eval.eccv:
        plausible = config.eval.plausible_matches
        metrics["eccv"] = eccv_metrics(
            images, captions, split.image_ids, plausible and Path(plausible)
        )
    if config.eval.ensemble is not None:
        metrics["ensemble"] = config.eval.ensemble.split(",")
    return metrics


def evaluate(config: ConfigDict, workdir: Path) -> None:
    """--mode=eval: ranks config.eval.split with the best checkpoint.

    Writes eval_<split>.json and retrieval.png into `workdir`, prints the table.
    """
    split = read_split(config, config.eval.split)
    embeddings = embed_best(config, workdir, split)
    metrics = split_metrics(config, split, embeddings)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)  # an ensemble's may be new
        write_atomically(
            workdir / f"eval_{split.name}.json",
            (json.dumps(metrics, indent=1) + "\n").encode(),
        )
        retrieval_picture(
            workdir / "retrieval.png", split, embeddings.images, embeddings.captions
        )
        print(format_table(metrics, f"{config.data.name} {split.name}"))


def embed(config: ConfigDict, workdir: Path) -> None:
    """--mode=embed: embeddings/<split>/{images.npy, captions.npy, image_ids.txt}."""
    split = read_split(config, config.eval.split)
    embeddings = embed_best(config, workdir, split)
    folder = workdir / "embeddings" / split.name
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("images", "captions"):
            content = io.BytesIO()
            np.save(content, getattr(embeddings, name))
            write_atomically(folder / f"{name}.npy", content.getvalue())
        ids = "".join(f"{image_id}\n" for image_id in split.image_ids)
        write_atomically(folder / "image_ids.txt", ids.encode())
        print(
            f"{folder}: images {embeddings.images.shape}, "
            f"captions {embeddings.captions.shape}"
        )
