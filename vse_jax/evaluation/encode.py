"""Embeds whole splits on the mesh."""

import functools
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

from vse_jax.base.errors import InputError
from vse_jax.base.progress import progress
from vse_jax.config import Config, takes_regions
from vse_jax.data.collate import Shapes, described, shapes_of
from vse_jax.data.dataset import Split
from vse_jax.data.loader import EvalBatches, eval_captions, eval_images
from vse_jax.data.regions import NpyRows
from vse_jax.data.tokenizers import CaptionTokens, caption_tokenizer
from vse_jax.distributed import preemption
from vse_jax.distributed.compile_cache import CompileCache
from vse_jax.distributed.mesh import (
    abstract_batch,
    batch_sharding,
    fsdp_sharding,
    gathered_sharding,
    put_batch,
    replicated,
    state_sharding,
    with_sharding,
)
from vse_jax.distributed.multihost import assert_equal_across_hosts, on_process_zero
from vse_jax.evaluation.retrieval import retrieval_metrics
from vse_jax.models.build import merge_model
from vse_jax.models.vse import VSE
from vse_jax.ops.blocks import gathered_in_use, keep_apart

Model = dict[str, Any]  # {"params", "batch_stats"}

_ROWS = 128  # of a batch over all devices
_ACTIVATIONS = 1_600_000_000  # bytes, on a device
_BYTES_PER_PIXEL = 400  # of the pictures that a ResNet-101 sees (docs/accelerators.md)


@dataclass(frozen=True)
class Embeddings:
    """images: float32 [N, D]; captions: float32 [C, D]; rows in the split's order."""

    images: np.ndarray
    captions: np.ndarray


class Embedder:
    """Runs the towers over whole splits; compiles each shape once for its lifetime.

    Args:
        config: the run's config.
        graphdef, abstract: of the model, as `models.build.abstract_model` gives them.
        mesh: devices; each batch is spread over all of them.
        programs: compiles what it runs.
    """

    def __init__(
        self,
        config: Config,
        graphdef: nnx.GraphDef,
        abstract: Model,
        mesh: Mesh,
        programs: CompileCache,
    ):
        self.config = config
        self._mesh = mesh
        self._abstract = with_sharding(abstract, state_sharding(mesh, abstract))
        self._programs = programs
        # Of the splits seen so far, with the captions that they are of.
        self._tokens: dict[str, tuple[list[str], CaptionTokens]] = {}
        self._towers = jit_towers(graphdef, abstract, mesh)

    def prepare(self, split: Split, features: NpyRows | None = None) -> None:
        """Begins to compile what `embed` will run; the arguments are those of it."""
        images, captions = self._batches(split, features)
        self._prepare("encode_images", images)
        self._prepare("encode_captions", captions)

    def _prepare(self, name: str, batches: EvalBatches) -> None:
        for shapes in batches.shapes():
            self._programs.start(*self._program(name, shapes))

    def _program(self, name: str, shapes: Shapes):
        """What `CompileCache` wants to know: (its name, key, how to lower it)."""
        key = (name, frozenset(shapes.items()))
        tower, model = self._towers[name], self._abstract
        lower = functools.partial(lower_tower, tower, self._mesh, model, shapes)
        return f"{name}, {described(shapes)}", key, lower

    def tokens(self, split: Split) -> CaptionTokens:
        """The split's captions as token ids.

        Raises:
            InputError: the processes of the run do not read the same split.
        """
        captions, tokens = self._tokens.get(split.name, ([], None))
        if tokens is None or captions != split.captions:
            tokens = caption_tokenizer(self.config)(split.captions)
            _check_same_split(split, tokens)
            self._tokens[split.name] = split.captions, tokens
        return tokens

    def embed(
        self, model: Model, split: Split, features: NpyRows | None = None
    ) -> Embeddings:
        """Embeds every image once and every caption once.

        Args:
            model: {"params", "batch_stats"}.
            split: what to embed.
            features: of its captions' tokens, where they are kept (`token_features`).
        """
        images, captions = self._batches(split, features)
        self._prepare("encode_images", images)
        self._prepare("encode_captions", captions)
        return Embeddings(
            self._all_rows("encode_images", model, images, f"{split.name}: images"),
            self._all_rows(
                "encode_captions", model, captions, f"{split.name}: captions"
            ),
        )

    def _batches(
        self, split: Split, features: NpyRows | None
    ) -> tuple[EvalBatches, EvalBatches]:
        tokens = self.tokens(split)  # first: processes that differ would wait for ever
        images, captions = batch_sizes(self.config, self._mesh.size)
        hosts = jax.process_count()
        return (
            eval_images(self.config, split, images, hosts),
            eval_captions(self.config, tokens, captions, features, hosts),
        )

    def evaluate(
        self, model: Model, split: Split, features: NpyRows | None = None
    ) -> dict:
        """Recalls and ranks of a split; the arguments are those of `embed`."""
        found = self.embed(model, split, features)
        # Ranked once: another processor may decide a near tie otherwise, and processes
        # that disagree would not save together.
        return on_process_zero(
            lambda: retrieval_metrics(
                found.images, found.captions, split.captions_per_image
            )
        )

    def token_features(
        self, model: Model, split: Split
    ) -> Iterator[tuple[int, Float[np.ndarray, "length hidden"]]]:
        """Yields (caption, its tokens' last hidden states [length, hidden])."""
        tokens = self.tokens(split)
        _, size = batch_sizes(self.config, self._mesh.size)
        batches = eval_captions(self.config, tokens, size, None, jax.process_count())
        self._prepare("caption_features", batches)
        for features, index in self._run(
            "caption_features", model, batches, f"{split.name}: token features"
        ):
            for caption, rows in zip(index.tolist(), features, strict=True):
                yield caption, rows[: tokens.lengths[caption]]

    def _all_rows(self, name: str, model: Model, batches: EvalBatches, what: str):
        """float32 [batches.rows, embed_dim]."""
        shape = (batches.rows, self.config.embed_dim)
        result = np.full(shape, np.nan, np.float32)
        for rows, index in self._run(name, model, batches, what):
            result[index] = rows
        return result

    def _run(self, name: str, model: Model, batches: EvalBatches, what: str):
        """Yields (rows, their numbers in the split) batch by batch."""

        def fetch(results):
            rows, index = jax.device_get(results)
            return rows[index >= 0], index[index >= 0]

        sharding = batch_sharding(self._mesh)
        before = None  # the device computes a batch while the next one is read
        with batches.read(jax.process_index()) as stream:
            for batch in progress(stream, what, total=len(batches), unit="batch"):
                batch = put_batch(batch, sharding)
                index = batch.pop("index")
                program = self._program(name, shapes_of(batch))
                encode = self._programs.get(*program)
                results = encode(model, batch, index)
                if before is not None:
                    yield fetch(before)
                before = results
                preemption.check()
        if before is not None:
            yield fetch(before)


def batch_sizes(config: Config, devices: int) -> tuple[int, int]:
    """Images and captions of a batch: config.eval.batch_size, or what memory asks for.

    By themselves about 128, fewer where a CNN sees large pictures; a multiple of the
    devices either way.

    Raises:
        InputError: config.eval.batch_size is none.
    """
    size = config.eval.batch_size
    if size is not None:
        if size % devices:
            raise InputError(
                f"config.eval.batch_size: {size} does not divide by the {devices} "
                "devices"
            )
        return size, size
    each = -(-_ROWS // devices)
    images = each
    if not takes_regions(config.image):
        activations = _BYTES_PER_PIXEL * config.image.size**2
        images = min(each, max(_ACTIVATIONS // activations, 1))
    return images * devices, each * devices


def jit_towers(graphdef: nnx.GraphDef, abstract: Model, mesh: Mesh) -> dict[str, Any]:
    """The methods of VSE that embed, jitted: tower(model, batch, index).

    The rows' numbers, `index`, come back with the rows.
    """
    rows = batch_sharding(mesh)

    def jit(encode: Callable[[VSE, dict], jax.Array]):
        def run(model, batch, index):
            params = model["params"]
            with gathered_in_use(
                params, gathered_sharding(mesh), fsdp_sharding(mesh)
            ) as params:
                in_use = merge_model(graphdef, model | {"params": params})
                return encode(in_use, batch), index

        return jax.jit(
            run,
            in_shardings=(state_sharding(mesh, abstract), rows, rows),
            out_shardings=replicated(mesh),  # every process gets all rows
        )

    return {
        "encode_images": jit(VSE.encode_images),
        "encode_captions": jit(VSE.encode_captions),
        "caption_features": jit(VSE.caption_features),
    }


def lower_tower(tower, mesh: Mesh, abstract: Model, shapes: Shapes) -> Lowered:
    """One of `jit_towers` for global batches of these shapes."""
    rows = next(iter(shapes.values()))[0][0]
    index = jax.ShapeDtypeStruct((rows,), np.int32)
    lowered = tower.lower(abstract, abstract_batch(shapes), index)
    return keep_apart(lowered, mesh)


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
    assert_equal_across_hosts("data", facts)
