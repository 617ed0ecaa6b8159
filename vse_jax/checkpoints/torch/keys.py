"""PyTorch state-dict keys ⇄ our parameter paths, as tables.

A table is a list of rules; a rule names one family of tensors on both sides, with
`{i}`-style fields for the layer numbers they share. The same table serves both ways.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from absl import logging

from vse_jax.base.errors import InputError

T = TypeVar("T")

# Axis orders that turn a PyTorch tensor into ours.
_SAME = None
_DENSE = (1, 0)  # [out, in] → [in, out]
_CONV = (2, 3, 1, 0)  # [out, in, height, width] → [height, width, in, out]


class Rule(NamedTuple):
    """`key` and `path` name the same tensor; `axes` turns PyTorch's order into ours."""

    key: str
    path: str
    axes: tuple[int, ...] | None = _SAME

    def key_for(self, path: str) -> str | None:
        """Returns the PyTorch key of our `path`, or None if the rule is not for it."""
        pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(self.path))
        match = re.fullmatch(pattern, path)
        return match and self.key.format(**match.groupdict())

    def from_torch(self, tensor: np.ndarray) -> np.ndarray:
        """Returns the tensor in our axis order."""
        return tensor if self.axes is None else np.transpose(tensor, self.axes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns the array in PyTorch's axis order."""
        return (
            array if self.axes is None else np.transpose(array, np.argsort(self.axes))
        )


@dataclass(frozen=True)
class Table:
    """The rules of one model part, and the keys that it knows but has no use for."""

    rules: tuple[Rule, ...]
    dropped: tuple[str, ...] = ()  # regular expressions, matched against whole keys

    def __add__(self, other: "Table") -> "Table":
        return Table(self.rules + other.rules, self.dropped + other.dropped)

    def under(self, key: str, path: str) -> "Table":
        """Returns the table with a prefix before every key and path."""
        rules = (Rule(key + r.key, path + r.path, r.axes) for r in self.rules)
        return Table(tuple(rules), tuple(re.escape(key) + d for d in self.dropped))

    def rule_for(self, path: str) -> tuple[Rule, str]:
        """Returns the one rule for our `path`, and the PyTorch key it gives.

        PyTorch keeps parameters and statistics together, so the collection in front of
        a path does not count.

        Raises:
            KeyError: no rule or several: the table does not fit the model.
        """
        path = re.sub(r"^(params|batch_stats)/", "", path)
        found = [(rule, key) for rule in self.rules if (key := rule.key_for(path))]
        if len(found) != 1:
            raise KeyError(f"{len(found)} conversion rules for {path}")
        return found[0]

    def knows(self) -> re.Pattern[str]:
        """Matches the PyTorch keys that the rules use."""
        keys = (re.escape(rule.key) for rule in self.rules)
        return re.compile("|".join(re.sub(r"\\\{\w\\\}", r"\\d+", key) for key in keys))

    def drops(self, key: str) -> bool:
        """True for a PyTorch key that is known and has no use here."""
        return any(re.fullmatch(pattern, key) for pattern in self.dropped)


def _dense(key, path, bias=True):
    rules = [Rule(f"{key}.weight", f"{path}/kernel", _DENSE)]
    if bias:
        rules.append(Rule(f"{key}.bias", f"{path}/bias"))
    return Table(tuple(rules))


def _norm(key, path):
    names = (("weight", "scale"), ("bias", "bias"))
    return Table(tuple(Rule(f"{key}.{k}", f"{path}/{p}") for k, p in names))


def _batch_norm(key, path):
    names = (("running_mean", "mean"), ("running_var", "var"))
    statistics = tuple(Rule(f"{key}.{k}", f"{path}/{p}") for k, p in names)
    return _norm(key, path) + Table(statistics)


def _conv(key, path):
    return Table((Rule(f"{key}.weight", f"{path}/kernel", _CONV),))


def _embedding(key, path):
    return Table((Rule(f"{key}.weight", f"{path}/embedding"),))


def _gru(key, path, layer="0"):
    """One layer of torch.nn.GRU, both directions; `layer` may be a field."""
    rules = []
    for direction, suffix in (("forward", ""), ("backward", "_reverse")):
        for source, gates in (("input", "ih"), ("hidden", "hh")):
            end = f"{gates}_l{layer}{suffix}"
            start = f"{path}/{direction}/{source}"
            rules.append(Rule(f"{key}.weight_{end}", f"{start}_kernel", _DENSE))
            rules.append(Rule(f"{key}.bias_{end}", f"{start}_bias"))
    return Table(tuple(rules))


GPO = _gru("gru", "gru") + _dense("linear", "linear", bias=False)

_COUNTERS = Table((), (r".*\.num_batches_tracked",))  # nothing depends on them


# A residual block of either kind; basic blocks have no third convolution.
_BLOCK = (
    _conv("conv1", "conv1")
    + _batch_norm("bn1", "bn1")
    + _conv("conv2", "conv2")
    + _batch_norm("bn2", "bn2")
    + _conv("conv3", "conv3")
    + _batch_norm("bn3", "bn3")
    + _conv("downsample.0", "downsample/conv")
    + _batch_norm("downsample.1", "downsample/bn")
)


def _stage(key, path):
    return _BLOCK.under(f"{key}.{{i}}.", f"{path}/{{i}}/")


BACKBONE_TORCHVISION = (
    _conv("conv1", "conv1")
    + _batch_norm("bn1", "bn1")
    + _stage("layer1", "layer1")
    + _stage("layer2", "layer2")
    + _stage("layer3", "layer3")
    + _stage("layer4", "layer4")
    + _COUNTERS
    + Table((), (r"fc\.(weight|bias)",))  # the ImageNet classifier
)

# The official code keeps the CNN as nn.Sequential: numbers instead of names.
BACKBONE_OFFICIAL = (
    _conv("base.0", "conv1")
    + _batch_norm("base.1", "bn1")
    + _stage("base.4", "layer1")
    + _stage("base.5", "layer2")
    + _stage("base.6", "layer3")
    + _stage("top.0", "layer4")
    + _COUNTERS
)

BACKBONES = (BACKBONE_OFFICIAL, BACKBONE_TORCHVISION)

REGION_TOWER = (
    _dense("fc", "fc")
    + _dense("mlp.layers.0", "mlp/hidden")
    + _batch_norm("mlp.bns.0", "mlp/bn")
    + _dense("mlp.layers.1", "mlp/output")
    + GPO.under("gpool.", "gpool/")
    + _COUNTERS
    + Table((), (r"mlp\.bns\.1\.\w+",))  # in every checkpoint, used by none
)

GRID_TOWER = (
    BACKBONE_OFFICIAL.under("backbone.", "backbone/")
    + _dense("image_encoder.fc", "fc")
    + GPO.under("image_encoder.gpool.", "gpool/")
    + Table((), (r"backbone\.resnet\.fc\.(weight|bias)",))  # the ImageNet classifier
)


_BERT_LAYER = (
    _dense("attention.self.query", "attention/query")
    + _dense("attention.self.key", "attention/key")
    + _dense("attention.self.value", "attention/value")
    + _dense("attention.output.dense", "attention/output")
    + _norm("attention.output.LayerNorm", "attention_norm")
    + _dense("intermediate.dense", "intermediate")
    + _dense("output.dense", "output")
    + _norm("output.LayerNorm", "output_norm")
)

# The pooler is in every checkpoint; retrieval has no use for it.
BERT = (
    _embedding("embeddings.word_embeddings", "embeddings/word")
    + _embedding("embeddings.position_embeddings", "embeddings/position")
    + _embedding("embeddings.token_type_embeddings", "embeddings/token_type")
    + _norm("embeddings.LayerNorm", "embeddings/norm")
    + _BERT_LAYER.under("encoder.layer.{i}.", "layers/{i}/")
    + Table((), (r"embeddings\.position_ids", r"pooler\.dense\.(weight|bias)"))
)

BERT_TOWER = (
    BERT.under("bert.", "bert/")
    + _dense("linear", "linear")
    + GPO.under("gpool.", "gpool/")
)

BIGRU_TOWER = (
    _embedding("embed", "embed")
    + _gru("rnn", "rnn/{i}", layer="{i}")
    + GPO.under("gpool.", "gpool/")
)


_SIGLIP_LAYER = (
    _norm("layer_norm1", "attention_norm")
    + _dense("self_attn.q_proj", "attention/query")
    + _dense("self_attn.k_proj", "attention/key")
    + _dense("self_attn.v_proj", "attention/value")
    + _dense("self_attn.out_proj", "attention/output")
    + _norm("layer_norm2", "mlp_norm")
    + _dense("mlp.fc1", "mlp/intermediate")
    + _dense("mlp.fc2", "mlp/output")
).under("encoder.layers.{i}.", "layers/{i}/")

# The head of SigLIP's ViT; PyTorch keeps its three projections as one (in_proj_…),
# which weights/siglip.py takes apart.
MAP_HEAD = (
    Table((Rule("probe", "probe"),))
    + _dense("attention.q_proj", "attention/query")
    + _dense("attention.k_proj", "attention/key")
    + _dense("attention.v_proj", "attention/value")
    + _dense("attention.out_proj", "attention/output")
    + _norm("layernorm", "norm")
    + _dense("mlp.fc1", "mlp/intermediate")
    + _dense("mlp.fc2", "mlp/output")
)

SIGLIP_VIT = (
    _conv("embeddings.patch_embedding", "patches")
    + Table(
        (
            Rule("embeddings.patch_embedding.bias", "patches/bias"),
            Rule("embeddings.position_embedding.weight", "positions"),
        )
    )
    + _SIGLIP_LAYER
    + _norm("post_layernorm", "norm")
    + Table((), (r"embeddings\.position_ids",))
)

SIGLIP_TEXT = (
    _embedding("embeddings.token_embedding", "word")
    + _embedding("embeddings.position_embedding", "position")
    + _SIGLIP_LAYER
    + _norm("final_layer_norm", "norm")
    + Table((), (r"embeddings\.position_ids",))
)

# Both towers as SigLIP was published, with its temperature and bias.
SIGLIP = (
    SIGLIP_VIT.under("vision_model.", "image/vit/")
    + MAP_HEAD.under("vision_model.head.", "image/gpool/")
    + SIGLIP_TEXT.under("text_model.", "text/siglip/")
    + _dense("text_model.head", "text/linear")
    + Table((Rule("logit_scale", "loss/log_scale"), Rule("logit_bias", "loss/bias")))
)


# What wrappers put into keys, at any depth: DataParallel, torch.compile, FSDP and
# activation checkpointing. No model has such names itself.
_WRAPPERS = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}
_LISTED = 25  # problems; of more, the first of a kind and their number


def unwrapped(
    tensors: Mapping[str, T], tables: Sequence[Table], source: str
) -> tuple[Table, str, dict[str, T]]:
    """(table, prefix, tensors) of the model in a state dict that one of tables knows.

    Names of wrappers are taken out of the keys, and so is the prefix of the model that
    this one is a part of: `model.`, `bert.` or any other, found as what stands before
    most of the keys that a table knows. What has another prefix is left out, and the
    log says so.

    Args:
        tensors: state dict.
        tables: of models; the one that knows most of the keys is taken.
        source: the file's name, for the errors.

    Returns:
        prefix: all that was taken off the front of the keys, wrappers included.

    Raises:
        InputError: two such models, or two tensors of one name.
    """
    keys: dict[str, str] = {}  # without wrappers: as stored
    for key in tensors:
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in keys:
            raise InputError(f"{source}: {keys[name]} and {key} are one tensor's names")
        keys[name] = key
    best = (0, 0, tables[0], "", Counter[str]())
    for candidate in tables:
        found = _prefixes(keys, candidate)
        for name, count in found.items():
            best = max(
                best, (count, -len(name), candidate, name, found), key=lambda b: b[:2]
            )
    _, _, table, prefix, found = best
    equal = [name for name in found if found[name] == found[prefix]]
    if len(equal) > 1 and prefix:
        raise InputError(
            f"{source}: holds {len(equal)} models of this kind, under {equal[0]!r} and "
            f"{equal[1]!r}; keep one"
        )
    if other := [key for name, key in keys.items() if not name.startswith(prefix)]:
        logging.info(
            "%s: left out: %d tensors that are not under %r (%s, …)",
            source,
            len(other),
            prefix,
            other[0],
        )
    kept = {
        name.removeprefix(prefix): key
        for name, key in keys.items()
        if name.startswith(prefix)
    }
    fronts = {
        key.removesuffix(name) if key.endswith(name) else ""
        for name, key in kept.items()
    }
    front = fronts.pop() if len(fronts) == 1 else ""
    return table, front, {name: tensors[key] for name, key in kept.items()}


def _prefixes(keys: Iterable[str], table: Table) -> Counter[str]:
    """What stands before keys that a table knows, and before how many."""
    known = table.knows()
    found: Counter[str] = Counter()
    for key in keys:
        parts = key.split(".")
        for start in range(len(parts)):
            if known.fullmatch(".".join(parts[start:])):
                found["".join(f"{part}." for part in parts[:start])] += 1
    return found


def listed(*kinds: list[str]) -> str:
    """Problems of several kinds on one line; where they are many, some of each kind."""
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
    """Returns the PyTorch tensors as a tree like `template`, in its types.

    Args:
        tensors: state dict; each of its tensors must be used or be on the table's list
            of dropped keys.
        table: for this model part.
        template: nested dict whose leaves have a shape and a dtype (abstract arrays
            do).
        source: the file's name, for the errors.

    Raises:
        InputError: names the missing, unexpected and misshapen tensors and those that
            hold NaN or infinity, or the first and the number of each kind where they
            are many.
    """
    absent, misshapen, broken = [], [], []
    used = set()

    def convert(path, leaf):
        rule, key = table.rule_for(path)
        used.add(key)
        if key not in tensors:
            absent.append(f"{key} is missing")
            return leaf
        expected = rule.to_torch(np.broadcast_to(0, leaf.shape)).shape
        if tensors[key].shape != expected:
            found = list(tensors[key].shape)
            misshapen.append(f"{key} has shape {found}, expected {list(expected)}")
            return leaf
        # A view where it can be one: big models should not be in memory twice.
        with np.errstate(over="ignore"):
            array = rule.from_torch(tensors[key]).astype(leaf.dtype, copy=False)
        if not np.isfinite(array).all():
            broken.append(f"NaN or infinity in {key}")
        return array

    tree = _map(convert, template)
    extra = [key for key in tensors if key not in used and not table.drops(key)]
    if absent or misshapen or broken or extra:
        unexpected = [f"{key} is unexpected" for key in extra]
        problems = listed(absent, misshapen, broken, unexpected)
        common = {key.partition(".")[0] for key in extra}
        if len(absent) == len(used) > 1 and len(common) == 1:
            problems = f"all {len(extra)} keys begin with '{common.pop()}.'; {problems}"
        raise InputError(f"{source}: {problems}")
    return tree


def to_torch(tree: dict, table: Table) -> dict[str, np.ndarray]:
    """Returns our parameters and statistics as a PyTorch state dict.

    The inverse of `from_torch`, without the dropped keys.
    """
    tensors = {}

    def convert(path, leaf):
        rule, key = table.rule_for(path)
        tensors[key] = rule.to_torch(np.asarray(leaf))
        return leaf

    _map(convert, tree)
    return tensors


def _map(function, tree: Any, path: str = "") -> Any:
    """Applies function(path, leaf) to the leaves of nested dicts."""
    if not isinstance(tree, dict):
        return function(path, tree)
    start = f"{path}/" if path else ""
    return {k: _map(function, v, f"{start}{k}") for k, v in tree.items()}
