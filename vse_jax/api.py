"""A trained model in Python: images and captions become vectors, and why they match.

    import vse_jax

    model = vse_jax.load("runs/demo")
    images = model.encode_images(["a.jpg", "b.jpg"])           # float32 [2, D]
    captions = model.encode_captions(["two dogs by the sea"])  # float32 [1, D]
    similarities = images @ captions.T                         # [2, 1], −1 … 1

A model may be used by several threads at once. It computes on the first device. In each
path that is given, `~` is the user's folder, as in a shell.
"""

import contextlib
import functools
import hashlib
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from logging import ERROR, LogRecord
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from vse_jax.base.errors import InputError, check_choice
from vse_jax.base.files import HUB, AnyPath
from vse_jax.checkpoints.folder import (
    is_siglip,
    model_config,
    model_folder,
    model_languages,
    model_name,
)
from vse_jax.checkpoints.load import load_model
from vse_jax.checkpoints.siglip import is_zero_shot
from vse_jax.config import (
    Config,
    check_config,
    flat_fields,
    keeps_aspect,
    takes_regions,
    typed,
    vector_fields,
    vector_size,
    with_fields,
    with_paths,
)
from vse_jax.data.collate import Batch, prepare_image, put_image
from vse_jax.data.digests import vocabulary_digest
from vse_jax.data.images import ImageBytes, load_image
from vse_jax.data.regions import finite_regions
from vse_jax.data.tokenizers import caption_tokenizer
from vse_jax.distributed.compile_cache import CompileCache
from vse_jax.distributed.mesh import on_one_device
from vse_jax.evaluation.backends import ImageBackend, backend_name
from vse_jax.evaluation.cutoff import read_cutoff, sigmoid_cutoff
from vse_jax.evaluation.encode import Captions, Embedder, Images, Items, batch_sizes
from vse_jax.models.build import merge_model
from vse_jax.models.vse import AttributionMethod, attribution_method

# A file, an image, pixels, what `Model.prepare` gives, or the features of regions.
ImageLike: TypeAlias = (
    str
    | Path
    | ImageBytes
    | Image.Image
    | UInt8[np.ndarray, "_ _ 3"]
    | Float32[np.ndarray, "_ _ 3"]
    | Float[np.ndarray, "_ _"]
)


class Explanation(NamedTuple):
    """Why an image and a caption have their similarity: two ways to split it.

    Attributes:
        similarity: of the two embeddings.
        cells: float32 [rows, columns] of the image's grid, or [regions]; their sum is
            the similarity, as the method says.
        words: the caption's words with their parts of the similarity, which is their
            sum. "[CLS]" and "[SEP]" (BERT), "<start>" and "<end>" (BiGRU) or "<eos>"
            and "<pad>" (SigLIP, the padding that it reads) are among them.
        cells_method: 'exact', the sum is the similarity up to rounding; or 'integrated
            gradients' (see `Model.image_attributions`), it is within 1e-2 of it for
            the poolings of this package.
        words_method: the same of the words.
        cells_shared: how much of the similarity no cell causes: what the pooling gives
            for a set of zeros. It is in the parts, the same share for each cell or
            region. Of an exact split it is 0.
        words_shared: the same of the tokens.
    """

    similarity: float
    cells: np.ndarray
    words: list[tuple[str, float]]
    cells_method: AttributionMethod
    words_method: AttributionMethod
    cells_shared: float
    words_shared: float


def load(
    folder: str | AnyPath,
    overrides: Mapping[str, Any] | None = None,
    *,
    trust_code: bool = False,
) -> "Model":
    """The best model of a run, a shared or converted one, or a published SigLIP.

    JAX keeps compiled programs for the next start where it is told to, by
    JAX_COMPILATION_CACHE_DIR or `jax.config`; a start without takes a few seconds more.

    Args:
        folder: a run's (--workdir), the one that convert_torch_weights.py or
            --mode=push wrote, or Hugging Face's of a SigLIP or SigLIP2; or one of these
            two on the Hub: 'hf://USER/NAME', with '@REVISION' or without. Nothing of a
            shared folder is executed.
        overrides: fields of its config with other values, such as the vocabulary of a
            converted model that has none: {"text.vocab": "vocab.txt"}.
        trust_code: your own classes, which a shared model names ('module:Class') may
            be imported from where Python finds modules.

    Raises:
        InputError: no model there, no vocabulary, a class without `trust_code`, or
            trouble with the Hub.
    """
    is_hub = str(folder).startswith(HUB)
    name = str(folder).removeprefix(HUB) if is_hub else None
    folder = model_folder(folder, "load")
    config = model_config(folder, trust_code=trust_code)
    check_config(config, f"{folder / 'config.json'}: ")
    if overrides:
        try:
            config = typed({**flat_fields(config), **overrides})
            check_config(config)
        except InputError as error:
            raise InputError(f"overrides: {error}") from None
    config = with_paths(config, os.path.expanduser)
    with _without_orbax_notes():
        return model_of(config, folder, name)


def model_of(config: Config, folder: AnyPath, name: str | None = None) -> "Model":
    """As `load`, with the config of a command line; `name`: None: by its folder.

    Raises:
        InputError: no model there, another one than the config's, or no vocabulary.
    """
    if config.search.backend != "jax":  # which is given a program of float32
        config = with_fields(config, {"compute_dtype": "float32"})
    config, mesh = on_one_device(config)
    config, graphdef, arrays, mesh = load_model(config, folder, mesh)
    name = name or model_name(folder)
    published = is_siglip(folder) or (
        is_zero_shot(config) and not (folder / "checkpoints").is_dir()
    )
    if not published:
        cutoff = read_cutoff(folder, vector_size(config))
    elif config.dims is None:
        loss = arrays["params"]["loss"]
        cutoff = sigmoid_cutoff(float(loss["log_scale"]), float(loss["bias"]))
    else:  # its sigmoid is of similarities of whole vectors
        cutoff = None
    return Model(
        config,
        graphdef,
        arrays,
        mesh,
        name,
        trained_on=config.data.name if not published else _published_on(name),
        languages=model_languages(folder),
        cutoff=cutoff,
    )


def _published_on(name: str) -> str | None:
    """'webli' of Google's SigLIP2 (arXiv 2502.14786, section 2); others: not known."""
    return "webli" if name.removeprefix("google/").startswith("siglip2-") else None


class Model:
    """Two towers with their weights; made by `load`.

    Attributes:
        name: the folder's, or USER/NAME.
        trained_on: config.data.name of its training; of a published SigLIP2 'webli';
            None: not known.
        languages: ISO 639 codes that its card names.
        cutoff: the similarity from which it takes an image for what a caption says
            (evaluation/cutoff.py); None: not known.
        dim: length of its vectors, D.
        takes_regions: images are arrays of region features [k, F], not pixels.
        batch_size: images that it computes at a time.
        cells_method: how a similarity is split; None: it cannot be, as the encoder is
            no `SetEncoder`.
        words_method: the same of captions.
    """

    def __init__(
        self,
        config: Config,
        graphdef: nnx.GraphDef,
        arrays: dict[str, Any],
        mesh: Mesh,
        name: str,
        trained_on: str | None = None,
        cutoff: float | None = None,
        languages: Sequence[str] = (),
    ):
        self.name = name
        self.trained_on = trained_on
        self.cutoff = cutoff
        self.languages: Sequence[str] = list(languages)
        self.dim: int = vector_size(config)
        self.takes_regions = takes_regions(config.image)
        self.batch_size: int = batch_sizes(config, 1)[0]
        self._config = config
        self._arrays = arrays
        self._tokenizer = caption_tokenizer(config)
        self._programs = CompileCache()
        others = config.search.backend != "jax"
        backend = ImageBackend(config, graphdef, arrays) if others else None
        programs = self._programs
        self._embedder = Embedder(config, graphdef, arrays, mesh, programs, backend)
        encoders = merge_model(graphdef, arrays)
        self.cells_method = _method_of(encoders.image)
        self.words_method = _method_of(encoders.text)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells which model made a vector.

        A digest of the weights, the vocabulary and every field of the config that
        decides vectors. Models that differ by rounding only (config.compute_dtype) have
        the same, since the vectors of one can be searched with the other. Where JAX
        does not compute the vectors of images, ' by BACKEND' follows the digest.
        """
        fields = vector_fields(self._config)
        digest = hashlib.sha256(repr(sorted(fields.items())).encode())
        digest.update(vocabulary_digest(self._config).encode())
        for path, leaf in jax.tree.leaves_with_path(self._arrays):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
        backend = backend_name(self._config.search)
        return digest.hexdigest() + ("" if backend == "jax" else f" by {backend}")

    def prepare(self, image: ImageLike) -> Float32[np.ndarray, "rows columns 3"]:
        """What the image encoder takes of an image: resized and normalised.

        It is a square, unless the model keeps an image's aspect (NaFlex).
        `encode_images` takes it in place of the image, which may be large.

        Raises:
            InputError: a bad image (names it).
        """
        return self._prepared(image, 0)

    def encode_images(
        self,
        images: Sequence[ImageLike],
        *,
        on_bad: Literal["error", "skip"] = "error",
        progress: bool = False,
    ) -> Float32[np.ndarray, "n d"]:
        """Embeddings of images, of length 1 unless the model was trained otherwise.

        Args:
            images: paths, PIL images, RGB arrays or what `prepare` gives; of a region
                model, the features of each image's regions [k, F]. Files may have as
                many pixels as Pillow's MAX_IMAGE_PIXELS allows, and 200 million at
                most.
            on_bad: 'error', or 'skip': a bad image is logged and its row is NaN.
            progress: show it.

        Raises:
            InputError: an image cannot be used (names it).
        """
        check_choice("on_bad", on_bad, ("error", "skip"))
        return self._encode(self._images(_several(images), on_bad), progress)

    def encode_captions(
        self, captions: Sequence[str], *, progress: bool = False
    ) -> Float32[np.ndarray, "n d"]:
        """Embeddings of captions, of length 1 unless the model was trained otherwise.

        Raises:
            InputError: none of them has a word that the model knows (BiGRU).
        """
        tokens = self._tokenizer(_several(captions))
        return self._encode(Captions(self._config, tokens), progress)

    def explain(self, image: ImageLike, caption: str) -> Explanation:
        """Splits the similarity of an image and a caption, and says how exactly.

        Raises:
            InputError: as `image_attributions` and `caption_attributions`.
        """
        if not self.takes_regions:
            image = self.prepare(image)  # which is read once for both
        seen = self.encode_images([image])[0]
        read = self.encode_captions([caption])[0]
        cells, cells_shared = self._split_image(image, read)
        words, words_shared = self._split_caption(caption, seen)
        assert self.cells_method is not None  # or the lines above raised
        assert self.words_method is not None
        return Explanation(
            float(seen @ read),
            cells,
            words,
            self.cells_method,
            self.words_method,
            cells_shared,
            words_shared,
        )

    def image_attributions(
        self, image: ImageLike, vector: Float[np.ndarray, " d"]
    ) -> Float32[np.ndarray, "rows columns"] | Float32[np.ndarray, " regions"]:
        """Each cell's part of the image's similarity to a vector, or each region's.

        Most poolings are a sum over the elements of a set (VSE∞, section 3: rank weight
        times value), so the inner product with any vector is one, too, and the parts
        are exact. Of the others, such as SigLIP's head, these are integrated gradients
        (Sundararajan et al., ICML 2017) over what is pooled, from a set of zeros to the
        image's: what the pooling gives for zeros is shared evenly by all elements, and
        the sum is within 1e-2 of the similarity. `cells_method` says which it is.

        Raises:
            InputError: a bad image, or an encoder that is no `SetEncoder`.
        """
        return self._split_image(image, vector)[0]

    def _split_image(
        self, image: ImageLike, vector: np.ndarray
    ) -> tuple[np.ndarray, float]:
        c = self._config.image
        if keeps_aspect(c):
            image = self.prepare(image)
        images = self._images([image])
        parts, shared = self._embedder.attribute(self._arrays, images, vector)
        if keeps_aspect(c) and isinstance(image, np.ndarray):
            rows, columns = (side // c.vit.patch for side in image.shape[:2])
            return parts[: rows * columns].reshape(rows, columns), shared
        if self.takes_regions and isinstance(image, np.ndarray):
            return parts[: len(image)], shared
        side = math.isqrt(len(parts))  # the images are square, and so is the grid
        return parts.reshape(side, side), shared

    def caption_attributions(
        self, caption: str, vector: Float[np.ndarray, " d"]
    ) -> list[tuple[str, float]]:
        """Each word's part of the caption's similarity to a vector.

        A word's vector depends on the whole caption: BERT and a GRU read all of it.
        `words_method` says whether the parts are exact.

        Raises:
            InputError: an encoder that is no `SetEncoder`.
        """
        return self._split_caption(caption, vector)[0]

    def _split_caption(
        self, caption: str, vector: np.ndarray
    ) -> tuple[list[tuple[str, float]], float]:
        tokens = self._tokenizer([caption])
        captions = Captions(self._config, tokens)
        parts, shared = self._embedder.attribute(self._arrays, captions, vector)
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
        return found, shared

    def warm_up(self) -> None:
        """Compiles what a query and its explanation need, side by side."""
        self._embedder.warm_up(self._arrays, self._tokenizer([""]))

    def _encode(self, items: Items, progress: bool) -> Float32[np.ndarray, "n d"]:
        result = np.full((len(items.order), self.dim), np.nan, np.float32)
        shown = items.program if progress else None
        for rows, numbers in self._embedder.encode(self._arrays, items, shown):
            bad = numbers[~np.isfinite(rows).all(axis=1)]
            if bad.size:
                raise InputError(
                    f"{self.name}: {items.program}: the embedding of item {bad[0]} is "
                    "NaN or infinite"
                )
            result[numbers] = rows
        return result

    def _images(
        self, images: Sequence[ImageLike], on_bad: Literal["error", "skip"] = "error"
    ) -> Images:
        c = self._config.image

        def read(batch: Batch, row: int, number: int) -> None:
            image = images[number]
            if not self.takes_regions:
                put_image(batch, row, self._prepared(image, number), c)
                return
            shape = image.shape if isinstance(image, np.ndarray) else ()
            if len(shape) != 2 or shape[0] == 0 or shape[1] != c.feature_dim:
                raise InputError(
                    f"image {number}: this model takes region features, arrays of "
                    f"[regions, {c.feature_dim}]"
                )
            if shape[0] > c.max_regions:
                raise InputError(
                    f"image {number}: {shape[0]} regions; this model takes at most "
                    f"{c.max_regions}"
                )
            assert isinstance(image, np.ndarray)
            batch["regions"][row, : shape[0]] = finite_regions(image, f"image {number}")
            batch["region_lengths"][row] = shape[0]

        return Images(c, len(images), read, on_bad)

    def _check_prepared(self, image: np.ndarray, number: int) -> None:
        c = self._config.image
        wanted, fits = f"[{c.size}, {c.size}, 3]", image.shape == (c.size, c.size, 3)
        if keeps_aspect(c):
            patch, most = c.vit.patch, c.vit.max_patches
            assert most is not None
            wanted = f"[{patch} · rows, {patch} · columns, 3], {most} patches at most"
            fits = image.shape[2:] == (3,) and not any(
                side % patch or side == 0 for side in image.shape[:2]
            )
            fits = fits and math.prod(image.shape[:2]) <= most * patch**2
        if not fits:
            raise InputError(
                f"image {number}: float32 {list(image.shape)}; what this model "
                f"prepares is {wanted}"
            )

    def _prepared(self, image: ImageLike, number: int) -> np.ndarray:
        c = self._config.image
        if isinstance(image, np.ndarray):
            if image.dtype == np.float32:
                self._check_prepared(image, number)
                return image
            if image.dtype != np.uint8 or image.shape[2:] != (3,):
                raise InputError(
                    f"image {number}: an array of {image.dtype} {list(image.shape)}; "
                    "an image is uint8 [height, width, 3]"
                )
            pixels = image
        elif isinstance(image, str | Path):
            pixels = load_image(os.path.expanduser(image))
        else:
            pixels = load_image(image)
        return prepare_image(pixels, c)


def _method_of(encoder: nnx.Module) -> AttributionMethod | None:
    try:
        return attribution_method(encoder)
    except InputError:
        return None


def _several(items: Sequence) -> Sequence:
    if isinstance(items, str | Path | ImageBytes):
        raise InputError(f"{items}: give a list, also of one")
    return items


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
