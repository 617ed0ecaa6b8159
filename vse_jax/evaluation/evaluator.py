"""Embeds whole splits on the mesh."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.stages import Lowered
from jaxtyping import Float
from ml_collections import ConfigDict

from vse_jax.base.progress import progress
from vse_jax.data.captions import CaptionTokens, caption_tokens
from vse_jax.data.layout import Split
from vse_jax.data.pipeline import EvalBatches, eval_captions, eval_images
from vse_jax.data.regions import NpyRows
from vse_jax.devices import preemption
from vse_jax.devices.agreement import check_same, on_first
from vse_jax.devices.mesh import (
    batch_sharding,
    gathered,
    put_batch,
    replicated,
    state_sharding,
)
from vse_jax.evaluation.ranking import retrieval_metrics
from vse_jax.models.build import merge_model
from vse_jax.models.vse import VSE

Model = dict[str, Any]  # {"params", "batch_stats"}


@dataclass(frozen=True)
class Embeddings:
    """images: float32 [N, D]; captions: float32 [C, D]; rows in the split's order."""

    images: np.ndarray
    captions: np.ndarray


class Evaluator:
    """Runs the towers over whole splits; compiles each shape once for its lifetime.

    Args:
        config: the run's config.
        graphdef, abstract: of the model, as `models.build.abstract_model` gives them.
        mesh: devices; each batch is spread over all of them.
    """

    def __init__(
        self, config: ConfigDict, graphdef: nnx.GraphDef, abstract: Model, mesh: Mesh
    ):
        self._config = config
        self.mesh = mesh
        self._tokens: dict[str, CaptionTokens] = {}  # of the splits seen so far
        model_sharding = state_sharding(mesh, abstract)

        def on_mesh(encode: Callable[[VSE, dict], jax.Array]):
            """encode(model, batch), jitted; the rows' numbers come back with them."""
            rows = batch_sharding(mesh)

            def run(model, batch, index):
                whole = model | {"params": gathered(mesh, model["params"])}
                return encode(merge_model(graphdef, whole), batch), index

            return jax.jit(
                run,
                in_shardings=(model_sharding, rows, rows),
                out_shardings=replicated(mesh),  # every process gets all rows
            )

        self._encode_images = on_mesh(VSE.encode_images)
        self._encode_captions = on_mesh(VSE.encode_captions)
        self._caption_features = on_mesh(VSE.caption_features)

    def lower_images(self, model: Model, batch: dict, index) -> Lowered:
        """The image tower's program for arrays, or shapes, like these."""
        return self._encode_images.lower(model, batch, index)

    def lower_captions(self, model: Model, batch: dict, index) -> Lowered:
        """The caption tower's program for arrays, or shapes, like these."""
        return self._encode_captions.lower(model, batch, index)

    def tokens(self, split: Split) -> CaptionTokens:
        """The split's captions as token ids.

        Raises:
            InputError: the processes of the run do not read the same split.
        """
        if split.name not in self._tokens:
            tokens = caption_tokens(self._config, split.captions)
            _check_same_split(split, tokens)
            self._tokens[split.name] = tokens
        return self._tokens[split.name]

    def embed(
        self, model: Model, split: Split, features: NpyRows | None = None
    ) -> Embeddings:
        """Embeds every image once and every caption once.

        Args:
            model: {"params", "batch_stats"}.
            split: what to embed.
            features: of its captions' tokens, where they are kept (`token_features`).
        """
        tokens = self.tokens(split)  # first: processes that differ would wait for ever
        images = eval_images(self._config, split, jax.process_count())
        captions = eval_captions(self._config, tokens, features, jax.process_count())
        return Embeddings(
            self._all_rows(self._encode_images, model, images, f"{split.name}: images"),
            self._all_rows(
                self._encode_captions, model, captions, f"{split.name}: captions"
            ),
        )

    def evaluate(
        self, model: Model, split: Split, features: NpyRows | None = None
    ) -> dict:
        """Recalls and ranks of a split; the arguments are those of `embed`."""
        found = self.embed(model, split, features)
        # Ranked once: another processor may decide a near tie otherwise, and processes
        # that disagree would not save together.
        return on_first(
            lambda: retrieval_metrics(
                found.images, found.captions, split.captions_per_image
            )
        )

    def token_features(
        self, model: Model, split: Split
    ) -> Iterator[tuple[int, Float[np.ndarray, "length hidden"]]]:
        """Yields (caption, its tokens' last hidden states [length, hidden])."""
        tokens = self.tokens(split)
        batches = eval_captions(self._config, tokens, None, jax.process_count())
        for features, index in self._run(
            self._caption_features, model, batches, f"{split.name}: token features"
        ):
            for caption, rows in zip(index.tolist(), features, strict=True):
                yield caption, rows[: tokens.lengths[caption]]

    def _all_rows(self, encode, model: Model, batches: EvalBatches, what: str):
        """float32 [batches.rows, embed_dim]."""
        shape = (batches.rows, self._config.embed_dim)
        result = np.full(shape, np.nan, np.float32)
        for rows, index in self._run(encode, model, batches, what):
            result[index] = rows
        return result

    def _run(self, encode, model: Model, batches: EvalBatches, what: str):
        """Yields (rows, their numbers in the split) batch by batch."""
        sharding = batch_sharding(self.mesh)
        with batches.read(jax.process_index()) as stream:
            for batch in progress(stream, what, total=len(batches), unit="batch"):
                batch = put_batch(batch, sharding)
                index = batch.pop("index")
                rows, index = jax.device_get(encode(model, batch, index))
                yield rows[index >= 0], index[index >= 0]
                preemption.check()


def _check_same_split(split: Split, tokens: CaptionTokens) -> None:
    """Raises InputError on every process unless all read the same split.

    Compares ids, captions and what the vocabulary makes of them, not the pictures.
    """
    if jax.process_count() == 1:
        return
    contents = {
        "ids": "\n".join(split.image_ids).encode(),
        "captions": "\n".join(split.captions).encode(),
        "tokens": tokens.ids.tobytes() + tokens.offsets.tobytes(),
    }
    facts = {
        f"{split.name} {name}": hashlib.sha256(content).hexdigest()[:12]
        for name, content in contents.items()
    }
    check_same("data", facts)
