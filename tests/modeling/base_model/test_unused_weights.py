"""Weights that transformers does not load are neither counted nor planned to get an adapter."""

import pytest

from tunesmith.modeling.base_model.unused_weights import without_unused

LAYERS = [
    f"model.layers.{number}.self_attn.{name}" for number in range(3) for name in ("q_proj.weight", "k_proj.weight")
]


@pytest.mark.parametrize(
    ("config", "unused"),
    [
        ({"num_nextn_predict_layers": 1, "num_hidden_layers": 2}, LAYERS[4:]),
        ({"num_kv_shared_layers": 2, "num_hidden_layers": 3}, [LAYERS[3], LAYERS[5]]),
        ({"num_kv_shared_layers": 0, "num_hidden_layers": 3}, []),
        ({"num_hidden_layers": 3}, ["model.mtp_block.0.self_attn.q_proj.weight", "mtp.layers.0.mlp.up_proj.weight"]),
    ],
)
def test_weights_that_the_class_does_not_have_are_left_out(config, unused):
    shapes = {name: [4, 4] for name in dict.fromkeys([*LAYERS, "model.embed_tokens.weight", *unused])}
    assert shapes.keys() - without_unused(config, shapes).keys() == set(unused)
