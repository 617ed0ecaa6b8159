"""Released region + BiGRU models: their embeddings, recipe, layers and way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import coco_region_bigru
from tests.helpers import official
from tests.helpers.drafts import draft
from tests.helpers.golden_weights import golden_weight, load
from vse_jax.checkpoints.torch.released import Released, from_checkpoint, to_checkpoint
from vse_jax.config import flat_fields
from vse_jax.models.build import abstract_model, merge_model


def with_second_layer(shapes):
    """The shapes of a text encoder whose GRU has another layer over the first."""
    second = {
        key.replace("_l0", "_l1"): shape
        for key, shape in shapes.items()
        if key.startswith("rnn.")
    }
    for key, (gates, *_) in second.items():
        if key.startswith("rnn.weight_ih"):  # reads both directions
            second[key] = (gates, 2 * shapes["rnn.weight_hh_l0"][1])
    return shapes | second


@pytest.mark.parametrize(("case", "layers"), [("one_layer.", 1), ("two_layers.", 2)])
def test_a_converted_model_gives_the_official_embeddings(case, layers):
    sizes = {1024: 32, 2048: 48, 512: 16}, {1024: 32, 3072: 96, 9481: 60, 300: 24}
    image, text = official.small_layout("region_bigru", sizes=sizes)
    if layers == 2:
        text = with_second_layer(text)
    checkpoint = official.checkpoint("region_bigru") | {
        "model": [
            official.state_dict(image),
            {
                key: torch.from_numpy(golden_weight(f"txt_enc.{key}", shape))
                for key, shape in text.items()
            },
        ]
    }
    released = from_checkpoint(checkpoint, "model.pth")
    assert released.config.text.layers == layers
    graphdef, _ = abstract_model(released.config)
    model = merge_model(graphdef, jax.tree.map(jnp.asarray, released.model))
    golden = load("text_bigru", case)
    captions = model.encode_captions(
        {
            "token_ids": jnp.asarray(golden["token_ids"], jnp.int32),
            "token_lengths": jnp.asarray(golden["lengths"], jnp.int32),
        }
    )
    np.testing.assert_allclose(captions, golden["embedding"], atol=1e-5)


def test_the_published_layout_gives_the_published_recipe():
    checkpoint = official.checkpoint("region_bigru", data_name="coco_precomp")
    checkpoint["model"] = [
        official.state_dict({key: shape for key, (shape, _) in tower.items()})
        for tower in official.layout("region_bigru")
    ]
    config = from_checkpoint(checkpoint, "model.pth").config
    expected = draft(coco_region_bigru.get_config())
    expected.text.vocab_size = 9481
    assert flat_fields(config) == flat_fields(expected)


def test_a_model_that_was_trained_here_goes_to_the_official_program():
    config = draft(coco_region_bigru.get_config())
    config.embed_dim = 16
    config.image.feature_dim = 24
    config.text.update(vocab_size=20, word_dim=6, layers=2)
    _, abstract = abstract_model(config)
    weights = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), abstract)
    checkpoint = to_checkpoint(Released(config, weights, 3, 400.0, None), 99)
    assert "rnn.weight_ih_l1_reverse" in checkpoint["model"][1]
    options = checkpoint["opt"]
    assert (options.word_dim, options.num_layers, options.vocab_size) == (6, 2, 20)
    assert options.vocab_path == "data/vocab"
    config_back = from_checkpoint(checkpoint, "model.pth").config
    assert flat_fields(config_back) == flat_fields(config)
