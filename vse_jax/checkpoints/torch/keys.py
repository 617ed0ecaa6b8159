"""PyTorch state-dict keys ⇄ our parameter paths: one table a model part, both ways.

A table says for each of our paths which key holds the same tensor. `{}` stands for the
number of a layer, the same on both sides. A kernel changes its axis order on the way,
every other array stays as it is.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.trees import flatten, merge

T = TypeVar("T")

# A kernel's axes in PyTorch's order → in ours, and back, by their number.
_TO_OURS = {2: (1, 0), 4: (2, 3, 1, 0)}  # [out, in]; [out, in, height, width]
_TO_PYTORCH = {2: (1, 0), 4: (3, 2, 0, 1)}


@dataclass(frozen=True)
class Table:
    """The tensors of one model part.

    keys: path → PyTorch's key. ignored: regular expressions for whole keys that are
    known and of no use here.
    """

    keys: Mapping[str, str]
    ignored: tuple[str, ...] = ()

    def __add__(self, other: "Table") -> "Table":
        if both := self.keys.keys() & other.keys.keys():
            raise ValueError(f"two keys for {', '.join(both)}")
        return Table({**self.keys, **other.keys}, self.ignored + other.ignored)

    def with_prefix(self, key: str, path: str) -> "Table":
        return Table(
            {path + p: key + k for p, k in self.keys.items()},
            tuple(re.escape(key) + pattern for pattern in self.ignored),
        )

    def key_of(self, path: str) -> str:
        """PyTorch's key of our `path`.

        PyTorch keeps parameters and statistics together, so the collection in front of
        a path does not count.

        Raises:
            KeyError: the table does not fit the model.
        """
        path = re.sub(r"^(params|batch_stats)/", "", path)
        numbers = re.findall(r"(?<=/)\d+(?=/)", path)
        return self.keys[re.sub(r"(?<=/)\d+(?=/)", "{}", path)].format(*numbers)

    def ignores(self, key: str) -> bool:
        """Whether a PyTorch key is known and of no use here."""
        return any(re.fullmatch(pattern, key) for pattern in self.ignored)

    def prefixes(self, keys: Sequence[str]) -> Counter[str]:
        """What stands before the keys that the table knows, and before how many."""
        known = (re.escape(key).replace(r"\{\}", r"\d+") for key in self.keys.values())
        pattern = re.compile("|".join(known))
        found: Counter[str] = Counter()
        for key in keys:
            parts = key.split(".")
            for start in range(len(parts)):
                if pattern.fullmatch(".".join(parts[start:])):
                    found["".join(f"{part}." for part in parts[:start])] += 1
        return found


def _linear(key: str, path: str) -> Table:
    """A dense layer or a convolution; not every one has a bias."""
    return Table({f"{path}/kernel": f"{key}.weight", f"{path}/bias": f"{key}.bias"})


def _norm(key: str, path: str) -> Table:
    return Table({f"{path}/scale": f"{key}.weight", f"{path}/bias": f"{key}.bias"})


def _batch_norm(key: str, path: str) -> Table:
    mean, var = f"{key}.running_mean", f"{key}.running_var"
    return _norm(key, path) + Table({f"{path}/mean": mean, f"{path}/var": var})


def _embedding(key: str, path: str) -> Table:
    return Table({f"{path}/embedding": f"{key}.weight"})


def _gru(key: str, path: str, layer: str) -> Table:
    """One layer of torch.nn.GRU, both directions."""
    keys = {}
    for direction, suffix in (("forward", ""), ("backward", "_reverse")):
        for source, gates in (("input", "ih"), ("hidden", "hh")):
            end, start = f"{gates}_l{layer}{suffix}", f"{path}/{direction}/{source}"
            keys[f"{start}_kernel"] = f"{key}.weight_{end}"
            keys[f"{start}_bias"] = f"{key}.bias_{end}"
    return Table(keys)


def _resnet(parts: Mapping[str, str]) -> Table:
    """A ResNet; `parts`: our names → those in the file."""
    block = _linear("downsample.0", "downsample/conv")
    block += _batch_norm("downsample.1", "downsample/bn")
    for n in (1, 2, 3):  # the third is not in basic blocks
        block += _linear(f"conv{n}", f"conv{n}") + _batch_norm(f"bn{n}", f"bn{n}")
    table = _linear(parts["conv1"], "conv1") + _batch_norm(parts["bn1"], "bn1")
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        table += block.with_prefix(f"{parts[stage]}.{{}}.", f"{stage}/{{}}/")
    return table + Table({}, (r".*\.num_batches_tracked",))  # nothing depends on them


GPO = _gru("gru", "gru", "0") + _linear("linear", "linear")

# The official code keeps the CNN as nn.Sequential: numbers instead of names.
OFFICIAL_CNN = {
    "conv1": "base.0",
    "bn1": "base.1",
    "layer1": "base.4",
    "layer2": "base.5",
    "layer3": "base.6",
    "layer4": "top.0",
}
BACKBONE_OFFICIAL = _resnet(OFFICIAL_CNN)
_CLASSIFIER = r"fc\.(weight|bias)"  # of ImageNet
BACKBONE_TORCHVISION = _resnet({name: name for name in OFFICIAL_CNN})
BACKBONE_TORCHVISION += Table({}, (_CLASSIFIER,))
BACKBONES = (BACKBONE_OFFICIAL, BACKBONE_TORCHVISION)

REGION_ENCODER = (
    _linear("fc", "fc")
    + _linear("mlp.layers.0", "mlp/hidden")
    + _batch_norm("mlp.bns.0", "mlp/bn")
    + _linear("mlp.layers.1", "mlp/output")
    + GPO.with_prefix("gpool.", "gpool/")
    # mlp.bns.1 is in every checkpoint and used by none.
    + Table({}, (r".*\.num_batches_tracked", r"mlp\.bns\.1\.\w+"))
)


def _grid_encoder(backbone: Table) -> Table:
    return (
        backbone
        + _linear("image_encoder.fc", "fc")
        + GPO.with_prefix("image_encoder.gpool.", "gpool/")
        + Table({}, (rf"backbone\.resnet\.{_CLASSIFIER}",))
    )


GRID_ENCODER = _grid_encoder(BACKBONE_OFFICIAL.with_prefix("backbone.", "backbone/"))
# The program's files hold the CNN twice; this is the encoder by the second names.
GRID_ENCODER_TORCHVISION = _grid_encoder(
    BACKBONE_TORCHVISION.with_prefix("backbone.resnet.", "backbone/")
)

_BERT_LAYER = (
    _linear("attention.self.query", "attention/query")
    + _linear("attention.self.key", "attention/key")
    + _linear("attention.self.value", "attention/value")
    + _linear("attention.output.dense", "attention/output")
    + _norm("attention.output.LayerNorm", "attention_norm")
    + _linear("intermediate.dense", "intermediate")
    + _linear("output.dense", "output")
    + _norm("output.LayerNorm", "output_norm")
)
BERT = (
    _embedding("embeddings.word_embeddings", "embeddings/word")
    + _embedding("embeddings.position_embeddings", "embeddings/position")
    + _embedding("embeddings.token_type_embeddings", "embeddings/token_type")
    + _norm("embeddings.LayerNorm", "embeddings/norm")
    + _BERT_LAYER.with_prefix("encoder.layer.{}.", "layers/{}/")
    # The pooler is in every checkpoint; retrieval has no use for it.
    + Table({}, (r"embeddings\.position_ids", r"pooler\.dense\.(weight|bias)"))
)
BERT_ENCODER = (
    BERT.with_prefix("bert.", "bert/")
    + _linear("linear", "linear")
    + GPO.with_prefix("gpool.", "gpool/")
)
BIGRU_ENCODER = (
    _embedding("embed", "embed")
    + _gru("rnn", "rnn/{}", layer="{}")
    + GPO.with_prefix("gpool.", "gpool/")
)

_SIGLIP_LAYERS = (
    _norm("layer_norm1", "attention_norm")
    + _linear("self_attn.q_proj", "attention/query")
    + _linear("self_attn.k_proj", "attention/key")
    + _linear("self_attn.v_proj", "attention/value")
    + _linear("self_attn.out_proj", "attention/output")
    + _norm("layer_norm2", "mlp_norm")
    + _linear("mlp.fc1", "mlp/intermediate")
    + _linear("mlp.fc2", "mlp/output")
).with_prefix("encoder.layers.{}.", "layers/{}/")
# The head of SigLIP's ViT; PyTorch keeps its three projections as one (in_proj_…),
# which checkpoints/siglip.py takes apart.
MAP_HEAD = (
    Table({"probe": "probe"})
    + _linear("attention.q_proj", "attention/query")
    + _linear("attention.k_proj", "attention/key")
    + _linear("attention.v_proj", "attention/value")
    + _linear("attention.out_proj", "attention/output")
    + _norm("layernorm", "norm")
    + _linear("mlp.fc1", "mlp/intermediate")
    + _linear("mlp.fc2", "mlp/output")
)
SIGLIP_VIT = (
    _linear("embeddings.patch_embedding", "patches")
    + Table({"positions": "embeddings.position_embedding.weight"})
    + _SIGLIP_LAYERS
    + _norm("post_layernorm", "norm")
    + Table({}, (r"embeddings\.position_ids",))
)
SIGLIP_TEXT = (
    _embedding("embeddings.token_embedding", "word")
    + _embedding("embeddings.position_embedding", "position")
    + _SIGLIP_LAYERS
    + _norm("final_layer_norm", "norm")
    + Table({}, (r"embeddings\.position_ids",))
)
# Both encoders as SigLIP was published, with its temperature and bias.
SIGLIP = (
    SIGLIP_VIT.with_prefix("vision_model.", "image/vit/")
    + MAP_HEAD.with_prefix("vision_model.head.", "image/gpool/")
    + SIGLIP_TEXT.with_prefix("text_model.", "text/siglip/")
    + _linear("text_model.head", "text/linear")
    + Table({"loss/log_scale": "logit_scale", "loss/bias": "logit_bias"})
)

# What wrappers put into keys, at any depth: DataParallel, torch.compile, FSDP and
# activation checkpointing. No model has such names itself.
_WRAPPERS = "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"
_LISTED = 25  # problems; of more, the first of a kind and their number


def unwrapped(
    tensors: Mapping[str, T], tables: Sequence[Table], source: str
) -> tuple[Table, str, dict[str, T]]:
    """(table, prefix, tensors) of the model in a state dict that one of `tables` knows.

    The table that knows most of the keys is taken. Names of wrappers are taken out of
    them, and so is the prefix of the model that this one is a part of: `model.`,
    `bert.` or any other, found as what stands before most of the keys that a table
    knows. What has another prefix is left out, and the log says so. The prefix that is
    returned is all that was taken off the front of the keys, wrappers included.

    Raises:
        InputError: two such models, or two tensors of one name.
    """
    stored: dict[str, str] = {}  # key without wrappers → as stored
    for key in tensors:
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in stored:
            raise InputError(
                f"{source}: {stored[name]} and {key} are one tensor's names"
            )
        stored[name] = key

    # By keys known; of equals, the shortest prefix, and the first table.
    counts = [
        (count, -len(start), -number, start)
        for number, table in enumerate(tables)
        for start, count in table.prefixes(list(stored)).items()
    ]
    most, _, number, prefix = max(counts, default=(0, 0, 0, ""))
    rivals = [start for n, _, i, start in counts if (n, i) == (most, number)]
    if len(rivals) > 1 and prefix:
        raise InputError(
            f"{source}: holds {len(rivals)} models of this kind, under {rivals[0]!r} "
            f"and {rivals[1]!r}; keep one"
        )
    kept = {n: key for n, key in stored.items() if n.startswith(prefix)}
    if other := [key for name, key in stored.items() if name not in kept]:
        logging.info(
            "%s: left out: %d tensors that are not under %r (%s, …)",
            source,
            len(other),
            prefix,
            other[0],
        )
    found, fronts = {}, set()
    for name, key in kept.items():
        name = name.removeprefix(prefix)
        found[name] = tensors[key]
        fronts.add(key.removesuffix(name) if key.endswith(name) else "")
    return tables[-number], fronts.pop() if len(fronts) == 1 else "", found


def listed(*kinds: list[str]) -> str:
    """Problems of several kinds on one line; if they are many, some of each kind."""
    many = sum(map(len, kinds)) > _LISTED
    told: list[str] = []
    for problems in kinds:
        if many and len(problems) > 3:
            told.append(f"{problems[0]} and {len(problems) - 1} more")
        else:
            told += problems
    return "; ".join(told)


def from_torch(
    tensors: Mapping[str, np.ndarray], table: Table, template: dict, source: str
) -> dict:
    """The PyTorch tensors as a tree like `template`, in its types.

    Args:
        tensors: state dict; each of its tensors must be used or ignored by the table.
        table: of this model part.
        template: nested dict of (abstract) arrays.
        source: the file's name, for the errors.

    Raises:
        InputError: names the missing, unexpected and misshapen tensors and those that
            hold NaN or infinity, or the first and the number of each kind where they
            are many.
    """
    absent, misshapen, broken = [], [], []
    used, arrays = set(), {}
    for path, leaf in flatten(template).items():
        key = table.key_of(path)
        used.add(key)
        if key not in tensors:
            absent.append(f"{key} is missing")
            continue
        tensor, shape = tensors[key], list(leaf.shape)
        is_kernel = path.endswith("kernel")
        if is_kernel:
            shape = [shape[axis] for axis in _TO_PYTORCH[len(shape)]]
        if list(tensor.shape) != shape:
            found = list(tensor.shape)
            misshapen.append(f"{key} has shape {found}, expected {shape}")
            continue
        if is_kernel:
            tensor = tensor.transpose(_TO_OURS[tensor.ndim])
        # A view if possible: big models should not be in memory twice.
        with np.errstate(over="ignore"):
            arrays[path] = tensor.astype(leaf.dtype, copy=False)
        if not np.isfinite(arrays[path]).all():
            broken.append(f"NaN or infinity in {key}")

    extra = [key for key in tensors if key not in used and not table.ignores(key)]
    if absent or misshapen or broken or extra:
        unexpected = [f"{key} is unexpected" for key in extra]
        problems = listed(absent, misshapen, broken, unexpected)
        common = {key.partition(".")[0] for key in extra}
        if len(absent) == len(used) > 1 and len(common) == 1:
            problems = f"all {len(extra)} keys begin with '{common.pop()}.'; {problems}"
        raise InputError(f"{source}: {problems}")
    return merge(template, arrays)


def to_torch(tree: dict, table: Table) -> dict[str, np.ndarray]:
    """Our parameters and statistics as a PyTorch state dict.

    The inverse of `from_torch`, without the ignored keys.
    """
    tensors = {}
    for path, leaf in flatten(tree).items():
        array = np.asarray(leaf)
        if path.endswith("kernel"):
            array = array.transpose(_TO_PYTORCH[array.ndim])
        tensors[table.key_of(path)] = array
    return tensors
