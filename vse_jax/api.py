"""A trained model in Python: pictures and sentences become vectors, and why they match.

    import vse_jax

    model = vse_jax.load("runs/demo")
    pictures = model.encode_images(["a.jpg", "b.jpg"])          # float32 [2, D]
    sentences = model.encode_captions(["two dogs by the sea"])  # float32 [1, D]
    similarities = pictures @ sentences.T                       # [2, 1], −1 … 1

A model may be used by several threads at once. It computes on the first device. In each
path that is given, `~` is the user's folder, as in a shell.
"""

import contextlib
import functools
import hashlib
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from logging import ERROR, LogRecord
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from vse_jax.base import progress as bar
from vse_jax.base.errors import InputError, check_choice
from vse_jax.base.files import HUB
from vse_jax.checkpoints.folder import is_siglip, model_config
from vse_jax.checkpoints.hub import fetch
from vse_jax.checkpoints.load import load_model
from vse_jax.checkpoints.siglip import is_zero_shot
from vse_jax.config import (
    HOSTS_OWN,
    Config,
    change_paths,
    flat_fields,
    takes_regions,
    vector_fields,
)
from vse_jax.data.collate import Batch, CaptionCollator, empty_batch, image_shapes
from vse_jax.data.digests import vocabulary_digest
from vse_jax.data.images import ImageBytes, load_image, preprocess
from vse_jax.data.regions import finite_regions
from vse_jax.data.tokenizers import CaptionTokens, caption_tokenizer
from vse_jax.distributed import runtime
from vse_jax.distributed.mesh import on_one_device
from vse_jax.evaluation.encode import Model as Arrays
from vse_jax.evaluation.encode import batch_sizes, jit_towers
from vse_jax.models.build import merge_model
from vse_jax.models.vse import VSE
from vse_jax.possible import value_problems

Picture: TypeAlias = (
    str
    | Path
    | ImageBytes
    | Image.Image
    | UInt8[np.ndarray, "_ _ 3"]
    | Float32[np.ndarray, "_ _ 3"]
    | Float[np.ndarray, "_ _"]
)

# A query's programs: few, since each is compiled. More items go through batches of the
# size and the padded lengths that --mode=embed takes, which gives the same bits.
_FEW = (1, 8)  # rows
_FEWS_LENGTHS = (16, 32, 64)  # tokens
# A pooling is a sum over its members where that sum is this close to the pooled vector.
_ROUNDING = 1e-4


class Explanation(NamedTuple):
    """Why a picture and a caption have their similarity: two ways to split it.

    similarity: of the two embeddings.
    cells: float32 [rows, columns] of the picture's grid, or [regions]; their sum is the
        similarity.
    words: the caption's words with their parts of the similarity, which is their sum.
        "[CLS]" and "[SEP]" (BERT), "<start>" and "<end>" (BiGRU) or "<eos>" and "<pad>"
        (SigLIP, the padding that it reads) are among them.
    """

    similarity: float
    cells: np.ndarray
    words: list[tuple[str, float]]


@dataclass(frozen=True)
class _Items:
    """What is embedded: how many, in which order, how a row of a batch is read."""

    order: np.ndarray  # [batches, rows] of their numbers, −1: none
    empty: Callable[[np.ndarray], Batch]  # a batch for a row of `order`
    read: Callable[[Batch, int, int], None]  # fills row `int` with item `int`

    @property
    def count(self) -> int:
        return int((self.order >= 0).sum())


def load(
    folder: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    trust_code: bool = False,
) -> "Model":
    """The best model of a run, a shared or converted one, or a published SigLIP.

    JAX keeps compiled programs for the next start where it is told to, by
    JAX_COMPILATION_CACHE_DIR or `jax.config`; a start without takes a few seconds more.

    Args:
        folder: a run's (--workdir), the one that convert_torch_weights.py or
            --mode=push wrote, or Hugging Face's of a SigLIP or SigLIP2 of fixed
            resolution; or one of these two on the Hub: 'hf://USER/NAME', with
            '@REVISION' or without. Nothing of a shared folder is executed.
        overrides: fields of its config with other values, such as the vocabulary of a
            converted model that has none: {"text.vocab": "vocab.txt"}.
        trust_code: classes of one's own that a shared model names ('module:Class') may
            be imported from where Python finds modules.

    Raises:
        InputError: no model there, no vocabulary, a class without `trust_code`, or
            trouble with the Hub.
    """
    name = None
    if str(folder).startswith(HUB):
        name = str(folder).removeprefix(HUB)
        folder = fetch(str(folder))
    folder = Path(os.path.expanduser(folder))
    config = model_config(folder, trust_code=trust_code)
    if overrides:
        _override(config, overrides)
    change_paths(config, os.path.expanduser)
    with _without_orbax_notes():
        return model_of(config, folder, name)


def _override(config: Config, overrides: Mapping[str, Any]) -> None:
    known = flat_fields(config).keys() | HOSTS_OWN  # which shared configs are without
    for field, value in overrides.items():
        if field not in known:
            raise InputError(f"overrides: there is no config field {field!r}")
        try:
            config.update_from_flattened_dict({field: value})
        except TypeError as error:
            raise InputError(f"overrides: config.{field}: {error}") from None
    # A published SigLIP's has not all the fields that `check_config` compares.
    if problems := value_problems(flat_fields(config)):
        raise InputError("; ".join(problems.values()))


def model_of(config: Config, workdir: Path, name: str | None = None) -> "Model":
    """As `load`, with the config of a command line; `name`: None: the folder's.

    Raises:
        InputError: no model there, another one than the config's, or no vocabulary.
    """
    config, mesh = on_one_device(config)
    config, graphdef, arrays, mesh = load_model(config, workdir, mesh)
    name = name or workdir.resolve().name
    model = Model(config, graphdef, arrays, mesh, name)
    published = is_zero_shot(config) and not (workdir / "checkpoints").is_dir()
    if not published and not is_siglip(workdir):
        model.trained_on = config.data.name
    return model


class Model:
    """Two towers with their weights; made by `load`.

    name: the folder's, or USER/NAME.
    trained_on: config.data.name of its training; None: a published SigLIP.
    dim: length of its vectors, D.
    takes_regions: pictures are arrays of region features [k, F], not pixels.
    batch_size: pictures that it computes at a time.
    """

    def __init__(
        self,
        config: Config,
        graphdef: nnx.GraphDef,
        arrays: Arrays,
        mesh: Mesh,
        name: str,
    ):
        self.name = name
        self.trained_on: str | None = None
        self.dim: int = config.embed_dim
        self.takes_regions = takes_regions(config.image)
        self._config = config
        self._arrays = arrays
        self._tokenizer = caption_tokenizer(config)
        self._towers = jit_towers(graphdef, arrays, mesh)
        self._towers |= _jit_attributions(graphdef)
        platform = mesh.devices.flat[0].platform
        self._precision = runtime.matmul_precision(config, platform)
        self._full = dict(
            zip(("images", "captions"), batch_sizes(config, 1), strict=True)
        )
        self.batch_size: int = self._full["images"]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells which model made a vector.

        A digest of the weights, the vocabulary and every field of the config that
        decides vectors. Models that differ by rounding only (config.compute_dtype) have
        the same, since the vectors of one can be searched with the other.
        """
        fields = vector_fields(self._config)
        digest = hashlib.sha256(repr(sorted(fields.items())).encode())
        digest.update(vocabulary_digest(self._config).encode())
        for path, leaf in jax.tree.leaves_with_path(self._arrays):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
        return digest.hexdigest()

    def prepare(self, picture: Picture) -> Float32[np.ndarray, "size size 3"]:
        """What the image encoder takes of a picture: resized and normalised.

        `encode_images` takes it in place of the picture, which may be large.

        Raises:
            InputError: a bad picture (names it).
        """
        c = self._config.image
        return preprocess(_pixels(picture, 0), c.size, c.pixels, c.resample)

    def encode_images(
        self,
        pictures: Sequence[Picture],
        *,
        on_bad: str = "error",
        progress: bool = False,
    ) -> Float32[np.ndarray, "n d"]:
        """Embeddings of pictures, of length 1 unless the model was trained otherwise.

        Args:
            pictures: paths, PIL pictures, RGB arrays or what `prepare` gives; of a
                region model, the features of each picture's regions [k, F]. Files may
                have as many pixels as Pillow's MAX_IMAGE_PIXELS allows, and 200 million
                at most.
            on_bad: 'error', or 'skip': a bad picture is logged and its row is NaN.
            progress: show it.

        Raises:
            InputError: a picture cannot be used (names it).
        """
        check_choice("on_bad", on_bad, ("error", "skip"))
        read = functools.partial(self._read_image, _several(pictures))
        items = _Items(
            _padded(np.arange(len(pictures)), self._full["images"]),
            lambda index: empty_batch(image_shapes(self._config.image, len(index))),
            read,
        )
        return self._encode("encode_images", items, on_bad == "skip", progress)

    def encode_captions(
        self, captions: Sequence[str], *, progress: bool = False
    ) -> Float32[np.ndarray, "n d"]:
        """Embeddings of captions, of length 1 unless the model was trained otherwise.

        Raises:
            InputError: none of them has a word that the model knows (BiGRU).
        """
        items = self._captions(self._tokenizer(_several(captions)))
        return self._encode("encode_captions", items, False, progress)

    def explain(self, picture: Picture, caption: str) -> Explanation:
        """Splits the similarity of a picture and a caption, exactly.

        Raises:
            InputError: as `image_attributions` and `caption_attributions`.
        """
        image, words = (
            self.encode_images([picture])[0],
            self.encode_captions([caption])[0],
        )
        return Explanation(
            float(image @ words),
            self.image_attributions(picture, words),
            self.caption_attributions(caption, image),
        )

    def image_attributions(
        self, picture: Picture, vector: Float[np.ndarray, " d"]
    ) -> Float32[np.ndarray, "rows columns"] | Float32[np.ndarray, " regions"]:
        """Each cell's part of the picture's similarity to a vector, or each region's.

        A pooled vector is a sum over the members of its set (VSE∞, section 3: rank
        weight times value), so the inner product with any vector is one, too.

        Raises:
            InputError: a bad picture, or a pooling that is no such sum.
        """
        batch = empty_batch(image_shapes(self._config.image, 1))
        self._read_image([picture], batch, 0, 0)
        (parts,) = self._attributions("image", batch, vector)
        if self.takes_regions:
            return parts[: int(batch["region_lengths"][0])]
        side = math.isqrt(len(parts))  # the pictures are square, and so is the grid
        return parts.reshape(side, side)

    def caption_attributions(
        self, caption: str, vector: Float[np.ndarray, " d"]
    ) -> list[tuple[str, float]]:
        """Each word's part of the caption's similarity to a vector.

        A word's vector depends on the whole caption: BERT and a GRU read all of it.

        Raises:
            InputError: a pooling that is no sum over its members.
        """
        tokens = self._tokenizer([caption])
        items = self._captions(tokens)
        batch = items.empty(items.order[0])
        items.read(batch, 0, 0)
        (parts,) = self._attributions("text", batch, vector)
        words = self._tokenizer.words(caption)
        found: list[tuple[str, float]] = []
        before = None
        first, last = self._tokenizer.ends
        for word, part in zip(tokens.words.tolist(), parts.tolist(), strict=False):
            if word >= 0 and word == before:
                found[-1] = (found[-1][0], found[-1][1] + part)
            elif word >= 0:
                found.append((words[word], part))
            else:
                found.append((last if found else first, part))
            before = word
        if padding := float(parts[len(tokens.words) :].sum()):  # SigLIP reads it
            found.append(("<pad>", padding))
        return found

    def warm_up(self) -> None:
        """Compiles what a query and its explanation need, side by side."""
        shapes = image_shapes(self._config.image, 1)
        vector = np.zeros((1, self.dim), np.float32)
        index = np.zeros(1, np.int32)
        runs = [
            ("encode_images", empty_batch(shapes), index),
            ("image_attributions", empty_batch(shapes), vector),
        ]
        rows = CaptionCollator(self._config, self._tokenizer([""]), None)
        for length in _few_lengths(rows.padded_lengths):
            batch = empty_batch(rows.shapes(1, length))
            runs += [
                ("encode_captions", batch, index),
                ("caption_attributions", batch, vector),
            ]

        def run(program: str, batch: Batch, others: np.ndarray) -> None:
            with contextlib.suppress(InputError):  # a tower that cannot be split
                self._run(program, batch, others)

        with ThreadPoolExecutor() as threads:
            for _ in threads.map(lambda arguments: run(*arguments), runs):
                pass

    def _captions(self, tokens: CaptionTokens) -> _Items:
        rows = CaptionCollator(self._config, tokens, None)
        lengths = rows.padded_lengths
        if len(tokens.lengths) <= _FEW[-1]:
            lengths = _few_lengths(lengths)

        def empty(index: np.ndarray) -> Batch:
            longest = int(tokens.lengths[index[index >= 0]].max())
            length = next(size for size in lengths if size >= longest)
            return rows.empty(len(index), length)

        def read(batch: Batch, row: int, caption: int) -> None:
            rows.read(batch, row, caption, None)

        by_length = np.argsort(tokens.lengths, kind="stable")
        return _Items(_padded(by_length, self._full["captions"]), empty, read)

    def _read_image(
        self, pictures: Sequence[Picture], batch: Batch, row: int, image: int
    ) -> None:
        c, picture = self._config.image, pictures[image]
        if not self.takes_regions:
            if isinstance(picture, np.ndarray) and picture.dtype == np.float32:
                if picture.shape != (c.size, c.size, 3):
                    raise InputError(
                        f"picture {image}: float32 {list(picture.shape)}; what this "
                        f"model prepares is [{c.size}, {c.size}, 3]"
                    )
                batch["images"][row] = picture
                return
            pixels = _pixels(picture, image)
            batch["images"][row] = preprocess(pixels, c.size, c.pixels, c.resample)
            return
        shape = picture.shape if isinstance(picture, np.ndarray) else ()
        if len(shape) != 2 or shape[0] == 0 or shape[1] != c.feature_dim:
            raise InputError(
                f"picture {image}: this model takes region features, arrays of "
                f"[regions, {c.feature_dim}]"
            )
        if shape[0] > c.max_regions:
            raise InputError(
                f"picture {image}: {shape[0]} regions; this model takes at most "
                f"{c.max_regions}"
            )
        assert isinstance(picture, np.ndarray)
        features = finite_regions(picture, f"picture {image}")
        batch["regions"][row, : shape[0]] = features
        batch["region_lengths"][row] = shape[0]

    def _encode(self, tower: str, items: _Items, skip: bool, progress: bool):
        """float32 [items, D]: batches are read while the device computes."""
        result = np.full((items.count, self.dim), np.nan, np.float32)
        batches: Iterable = _read_ahead(items, skip)
        if progress:
            batches = bar.progress(batches, tower, total=len(items.order), unit="batch")
        for batch, index in batches:
            rows, index = self._run(tower, batch, index)
            rows, index = rows[index >= 0], index[index >= 0]
            result[index] = rows
            bad = index[~np.isfinite(rows).all(axis=1)]
            if bad.size:
                raise InputError(
                    f"{self.name}: {tower}: the embedding of item {bad[0]} is NaN or "
                    "infinite"
                )
        return result

    def _attributions(self, tower: str, batch: Batch, vector: np.ndarray) -> np.ndarray:
        parts, missing = self._run(
            "image_attributions" if tower == "image" else "caption_attributions",
            batch,
            vector[None],
        )
        if not missing.max() <= _ROUNDING:
            pool = self._config[tower].pool
            raise InputError(
                f"config.{tower}.pool: {pool!r} is no sum over the members of a set: "
                "a similarity cannot be split"
            )
        return parts

    def _run(self, program: str, batch: Batch, others: np.ndarray):
        with jax.default_matmul_precision(self._precision):
            return jax.device_get(self._towers[program](self._arrays, batch, others))


@contextlib.contextmanager
def _without_orbax_notes() -> Iterator[None]:
    """Without what Orbax's manager warns of in this thread: that it only reads."""
    here = threading.get_ident()

    def wanted(record: LogRecord) -> bool:
        note = record.filename == "checkpoint_manager.py" and record.levelno < ERROR
        return record.thread != here or not note

    logger = logging.get_absl_logger()
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _several(items: Sequence) -> Sequence:
    if isinstance(items, str | Path | ImageBytes):
        raise InputError(f"{items}: give a list, also of one")
    return items


def _jit_attributions(graphdef: nnx.GraphDef) -> dict[str, Any]:
    def jit(split: Callable):
        def run(model, batch, vectors):
            return split(merge_model(graphdef, model), batch, vectors)

        return jax.jit(run)

    return {
        "image_attributions": jit(VSE.image_attributions),
        "caption_attributions": jit(VSE.caption_attributions),
    }


def _padded(order: np.ndarray, full: int) -> np.ndarray:
    """`order` as rows of a size that has a program, the last filled with −1."""
    sizes = [size for size in _FEW if size < full]
    size = next((size for size in sizes if size >= len(order)), full)
    return np.append(order, np.full(-len(order) % size, -1)).reshape(-1, size)


def _few_lengths(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a query: of `lengths`, the longest one at least."""
    longest = lengths[-1]
    return (*(size for size in _FEWS_LENGTHS if size < longest), longest)


def _read_ahead(items: _Items, skip: bool) -> Iterator[tuple[Batch, np.ndarray]]:
    """The batches with their rows' numbers, one read ahead by threads."""
    waiting: deque[tuple[Batch, np.ndarray, list[Future | None]]] = deque()

    def finished() -> tuple[Batch, np.ndarray]:
        batch, index, rows = waiting.popleft()
        for row, future in enumerate(rows):
            try:
                if future:
                    future.result()
            except InputError as error:
                if not skip:
                    raise
                logging.warning("skipped: %s", error)
                index[row] = -1
        return batch, index

    threads = ThreadPoolExecutor(os.cpu_count())
    try:
        for numbers in items.order:
            batch, index = items.empty(numbers), numbers.astype(np.int32)
            rows = [
                threads.submit(items.read, batch, row, number) if number >= 0 else None
                for row, number in enumerate(numbers.tolist())
            ]
            waiting.append((batch, index, rows))
            if len(waiting) > 1:
                yield finished()
        while waiting:
            yield finished()
    finally:
        threads.shutdown(cancel_futures=True)


def _pixels(picture: Picture, number: int) -> UInt8[np.ndarray, "height width 3"]:
    if isinstance(picture, str | Path):
        return load_image(os.path.expanduser(picture))
    if not isinstance(picture, np.ndarray):
        return load_image(picture)
    if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3:
        return picture
    raise InputError(
        f"picture {number}: an array of {picture.dtype} {list(picture.shape)}; a "
        "picture is uint8 [height, width, 3]"
    )
