"""Every field once, with its published value and unit; the other configs only override.

The values of `base()` are those of the published grid + BERT recipe on COCO (VSE∞,
CVPR 2021). A field that is None by default is a typed placeholder. A path may begin
with `~`; a relative one starts at the folder where the program is started.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vse_jax.base.errors import InputError


def base(variant: str = "") -> ConfigDict:
    """Returns the full, locked config: an unknown field or a wrong type is an error.

    Args:
        variant: '' as published, or 'fast': the towers in bfloat16. What stands after
            the colon of --config=configs/coco_grid.py:fast.
    """
    c = ConfigDict()
    c.task = "retrieval"  # retrieval | gpo_synthetic (studies/)
    c.seed = 0  # ≥ 0
    c.batch_size = 128  # pairs per step over all devices and hosts
    c.num_epochs = 25
    c.max_steps = placeholder(int)  # stop after this many steps; None: by epochs
    c.log_every = 10  # steps between lines of metrics.jsonl
    c.mesh = ConfigDict({"data": -1, "fsdp": 1})  # devices per axis; -1: all the rest
    c.microbatches = 1  # parts of the batch that the towers see one after the other
    c.remat = False  # keep blocks' inputs only and recompute the rest: less memory
    c.compute_dtype = "float32"  # of the towers; parameters and loss stay float32
    c.matmul_precision = "auto"  # by device; or 'highest' float32, 'high' TF32/bf16x3,
    # 'default' the device's own (docs/accelerators.md)
    c.embed_dim = 1024
    c.debug = False  # training ends where data moves to or from a device unasked
    c.profile = placeholder(str)  # FIRST:LAST, steps from 1: their trace to W/profile/

    c.data = _data()
    c.image = _image()
    c.text = _text()
    c.loss = _loss()
    c.optimizer = _optimizer()
    c.checkpoint = _checkpoint()
    c.eval = _eval()
    c.search = _search()
    c.hub = _hub()
    if variant not in ("", "fast"):
        raise InputError(f"--config=…:{variant}: no such variant; there is 'fast'")
    if variant == "fast":
        c.compute_dtype = "bfloat16"
    return c.lock()


def pick(variant: str, choices: tuple[str, ...], default: str) -> tuple[str, str]:
    """(the one of `choices` that a recipe's VARIANT[,fast] names, what is left)."""
    words = variant.split(",")
    named = [word for word in words if word in choices]
    rest = ",".join(word for word in words if word not in choices)
    if len(named) > 1 or rest not in ("", "fast"):
        listed = ", ".join(choices)
        raise InputError(f"--config=…:{variant}: one of {listed}, with ',fast' or not")
    return (named or [default])[0], rest


def _data() -> ConfigDict:
    """What is read, and how."""
    c = ConfigDict()
    c.name = "coco"  # coco | f30k | openmoji | any: decides the image folder
    c.root = "data/coco"  # the folder that holds precomp/, or its URL (gs://…)
    c.format = "folder"  # folder (the published layout) | tfds (records)
    c.export_to = placeholder(str)  # folder for --mode=export; None: data.root
    c.cache = placeholder(str)  # keeps a URL's shards; None: ~/.cache/vse_jax/data
    c.source = placeholder(str)  # --mode=prepare: CSV file or folder of pictures
    c.render_size = 128  # px; --mode=prepare of the OpenMoji pictures
    c.train_split = "train"
    c.dev_split = "dev"
    c.dev_captions = placeholder(int)  # validate on the first ones; None: on all
    c.equal_captions = True  # all splits have the same number of captions per image;
    # False: they may differ, each within itself still has one number
    c.distinct_images = False  # no picture twice in a batch (five passes an epoch)
    c.on_bad_image = "error"  # error | skip (another pair of the split stands in)
    c.workers = "auto"  # threads | processes | auto (the faster: threads)
    c.num_workers = 0  # 0: one per core, at most 16
    c.buffer_mb = 4096  # of batches that a host makes ahead, at most (but one batch)
    c.max_tokens = 128  # longer captions are cut, [SEP] kept
    # Padded lengths, each at most 1.5 × the one before: none is much too long.
    c.token_buckets = (3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    return c


def _image() -> ConfigDict:
    """The image tower, and what it sees."""
    c = ConfigDict()
    c.kind = "grid"  # grid (CNN cells) | region (precomputed features) | vit (SigLIP's)
    # | module:Class
    c.input = "auto"  # pixels | regions (features) | auto: regions for kind 'region'
    c.pool = "gpo"  # gpo | avg | max | kmax | gem | fspool | seq2seq | selfattn |
    # cls (the set's first vector) | last | map (SigLIP's attention head; of a ViT the
    # published one, without fc) | module:Class
    c.pool_k = 5  # kmax: how many values of each dimension are averaged
    c.normalise = True  # False: the original's --no_imgnorm
    c.weights = placeholder(str)  # folder: a converted CNN, or SigLIP's (vit)
    c.size = 512  # px, both sides; 256 × input_scale_factor
    c.pixels = "detector"  # detector (BGR − means) | imagenet (RGB standardised) |
    # siglip (RGB, −1 … 1)
    c.resample = "plain"  # resizing: plain (bilinear, as in the original) | bilinear |
    # bicubic (these two with the filter as wide as a shrunk pixel)
    c.crop_min = 0.6  # training crop: ratio ~ U(crop_min, 1) of both sides
    c.flip = 0.5  # probability of the training mirror
    c.drop = 0.2  # size augmentation: share of the set that may be dropped
    c.feature_dim = 2048  # region features
    c.max_regions = 36  # static set size of region features
    c.backbone = ConfigDict()
    c.backbone.block = "v1"  # v1 (stride on first 1×1) | torchvision | basic
    c.backbone.stem = "conv7"  # conv7 (7×7/2 + max pool) | patch (patch × patch)
    c.backbone.patch = 4  # px; stem 'patch' only
    c.backbone.layers = (3, 4, 23, 3)  # blocks per stage
    c.backbone.width = 64  # channels of the stem and of the first stage
    c.backbone.groups = 1  # ResNeXt-101 32×8d: 32
    c.backbone.group_width = 64  # channels per group at width 64; ResNeXt: 8
    c.backbone.batch_norm = "frozen"  # frozen (running statistics) | train
    c.vit = ConfigDict()  # SigLIP2 B/16; So400m: hidden 1152, layers 27, ffn 4304
    c.vit.patch = 16  # px; what does not divide `size` is left out at the edges
    c.vit.hidden = 768
    c.vit.layers = 12
    c.vit.heads = 12
    c.vit.ffn = 3072
    return c


def _text() -> ConfigDict:
    """The text tower, and what it reads."""
    c = ConfigDict()
    c.kind = "bert"  # bert | bigru (its fields: layers, word_dim, vocab_threshold) |
    # siglip | module:Class
    c.pool = "gpo"  # the same; cls: BERT's [CLS]; last: SigLIP's, which reads padding
    c.pool_k = 5  # as image.pool_k
    c.normalise = True  # False: the original's --no_txtnorm
    c.weights = placeholder(str)  # Hugging Face folder, or package:NAME/FOLDER
    c.vocab = placeholder(str)  # file; None: weights folder, else <root>/../vocab
    c.vocab_size = 30522  # the vocabulary's; 0 (bigru): as many as it holds
    c.vocab_threshold = 4  # --mode=build_vocab: times a word has to occur
    c.word_dim = 300  # size of a word's vector, bigru
    c.hidden = 768
    c.layers = 12  # bigru: 1 or 2, or 0 with pool = 'seq2seq' (VSE++'s GRU)
    c.heads = 12
    c.ffn = 3072
    c.max_positions = 512  # SigLIP: 64
    c.pad_id = 0  # siglip: the token that fills captions up; no other tower reads it
    c.dropout = 0.1  # inside BERT, as in its pretraining
    c.augment = 0.2  # probability that a training word is masked/replaced/removed
    c.cache_features = False  # frozen BERT: its token features are computed once
    return c


def _loss() -> ConfigDict:
    """What is descended: the paper's is the triplet loss (Eq. 5)."""
    c = ConfigDict()
    c.name = "triplet"  # triplet | infonce (CLIP's) | sigmoid (SigLIP's) | module:Class
    c.margin = 0.2  # triplet
    c.vse_mean_warmup_epochs = 1  # triplet: all negatives first, then only the hardest
    c.mask_same_image = False  # a picture's other captions are no negatives of it
    c.ramp_epoch = 1  # loss × (step in epoch / steps) in this epoch; -1: never
    return c


def _optimizer() -> ConfigDict:
    """AdamW or SGD, and which parameters train when."""
    c = ConfigDict()
    c.name = "adamw"  # adamw (β 0.9/0.999, ε 1e-8) | sgd (momentum 0.9)
    c.learning_rate = 5e-4
    c.lr_update = 15  # epoch at whose start the rate drops to a tenth
    c.weight_decay = 1e-4  # decoupled for adamw
    c.weight_decay_on = ".*"  # regex of the parameters that decay
    c.nesterov = False  # sgd only
    c.clip = 2.0  # global gradient norm over the open parameters; 0: no limit
    c.rules = grid_rules()
    return c


def _checkpoint() -> ConfigDict:
    """When a run is saved."""
    c = ConfigDict()
    c.every_steps = placeholder(int)  # None: at the end of each epoch only
    return c


def _eval() -> ConfigDict:
    """What is evaluated, and how."""
    c = ConfigDict()
    c.split = "test"
    c.batch_size = placeholder(int)  # None: by the pictures' size and the devices
    c.ensemble = placeholder(str)  # workdirs, comma-separated
    c.cxc = False  # also report CxC, from <data.root>/cxc_annots/
    c.eccv = False  # also report ECCV Caption (COCO's 5K test images)
    c.plausible_matches = placeholder(str)  # folder with pm_*.json: ECCV's PMRP
    return c


def _search() -> ConfigDict:
    """A person's own pictures: modes index, search, serve and explain."""
    c = ConfigDict()
    c.pictures = placeholder(str)  # --mode=index: the folder to index
    c.index = placeholder(str)  # where the index is; None: W/index
    # Patterns of what --mode=index leaves out, as in .gitignore: ('private/', '*.gif').
    # None: as the last time; (): nothing but trash, thumbnails and what is hidden.
    c.exclude = placeholder(tuple)
    c.forget = False  # --mode=index: more than a tenth of the pictures may leave
    c.query = placeholder(str)  # a sentence, or parts: 'a red car' - 'people'
    c.like = placeholder(str)  # a picture file: more of this kind
    c.top = 10  # results
    c.min_score = placeholder(float)  # leave out what scores less, -1 … 1
    c.after = placeholder(str)  # taken on this day (YYYY-MM-DD) or later
    c.before = placeholder(str)  # taken on this day or earlier
    c.camera = placeholder(str)  # as EXIF names it
    c.folder = placeholder(str)  # below search.pictures
    c.format = "table"  # table | json | paths
    c.engine = "exact"  # exact | approximate (a cache beside the index) | qdrant
    c.url = placeholder(str)  # engine 'qdrant': its server
    # Of a picture; larger ones are not decoded. All that are decoded at a time take at
    # most 5 bytes of memory for each of it: 1 GB.
    c.max_pixels = 200_000_000
    c.host = "127.0.0.1"  # --mode=serve: another one needs search.token
    c.port = 8765
    c.hosts = ()  # more names of the server: ('photos.example.com', '*.lan')
    c.open = False  # the page in a browser, when the server listens
    c.token = placeholder(str)  # what the page and the API then ask for
    c.max_upload_mb = 20
    c.queue = 64  # requests that wait for the model; more are refused (429)
    c.timeout_s = 10.0  # of a request
    c.log_queries = False
    return c


def _hub() -> ConfigDict:
    """What --mode=push says on the Hugging Face Hub."""
    c = ConfigDict()
    c.license = placeholder(str)  # of the weights, as the Hub calls it: cc-by-4.0, …
    c.private = False  # who may see a repository that it makes
    return c


def grid_rules(embedding_warmup=1, backbone_warmup=0, backbone=0.01, bert=0.1):
    """Parameter groups of grid models: (regex, learning-rate factor, opening epoch).

    The first rule that matches a parameter's path decides; every parameter must match.
    A group gets no update at all before its opening epoch; epoch -1 means never. The
    CNN opens from the top: layer4, layer3, layer2, then the rest with the stem, each
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


def region_rules(bert=0.1):
    """Parameter groups of region models (see `grid_rules`)."""
    return (("^text/bert/", bert, 0), (".*", 1.0, 0))
