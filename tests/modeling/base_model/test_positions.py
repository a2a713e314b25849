"""The sequence length of a model, and the warning about longer sequences."""

import json

import pytest

from tunesmith.modeling.base_model.positions import positions_in, positions_warning, trained_positions


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({}, None),
        ({"n_positions": 512, "is_encoder_decoder": True}, None),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 8192),
        ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 4096),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 163840,
                "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
            },
            163840,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 8192,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            65536,
        ),
    ],
)
def test_positions_include_rotary_scaling(tmp_path, config, positions):
    assert trained_positions(config) == positions
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert positions_in(tmp_path) == positions


def test_a_longer_sequence_is_a_warning_with_the_longest_row(tmp_path):
    warning = positions_warning(4096, 2048, 1500)
    assert warning is not None
    assert "4,096" in warning
    assert "2,048 positions" in warning
    assert "the longest row has 1,500 tokens" in warning
    assert positions_warning(2048, 2048, 10) is None
    assert positions_warning(2048, None, 10) is None
    assert positions_in(tmp_path) is None
