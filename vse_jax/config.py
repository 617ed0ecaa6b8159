"""Every field of a config, once; what is checked of it; how it is read and saved.

A new field is one line in one of the classes below: its type, its default, which is the
value of the published grid + BERT recipe on COCO (VSE∞, CVPR 2021), a doc with its
unit, its range or choices, and who may change it. A new pooling, loss or encoder is its
class and one line in a table: `POOL_CLASSES`, `LOSS_CLASSES`, `IMAGE_CLASSES` or
`TEXT_CLASSES`.

Config files and the command line set fields of a `ConfigDict` (`config_dict`), which
knows each field's name and type. `typed` makes the frozen tree of it that the package
reads; `check_config` then looks at ranges, choices and how fields go together. Nothing
changes a config: `with_fields` gives a copy with other values.

A path may begin with `~`; a relative one starts at the folder where the program is
started.
"""

import dataclasses
import datetime
import difflib
import enum
import itertools
import json
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, check_inside, write_atomically
from vse_jax.base.registry import check_code, is_path

T = TypeVar("T")
Fields = Mapping[str, Any]  # {"data.root": value, …}

# ---- What a config names: short name → the class or function that makes it -----------

POOL_CLASSES = {
    "gpo": "vse_jax.models.gpo:GPO",
    "avg": "vse_jax.models.pooling:AveragePool",
    "max": "vse_jax.models.pooling:MaxPool",
    "kmax": "vse_jax.models.pooling:KMaxPool",
    "gem": "vse_jax.models.pooling:GeMPool",
    "fspool": "vse_jax.models.pooling:FSPool",
    "cls": "vse_jax.models.pooling:FirstPool",
    "last": "vse_jax.models.pooling:LastPool",
    "seq2seq": "vse_jax.models.pooling:Seq2SeqPool",
    "selfattn": "vse_jax.models.pooling:SelfAttentionPool",
    "map": "vse_jax.models.pooling:MAPPool",
    "ep": "vse_jax.models.pooling:EfficientProbingPool",
}
LOSS_CLASSES = {
    "triplet": "vse_jax.losses:TripletLoss",
    "infonce": "vse_jax.losses:InfoNCELoss",  # CLIP's
    "sigmoid": "vse_jax.losses:SigmoidLoss",  # SigLIP's
}
IMAGE_CLASSES = {
    "grid": "vse_jax.models.image_encoder:GridEncoder",  # the cells of a CNN
    "region": "vse_jax.models.image_encoder:RegionEncoder",  # precomputed features
    "vit": "vse_jax.models.image_encoder:ViTEncoder",  # SigLIP's
}
TEXT_CLASSES = {
    "bert": "vse_jax.models.text_encoder:BertEncoder",
    "bigru": "vse_jax.models.text_encoder:BiGRUEncoder",
    "siglip": "vse_jax.models.text_encoder:SiglipEncoder",
}


def grid_rules(embedding_warmup=1, backbone_warmup=0, backbone=0.01, bert=0.1):
    """Parameter groups of grid models: (regex, learning-rate factor, unfreeze epoch).

    The first rule that matches a parameter's path decides; every parameter must match.
    A group gets no update at all before its epoch; epoch -1 means never. A fourth value
    is a decay per layer, counted from the top by the number that the regex's group is:
    ("^image/vit/layers/([0-9]+)/", 1.0, 0, 0.8) multiplies the rate of the layer below
    the last by 0.8. Where the group is not found, it is below all layers. The CNN
    unfreezes from the top: layer4, layer3, layer2, then the rest with the stem, each
    `backbone_warmup` epochs after the one before.
    """
    e, w = embedding_warmup, backbone_warmup
    return (
        ("^image/backbone/layer4/", backbone, e),
        ("^image/backbone/layer3/", backbone, e + w),
        ("^image/backbone/layer2/", backbone, e + 2 * w),
        ("^image/backbone/", backbone, e + 3 * w),
        ("^text/bert/", bert, 0),
        (".*", 1.0, 0),
    )


def region_rules():
    """Parameter groups of region models (see `grid_rules`)."""
    return (("^text/bert/", 0.1, 0), (".*", 1.0, 0))


# ---- What is said of a field ---------------------------------------------------------


class Free(enum.IntEnum):
    """Who may give a field another value than its run was started with."""

    NOBODY = 0  # the field decides the model
    EVALUATION = 1  # it says how the model was trained
    RESUME = 2  # how long, how fast and where a run computes, and what it reports
    HOST = 3  # where a host keeps its files, and its cores: hosts of a run may differ


NOBODY, EVALUATION, RESUME, HOST = Free
SHARE = {"min": 0, "max": 1}


@dataclass(frozen=True)
class Spec:
    """What is known of a field, or of a group of fields.

    doc: what it is, with its unit.
    min, max: of a number, both possible.
    choices: the values of a text.
    classes: the same, as names of classes; your own 'package.module:Class' is one, too.
    check: what else is wrong with a value; None: nothing.
    path: names a file or folder of this machine, or a URL.
    paths: several of them, with commas between.
    free: who may change it; of a group, each of its fields.
    shared: others get it with a model; what a HOST may change they never do.
    vectors: decides a model's vectors though evaluation may change it.
    read_by: the only kind of encoder that reads it.
    """

    doc: str = ""
    min: int | float | None = None
    max: int | float | None = None
    choices: tuple[str, ...] = ()
    classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    check: Callable[[Any], str | None] | None = None
    path: bool = False
    paths: bool = False
    free: Free = NOBODY
    shared: bool = True
    vectors: bool = False
    read_by: str | None = None
    # From the line that the field stands in: its value and its type, without None.
    default: Any = None
    kind: type = object
    optional: bool = False

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value of the right type; None: nothing."""
        if value is None and self.optional:
            return None
        choices = self.choices or tuple(self.classes)
        if choices and value not in choices:
            if self.classes and is_path(value):
                return None
            own = ", nor of the form package.module:Class" if self.classes else ""
            return f"{value!r} is none of {', '.join(choices)}{own}"
        if value is None:
            return "needs a value"
        if self.min is not None:
            if isinstance(value, bool):
                return f"{value!r} is no number"
            if self.max is not None and not self.min <= value <= self.max:
                return f"{value} is not between {self.min} and {self.max}"
            if not value >= self.min:  # NaN is below everything
                return f"{value} is less than {self.min}"
            if value == math.inf:
                return f"{value} is not finite"
        try:
            return self.check(value) if self.check else None
        except (TypeError, ValueError) as error:
            return str(error)


def field(default: T, doc: str, **about: Any) -> T:
    """A field of a config; `about` is what `Spec` holds."""
    spec = Spec(doc, default=default, **about)
    return dataclasses.field(default=default, metadata={"spec": spec})


# ---- What a field of its own form has to be: None, or what is wrong ------------------


def _whole_numbers(value: tuple) -> str | None:
    fine = value and all(isinstance(n, int) and n >= 0 for n in value)
    return None if fine and max(value) > 0 else "needs positive whole numbers"


def _shares(value: tuple) -> str | None:
    for share in value:
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            return f"{share!r} is not between 0 and 1"
    return None if value else "needs at least one number between 0 and 1"


def _steps(value: str) -> str | None:
    if re.fullmatch(r"\d+:\d+", value):
        first, _, last = value.partition(":")
        if 1 <= int(first) <= int(last):
            return None
    return f"{value!r} is not FIRST:LAST, steps from 1"


def _share_of_side(value: float) -> str | None:
    return None if 0 < value <= 1 else "not above 0 and at most 1"


def _rules(value: tuple) -> str | None:
    for rule in value:
        try:
            pattern, factor, unfreeze_epoch, *decay = rule
            groups = re.compile(pattern).groups
            fine = 0 <= factor < math.inf and int(unfreeze_epoch) == unfreeze_epoch
            if decay:
                fine = fine and len(decay) == groups == 1 and 0 < decay[0] <= 1
        except (TypeError, ValueError, re.error) as error:
            return f"{rule!r} is not (regex, learning-rate factor, epoch): {error}"
        if not fine:
            return (
                f"{rule!r} is not (regex, learning-rate factor ≥ 0, whole epoch), nor "
                "that with a decay, 0 … 1, and a group for the layer's number"
            )
    return None


def _regex(value: str) -> str | None:
    try:
        re.compile(value)
    except re.error as error:
        return f"not a regular expression ({error})"
    return None


def is_day(text: str) -> bool:
    """Whether a text is a day of the form YYYY-MM-DD."""
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _day(value: str) -> str | None:
    return None if is_day(value) else f"{value!r} is no day, such as 2024-12-31"


def _patterns(value: tuple) -> str | None:
    if all(isinstance(pattern, str) for pattern in value):
        return None
    return f"{value!r} are no patterns, such as ('private/', '*.gif')"


def _hosts(value: tuple) -> str | None:
    for name in value:
        if not re.fullmatch(r"(?i)(\*\.)?[a-z0-9._-]+|[0-9a-f:.]+", str(name)):
            return f"{name!r} is no name of a host, such as 'photos.example.com'"
    return None


# ---- The fields ----------------------------------------------------------------------


@dataclass(frozen=True)
class MeshConfig:
    slice: int = field(
        -1, "groups of devices joined by a slower network; -1: as the devices say"
    )
    data: int = field(-1, "each has its part of the batch")
    fsdp: int = field(
        1, "the same; more than 1: parameters are gathered block by block"
    )


@dataclass(frozen=True)
class DataConfig:
    name: str = field("coco", "coco, f30k, openmoji or any: decides the image folder")
    root: str = field("data/coco", "the folder of precomp/, or its URL", path=True)
    format: str = field(
        "folder",
        "the published layout; tfds: records of it",
        choices=("folder", "tfds"),
        free=RESUME,
    )
    export_to: str | None = field(
        None, "folder for --mode=export; None: data.root", path=True
    )
    cache: str | None = field(
        None, "keeps a URL's shards; None: ~/.cache/vse_jax/data", path=True
    )
    source: str | None = field(
        None, "--mode=prepare: captions, tars or features; docs/data.md", path=True
    )
    images: str | None = field(
        None, "--mode=prepare: images that do not lie beside the source", path=True
    )
    render_size: int = field(128, "px; --mode=prepare of the OpenMoji images", min=1)
    train_split: str = field("train", "the split to train on")
    dev_split: str = field("dev", "the split to validate on")
    dev_captions: int | None = field(
        None, "validates on the first ones; None: on all", min=1
    )
    captions_per_image: int | None = field(
        None,
        "takes each image's first ones, as the original took five; None: all",
        min=1,
        free=EVALUATION,
    )
    distinct_images: bool = field(
        False, "no image twice in a batch (five passes an epoch)"
    )
    on_bad_image: str = field(
        "error",
        "or skip it: another pair of the split replaces it",
        choices=("error", "skip"),
    )
    workers: str = field(
        "auto",
        "what reads ahead; auto: the faster, which is threads",
        choices=("auto", "threads", "processes"),
        free=HOST,
    )
    num_workers: int = field(0, "0: one per core, at most 16", min=0, free=HOST)
    buffer_mb: int = field(
        4096,
        "MB of batches that a host makes before the devices take them; at least one",
        min=1,
        free=HOST,
    )
    max_tokens: int = field(
        128, "longer captions are cut, [SEP] kept", min=3, vectors=True
    )
    token_buckets: tuple[int, ...] = field(
        (3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128),
        "padded lengths, each at most 1.5 × the one before: none is much too long",
        check=_whole_numbers,
    )


@dataclass(frozen=True)
class BackboneConfig:
    block: str = field(
        "v1",
        "v1 has its stride on the first 1×1",
        choices=("v1", "torchvision", "basic"),
    )
    stem: str = field(
        "conv7",
        "7×7/2 and max pool; or one of patch × patch",
        choices=("conv7", "patch"),
    )
    patch: int = field(4, "px; stem 'patch' only", min=1)
    layers: tuple[int, ...] = field(
        (3, 4, 23, 3), "blocks per stage", check=_whole_numbers
    )
    width: int = field(64, "channels of the stem and of the first stage", min=1)
    groups: int = field(1, "ResNeXt-101 32×8d: 32", min=1)
    group_width: int = field(64, "channels per group at width 64; ResNeXt: 8", min=1)
    batch_norm: str = field(
        "frozen", "at its running statistics; or train", choices=("frozen", "train")
    )


@dataclass(frozen=True)
class VitConfig:
    patch: int = field(
        16, "px; what does not divide the size is left out at the edges", min=1
    )
    hidden: int = field(768, "channels", min=1)
    layers: int = field(12, "transformer blocks", min=0)
    heads: int = field(12, "of the attention", min=1)
    ffn: int = field(3072, "channels inside a block's MLP", min=1)
    max_patches: int | None = field(
        None,
        "NaFlex: an image keeps its aspect, and has as many patches as fit into these; "
        "None: it becomes a square of image.size",
        min=1,
    )
    grid: int = field(16, "NaFlex: side of the square of learned positions", min=1)


@dataclass(frozen=True)
class ImageConfig:
    kind: str = field("grid", "the encoder", classes=IMAGE_CLASSES)
    input: str = field(
        "auto",
        "pixels, or features of regions; auto: regions for kind 'region'",
        choices=("auto", "pixels", "regions"),
    )
    pool: str = field(
        "gpo",
        "the pooling; cls: the first vector; map: SigLIP's attention head, of a ViT "
        "the published one, without fc",
        classes=POOL_CLASSES,
    )
    pool_k: int = field(
        5, "kmax: how many values of each dimension are averaged", min=1
    )
    normalise: bool = field(True, "to length 1; False: the original's no_imgnorm")
    weights: str | None = field(
        None, "folder: a converted CNN, or SigLIP's (vit)", path=True
    )
    size: int = field(512, "px, both sides; 256 × input_scale_factor", min=1)
    pixels: str = field(
        "detector",
        "BGR − means; imagenet: RGB standardised; siglip: RGB, −1 … 1",
        choices=("detector", "imagenet", "siglip"),
    )
    resample: str = field(
        "opencv",
        "bilinear as in the original; bilinear and bicubic: Pillow's, with a filter as "
        "wide as a shrunk pixel",
        choices=("opencv", "bilinear", "bicubic"),
    )
    crop_min: float = field(
        0.6,
        "training crop: ratio ~ U(crop_min, 1) of both sides",
        check=_share_of_side,
        free=EVALUATION,
    )
    flip: float = field(
        0.5, "probability of the training mirror", **SHARE, free=EVALUATION
    )
    drop: float = field(
        0.2,
        "size augmentation: share of the set that may be dropped",
        **SHARE,
        free=EVALUATION,
    )
    feature_dim: int = field(2048, "of region features", min=1, read_by="region")
    max_regions: int = field(
        36, "static set size of region features", min=1, read_by="region"
    )
    backbone: BackboneConfig = field(
        BackboneConfig(), "the CNN of kind 'grid'", read_by="grid"
    )
    vit: VitConfig = field(VitConfig(), "the transformer of kind 'vit'", read_by="vit")


@dataclass(frozen=True)
class TextConfig:
    kind: str = field("bert", "the encoder", classes=TEXT_CLASSES)
    pool: str = field(
        "gpo",
        "the pooling; cls: BERT's [CLS]; last: SigLIP's, which reads padding",
        classes=POOL_CLASSES,
    )
    pool_k: int = field(5, "as image.pool_k", min=1)
    normalise: bool = field(True, "to length 1; False: the original's no_txtnorm")
    weights: str | None = field(
        None, "Hugging Face folder, or package:NAME/FOLDER", path=True
    )
    vocab: str | None = field(
        None, "file; None: in the weights' folder, else <root>/../vocab", path=True
    )
    vocab_size: int = field(30522, "0 (bigru): as many as the vocabulary holds", min=0)
    vocab_threshold: int = field(
        4, "--mode=build_vocab: times a word has to occur", min=1, free=EVALUATION
    )
    word_dim: int = field(300, "of a word's vector", min=1, read_by="bigru")
    hidden: int = field(768, "channels", min=1)
    layers: int = field(
        12, "bigru: 1 or 2, or 0 with pool = 'seq2seq' (VSE++'s GRU)", min=0
    )
    heads: int = field(12, "of the attention", min=1)
    ffn: int = field(3072, "channels inside a block's MLP", min=1)
    max_positions: int = field(512, "tokens; SigLIP: 64", min=3)
    pad_id: int = field(0, "siglip: the token that fills captions up", min=0)
    dropout: float = field(
        0.1, "inside BERT, as in its pretraining", **SHARE, free=EVALUATION
    )
    augment: float = field(
        0.2,
        "probability that a training word is masked, replaced or removed",
        **SHARE,
        free=EVALUATION,
    )
    cache_features: bool = field(
        False, "frozen encoder: its token features are computed once", free=EVALUATION
    )


@dataclass(frozen=True)
class LossConfig:
    name: str = field("triplet", "the loss", classes=LOSS_CLASSES)
    margin: float = field(0.2, "of the triplet loss", min=0)
    vse_mean_warmup_epochs: int = field(
        1, "triplet: all negatives first, then only the hardest", min=0
    )
    mask_same_image: bool = field(
        False, "an image's other captions are no negatives of it"
    )
    ramp_epoch: int = field(
        1, "loss × (step in epoch / steps) in this epoch; -1: never", min=-1
    )
    matryoshka: tuple[int, ...] = field(
        (), "the loss is a mean over these first values of a vector, and all of them"
    )


@dataclass(frozen=True)
class LoraConfig:
    on: str | None = field(
        None,
        "regex of the matrices that stay as they are and get trained updates of low "
        "rank, lora/<path>/a and b; None: there are none",
        check=_regex,
    )
    rank: int = field(8, "of the updates", min=1)
    alpha: float = field(8.0, "the updates count alpha / rank", min=0)


@dataclass(frozen=True)
class OptimizerConfig:
    name: str = field(
        "adamw",
        "adamw: β 0.9/0.999, ε 1e-8; sgd: momentum 0.9",
        choices=("adamw", "sgd"),
    )
    learning_rate: float = field(5e-4, "of a group with factor 1", min=0)
    schedule: str = field(
        "step",
        "step: the rate drops at lr_update; cosine: it falls to 0 at the run's end",
        choices=("step", "cosine"),
    )
    lr_update: int = field(
        15, "step: the epoch at whose start the rate drops to a tenth", min=0
    )
    warmup_steps: int = field(0, "in which the rate rises from 0, linearly", min=0)
    weight_decay: float = field(1e-4, "decoupled for adamw", min=0)
    weight_decay_on: str = field(
        ".*", "regex of the parameters that decay", check=_regex
    )
    nesterov: bool = field(False, "sgd only")
    clip: float = field(
        2.0, "global gradient norm over the trainable parameters; 0: no limit", min=0
    )
    rules: tuple[tuple[str, float, int] | tuple[str, float, int, float], ...] = field(
        grid_rules(), "parameter groups, see `grid_rules`", check=_rules
    )
    lora: LoraConfig = field(LoraConfig(), "small trained updates of large matrices")
    ema: float | None = field(
        None,
        "decay of a moving average of the weights, such as 0.999: it is what is "
        "validated, saved as the best and shared; None: there is none",
        **SHARE,
    )


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int | None = field(
        None, "also within an epoch, at whose end it is saved in any case", min=1
    )
    every_minutes: float | None = field(
        None, "minutes since the last save, by the clock of process 0", min=0.01
    )
    keep: int = field(1, "newest ones that stay; the best on dev stays, too", min=1)


@dataclass(frozen=True)
class RetentionConfig:
    split: str | None = field(
        None, "None: 'test' of the root or name below; with neither, there is none"
    )
    root: str | None = field(None, "data root that has it; None: data.root", path=True)
    name: str | None = field(None, "of its data set; None: data.name")


@dataclass(frozen=True)
class EvalConfig:
    split: str = field("test", "ranked by --mode=eval and after training")
    batch_size: int | None = field(
        None, "None: by the images' size and the devices", min=1
    )
    ensemble: str | None = field(None, "workdirs, comma-separated", paths=True)
    cxc: bool = field(False, "also report CxC, from <data.root>/cxc_annots/")
    eccv: bool = field(False, "also report ECCV Caption (COCO's 5K test images)")
    plausible_matches: str | None = field(
        None, "folder with pm_*.json: ECCV's PMRP", path=True
    )
    qrels: str | None = field(
        None,
        "file of TREC, a line QUERY 0 ITEM GRADE: also report nDCG, MAP and MRR",
        path=True,
    )
    retention: RetentionConfig = field(
        RetentionConfig(),
        "what a fine-tuned model should still know: a split, scored before and after",
    )


@dataclass(frozen=True)
class InterpolateConfig:
    alphas: tuple[float, ...] = field(
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        "shares of the fine-tuned weights; the others are those it started from",
        check=_shares,
    )


@dataclass(frozen=True)
class SearchConfig:
    pictures: str | None = field(None, "--mode=index: the folder to index", path=True)
    index: str | None = field(None, "where the index is; None: W/index", path=True)
    exclude: tuple[str, ...] | None = field(
        None,
        "patterns of what --mode=index leaves out, as in .gitignore: ('private/', "
        "'*.gif'). None: as the last time; (): nothing but trash, thumbnails and what "
        "is hidden",
        check=_patterns,
    )
    forget: bool = field(
        False, "--mode=index: more than a tenth of the photos may leave"
    )
    query: str | None = field(None, "a caption, or parts: 'a red car' - 'people'")
    like: str | None = field(None, "a photo: more of this kind", path=True)
    top: int = field(10, "results", min=1)
    min_score: float | None = field(
        None,
        "leave out what scores less, -1 … 1; None: than the model's own cut-off, of a "
        "query that is one caption",
        min=-1,
    )
    after: str | None = field(
        None, "taken on this day (YYYY-MM-DD) or later", check=_day
    )
    before: str | None = field(None, "taken on this day or earlier", check=_day)
    camera: str | None = field(None, "as EXIF names it")
    folder: str | None = field(None, "below search.pictures")
    format: str = field("table", "of the results", choices=("table", "json", "paths"))
    engine: str = field(
        "exact",
        "approximate: a cache beside the index; postgres: a server's",
        choices=("exact", "approximate", "postgres"),
    )
    url: str | None = field(None, "engine 'postgres': postgresql://USER@HOST/DATABASE")
    backend: str = field(
        "jax",
        "computes the vectors of images; onnx: ONNX Runtime; openvino: the fastest on "
        "CPUs with bfloat16",
        choices=("jax", "onnx", "openvino"),
    )
    precision: str = field(
        "float32",
        "of backend 'openvino'; bfloat16 rounds the vectors (docs/search.md)",
        choices=("float32", "bfloat16"),
    )
    max_pixels: int = field(
        200_000_000,
        "of a photo; larger ones are not decoded. All that are decoded at a time take "
        "at most 5 bytes of memory for each of it: 1 GB",
        min=1,
    )
    host: str = field("127.0.0.1", "--mode=serve: another one needs search.token")
    port: int = field(8765, "of the server", min=0)
    hosts: tuple[str, ...] = field(
        (), "more names of the server: ('photos.example.com', '*.lan')", check=_hosts
    )
    open: bool = field(False, "the page in a browser, when the server listens")
    token: str | None = field(None, "what the page and the API then ask for")
    max_upload_mb: int = field(20, "MB", min=1)
    queue: int = field(
        64, "requests that wait for the model; more are refused (429)", min=1
    )
    timeout_s: float = field(10.0, "s, of a request", min=0.1)
    log_queries: bool = field(False, "in the server's log")


@dataclass(frozen=True)
class ExportConfig:
    format: str = field(
        "stablehlo",
        "of --mode=export_model: for JAX; onnx: for ONNX Runtime and others",
        choices=("stablehlo", "onnx"),
    )


@dataclass(frozen=True)
class HubConfig:
    license: str | None = field(
        None, "of the weights, as the Hub calls it: cc-by-4.0, …"
    )
    private: bool = field(False, "who may see a repository that it makes")


@dataclass(frozen=True)
class Config:
    """All of it. The defaults are those of configs/coco_grid.py, except its files."""

    seed: int = field(0, "of all random numbers", min=0, free=EVALUATION)
    batch_size: int = field(
        128, "pairs per step over all devices and hosts", min=1, free=EVALUATION
    )
    num_epochs: int = field(25, "of training", min=1, free=RESUME)
    max_steps: int | None = field(
        None, "stop after this many steps; None: by epochs", min=1, free=RESUME
    )
    log_every: int = field(
        10, "steps between lines of metrics.jsonl", min=1, free=RESUME
    )
    mesh: MeshConfig = field(
        MeshConfig(), "devices per axis of the mesh; -1: all the rest", free=RESUME
    )
    microbatches: int = field(
        1,
        "parts of the batch that the encoders see one after the other",
        min=1,
        free=EVALUATION,
    )
    remat: bool = field(
        False,
        "keep blocks' inputs only and recompute the rest: less memory",
        free=RESUME,
    )
    compute_dtype: str = field(
        "float32",
        "of the encoders; parameters and loss stay float32",
        choices=("float32", "bfloat16"),
        free=EVALUATION,
    )
    matmul_precision: str = field(
        "auto",
        "by device; highest: float32; high: TF32/bf16x3; default: the device's own "
        "(docs/planning.md)",
        choices=("auto", "highest", "high", "default"),
        free=RESUME,
    )
    embed_dim: int = field(1024, "length of an embedding", min=1)
    dims: int | None = field(
        None,
        "first values of an embedding that are used, once trained; None: all",
        min=1,
        free=RESUME,
        vectors=True,
    )
    weights: str | None = field(
        None,
        "the model that training starts from: a run's folder, a shared one or hf://; "
        "--model names it, too",
        path=True,
    )
    debug: bool = field(
        False,
        "training ends where data moves to or from a device unasked",
        free=RESUME,
        shared=False,
    )
    profile: str | None = field(
        None,
        "FIRST:LAST, steps from 1: their trace to W/profile/",
        check=_steps,
        free=RESUME,
        shared=False,
    )
    data: DataConfig = field(DataConfig(), "what is read, and how", free=EVALUATION)
    image: ImageConfig = field(ImageConfig(), "the image encoder, and what it sees")
    text: TextConfig = field(TextConfig(), "the text encoder, and what it reads")
    loss: LossConfig = field(
        LossConfig(),
        "what is minimised: the paper's is the triplet loss (Eq. 5)",
        free=EVALUATION,
    )
    optimizer: OptimizerConfig = field(
        OptimizerConfig(),
        "AdamW or SGD, and which parameters train when",
        free=EVALUATION,
    )
    checkpoint: CheckpointConfig = field(
        CheckpointConfig(), "when a run is saved", free=RESUME
    )
    eval: EvalConfig = field(EvalConfig(), "what is evaluated, and how", free=RESUME)
    interpolate: InterpolateConfig = field(
        InterpolateConfig(),
        "--mode=interpolate: weights between two models",
        free=RESUME,
        shared=False,
    )
    search: SearchConfig = field(
        SearchConfig(),
        "your own photos: modes index, search, serve and explain",
        free=RESUME,
        shared=False,
    )
    export: ExportConfig = field(
        ExportConfig(),
        "programs that run without this package",
        free=RESUME,
        shared=False,
    )
    hub: HubConfig = field(
        HubConfig(),
        "what --mode=push says on the Hugging Face Hub",
        free=RESUME,
        shared=False,
    )


def _conflicts(c: Config) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with it) where fields do not go together.

    Each of them may be wrong by itself: a size may be 0 here.
    """
    mesh = (c.mesh.slice, c.mesh.data, c.mesh.fsdp)
    if any(n == 0 or n < -1 for n in mesh) or mesh[1:] == (-1, -1):
        yield "mesh", "every axis needs a positive number of devices, one may be -1"
    if c.batch_size % max(c.microbatches, 1):
        yield "microbatches", f"a batch of {c.batch_size} does not divide by it"

    if c.dims is not None and c.dims > c.embed_dim:
        yield "dims", f"{c.dims} is more than embed_dim = {c.embed_dim}"
    lengths = (0, *c.loss.matryoshka, c.embed_dim)
    if any(a >= b for a, b in itertools.pairwise(lengths)):
        yield "loss.matryoshka", f"needs rising numbers below embed_dim = {c.embed_dim}"

    image, vit = c.image, c.image.vit
    if image.kind == "vit":
        if vit.hidden % max(vit.heads, 1):
            yield "image.vit.heads", f"does not divide image.vit.hidden = {vit.hidden}"
        if vit.patch > image.size:
            yield "image.vit.patch", f"larger than image.size = {image.size}"
        if image.pool == "map" and vit.hidden != c.embed_dim:
            yield (
                "image.pool",
                f"'map' gives vectors of image.vit.hidden = {vit.hidden}, not of "
                f"embed_dim = {c.embed_dim}",
            )

    text = c.text
    transformer = text.kind in ("bert", "siglip")
    if transformer and text.hidden % max(text.heads, 1):
        yield "text.heads", f"does not divide text.hidden = {text.hidden}"
    if text.kind == "bigru" and not text.layers and text.pool != "seq2seq":
        yield "text.layers", "0 needs text.pool = 'seq2seq'"
    if text.cache_features:
        name = "text.cache_features"
        if not transformer:
            kind = "a BiGRU" if text.kind == "bigru" else f"the encoder {text.kind}"
            yield name, f"{kind} has no token features to store"
        elif text.kind == "siglip" and text.pool == "last":
            yield name, "text.pool = 'last' reads the padding, which is not stored"
        elif text.augment:
            yield name, "needs text.augment = 0"

    if c.search.precision == "bfloat16" and c.search.backend != "openvino":
        yield "search.precision", "'bfloat16' needs search.backend = 'openvino'"

    host = c.search.host
    if host not in ("127.0.0.1", "::1", "localhost") and not c.search.token:
        yield (
            "search.token",
            f"needed to serve beyond this machine (search.host={host})",
        )


def _specs(cls: Any, prefix: str, above: Spec) -> Iterator[tuple[str, Spec]]:
    for f in dataclasses.fields(cls):
        spec = f.metadata["spec"]
        local = spec.path or spec.paths
        spec = dataclasses.replace(
            spec,
            free=max(HOST if local else spec.free, above.free),
            shared=spec.shared and above.shared,
            read_by=spec.read_by or above.read_by,
        )
        if dataclasses.is_dataclass(f.type):
            yield from _specs(f.type, f"{prefix}{f.name}.", spec)
        else:
            optional = isinstance(f.type, types.UnionType)
            kind = get_args(f.type)[0] if optional else f.type
            kind = get_origin(kind) or kind
            spec = dataclasses.replace(spec, kind=kind, optional=optional)
            yield f"{prefix}{f.name}", spec


_KINDS = {int: "number", float: "number", str: "text", bool: "bool", tuple: "tuple"}
FIELDS: dict[str, Spec] = dict(_specs(Config, "", Spec()))  # {"data.root": …}


# ---- From values to a config, and back -----------------------------------------------


def config_dict(config: Config | None = None) -> ConfigDict:
    """All fields, to be set: of a wrong type or an unknown name they are an error.

    Args:
        config: gives the values; None: the published ones.
    """
    flat = flat_fields(config or Config())
    for name, spec in FIELDS.items():
        if spec.optional:  # without a value, it still has a type
            value, flat[name] = flat[name], placeholder(spec.kind)
            flat[name].set(value)
    return ConfigDict(nested(flat)).lock()


def typed(values: ConfigDict | Fields) -> Config:
    """The config with these values; a field that they lack has its default.

    Args:
        values: {"data": {"root": …, …}, …} or {"data.root": …, …}.

    Raises:
        InputError: unknown fields and values of the wrong type; names all of them.
    """
    config, wrong = config_dict(), []
    for name, value in flat_fields(values).items():
        spec = FIELDS.get(name)
        if spec is None:
            close = difflib.get_close_matches(name, FIELDS, 1, cutoff=0.85)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            wrong.append(f"no field {name!r} in the config{hint}")
        elif value is None and not spec.optional:
            wrong.append(f"config.{name}: {spec.problem(value)}")
        else:
            try:
                config.update_from_flattened_dict({name: value})
            except (TypeError, ValueError):
                wrong.append(f"config.{name}: {value!r} is no {_KINDS[spec.kind]}")
    if wrong:
        raise InputError("; ".join(wrong))
    return _tree(Config, config.to_dict())


def _tree(cls: type[T], values: Fields) -> T:
    fields: Any = dataclasses.fields(cls)  # type: ignore[arg-type]
    return cls(
        **{
            f.name: _tree(f.type, values[f.name])
            if isinstance(values[f.name], dict)
            else values[f.name]
            for f in fields
        }
    )


def with_fields(config: Config, changes: Fields) -> Config:
    """A copy with other values, {"data.root": …}, which are not checked."""
    assert changes.keys() <= FIELDS.keys(), changes.keys() - FIELDS.keys()
    return _tree(Config, nested({**flat_fields(config), **changes}))


def with_paths(config: Config, change: Callable[[str], str]) -> Config:
    """A copy in which each path of this machine is replaced by change(path).

    A URL (gs://…) and the folder of an installed package (package:NAME/…) stay.
    """

    def changed(path: str) -> str:
        fixed = "://" in path or path.startswith("package:")
        return path if fixed else change(path.strip())

    found = {}
    for name, value in flat_fields(config).items():
        if value and FIELDS[name].path:
            found[name] = changed(value)
        elif value and FIELDS[name].paths:
            found[name] = ",".join(map(changed, value.split(",")))
    return with_fields(config, found)


def flat_fields(
    config: Config | ConfigDict | Fields, prefix: str = ""
) -> dict[str, Any]:
    """{"data.root": value, …} of a config or of its JSON form."""
    if isinstance(config, Config):
        config = dataclasses.asdict(config)
    items = config.to_dict() if isinstance(config, ConfigDict) else config
    flat: dict[str, Any] = {}
    for key, value in items.items():
        if isinstance(value, dict):
            flat |= flat_fields(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def nested(flat: Fields) -> dict[str, Any]:
    """Inverse of `flat_fields`, as dicts."""
    tree: dict[str, Any] = {}
    for field, value in flat.items():
        *parents, name = field.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def problems(config: Config) -> list[str]:
    """One text for every field with an impossible value, naming it."""
    wrong = {
        name: problem
        for name, value in flat_fields(config).items()
        if (problem := FIELDS[name].problem(value))
    }
    for name, problem in _conflicts(config):
        wrong.setdefault(name, problem)
    return [f"config.{name}: {problem}" for name, problem in wrong.items()]


def check_config(config: Config, where: str = "") -> None:
    """Raises InputError that names every field with an impossible value.

    It begins with `where`: "FILE: ".
    """
    if wrong := problems(config):
        raise InputError(where + "; ".join(wrong))


# ---- What other parts ask of a config ------------------------------------------------


def encoder_config(config: Config, name: str) -> ImageConfig | TextConfig:
    """config.image or config.text, by its name."""
    return config.image if name == "image" else config.text


def vector_size(config: Config) -> int:
    """How many values an embedding of a trained model has."""
    return config.dims or config.embed_dim


def takes_regions(image: ImageConfig) -> bool:
    """Whether the image encoder takes features of regions, not pixels."""
    if image.input == "auto":
        return image.kind == "region"
    return image.input == "regions"


def keeps_aspect(image: ImageConfig) -> bool:
    """Whether the image encoder takes the patches of images of any aspect (NaFlex)."""
    return image.kind == "vit" and image.vit.max_patches is not None


def is_free(field: str, by: Free) -> bool:
    """Whether a field of a run may get another value; an unknown one may not."""
    return field in FIELDS and FIELDS[field].free >= by


def shared_fields(config: Config) -> dict[str, Any]:
    """The fields that have to be equal in all processes of a run."""
    flat = flat_fields(config)
    return {f: v for f, v in flat.items() if not is_free(f, HOST)}


def vector_fields(config: Config) -> dict[str, Any]:
    """The fields that decide, with a model's weights and vocabulary, its vectors.

    Every field counts, a new one too, except those that evaluation may change (they
    change vectors by rounding at most) and those of encoders that the model lacks. One
    with its default is left out, so that models from before a new field stay the same.
    """
    kinds = (config.image.kind, config.text.kind)

    def is_read(field: str, by: str | None) -> bool:
        # An encoder of your own may read any field.
        own = is_path(encoder_config(config, field.partition(".")[0]).kind)
        return by is None or by in kinds or own

    return {
        field: value
        for field, value in flat_fields(config).items()
        if (spec := FIELDS[field]).vectors or spec.free == NOBODY
        if is_read(field, spec.read_by) and value != spec.default
    }


def check_same_run(config: Config, path: AnyPath, by: Free = RESUME) -> None:
    """Raises InputError when `path` holds the config of another run.

    The message names every differing field with both values, except those that may be
    changed `by` a resume or an evaluation.
    """
    saved, now = flat_fields(load_config(path, trust_code=True)), flat_fields(config)
    differing = [
        f"{field} ({saved[field]!r} there, {now[field]!r} here)"
        for field in sorted(saved)
        if saved[field] != now[field] and not is_free(field, by)
    ]
    if differing:
        raise InputError(
            f"{path.parent}: holds another config's checkpoint; differing fields: "
            + ", ".join(differing)
        )


# ---- Files ---------------------------------------------------------------------------

# A shared model: what its config.json says of itself, and the files that are read. They
# may come from anybody, so no others are, and nothing of the folder is executed.
_SHARED = {"model_type": "vse_jax", "format_version": 1}
MODEL_FILE = "model.safetensors"
CUTOFF_FILE = "cutoff.json"  # of search: evaluation/cutoff.py
SHARED_FILES = (
    "config.json",
    MODEL_FILE,
    CUTOFF_FILE,
    "vocab.txt",
    "vocab.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",  # the model's card
    # Of a published SigLIP, whose weights may be several files.
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors.index.json",
)
WEIGHT_PARTS = "model-*-of-*.safetensors"


def save_config(config: Config, path: AnyPath) -> None:
    """Writes `config` as JSON, whole or not at all; without the password of a URL."""
    values = dataclasses.asdict(config)
    if config.search.url is not None:
        values["search"]["url"] = without_password(config.search.url)
    text = json.dumps(values, indent=1, sort_keys=True)
    write_atomically(path, f"{text}\n".encode())


def without_password(url: str) -> str:
    """'postgresql://ann:secret@host/db' → 'postgresql://ann@host/db', to be shown."""
    url = re.sub(r"(?<=://)([^:@/?]*):.*@", r"\1@", url)
    return re.sub(r"(?i)(?<=[?&])(ssl)?password=[^&]*&?", "", url).rstrip("?&")


def save_shared_config(config: Config, path: AnyPath) -> None:
    """As `save_config`, for a folder that others get (`--mode=push`).

    Without what is of the machine and the person that trained the model (paths, an
    access token), or says nothing about it.
    """
    fields = {f: v for f, v in flat_fields(config).items() if _is_shared(f)}
    text = json.dumps(_SHARED | nested(fields), indent=1, sort_keys=True)
    write_atomically(path, f"{text}\n".encode())


def _is_shared(field: str) -> bool:
    spec = FIELDS.get(field)
    return spec is None or (spec.shared and spec.free < HOST)


def load_config(path: AnyPath, *, trust_code: bool = False) -> Config:
    """The config that a run saved in `path`, or that came with a shared model.

    A field that was not there yet when it was written has its default. A vocabulary
    beside `path` is the model's, wherever its run once found it.

    Args:
        path: JSON file.
        trust_code: a shared model's own classes may be imported.

    Raises:
        InputError: no such file, not JSON, an unknown field or a value of the wrong
            type, or a shared model without its vocabulary, with files elsewhere or with
            classes of its own.
    """
    folder = path.parent
    try:
        saved = _with_tuples(json.loads(path.read_text(encoding="utf-8")))
        about = {name: saved.pop(name, None) for name in _SHARED}
        flat = flat_fields(saved)
    except FileNotFoundError:
        raise InputError(f"{path}: no saved config; name one with --config") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON config ({error})") from error
    own = own_vocabulary(folder, kind := flat.get("text.kind", TextConfig.kind))
    if about["model_type"] is not None:
        for name, value in _SHARED.items():
            if about[name] != value:
                raise InputError(f"{path}: {name} is {about[name]!r}, not {value!r}")
        flat = {f: v for f, v in flat.items() if _is_shared(f)}
        check_inside(folder, SHARED_FILES)
        named = {f: v for f, v in flat.items() if f in FIELDS and FIELDS[f].classes}
        check_code(named, folder, trust_code)
        if own is None:
            names = " and no ".join(vocabulary_names(kind))
            raise InputError(f"{folder}: no {names}, the vocabulary of this model")
    elif (folder / MODEL_FILE).is_file():
        # Without this, a shared model could pass for a run, whose classes are trusted.
        raise InputError(f"{path}: no model_type, which a shared model has")
    if own is not None:
        flat["text.vocab"] = str(own)
    try:
        return typed(flat)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def own_vocabulary(folder: AnyPath, kind: Any) -> AnyPath | None:
    """The copy of its vocabulary in a model's folder; `kind`: config.text.kind."""
    files = (folder / name for name in vocabulary_names(kind))
    return next((file for file in files if file.is_file()), None)


def vocabulary_names(kind: Any) -> tuple[str, ...]:
    """What that copy may be called, the first that is there."""
    other = ("tokenizer.json", "vocab.txt")
    return {"bigru": ("vocab.json",), "siglip": ("tokenizer.json",)}.get(kind, other)


def _with_tuples(value):
    """JSON has no tuples: every list of a config stands for one."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return value
