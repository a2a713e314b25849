"""Continued training of an exported adapter: the same model at the first step; adapters of another form are
rejected."""

import json

import pytest
import torch

from tunesmith.configs.sections.method import Lora
from tunesmith.errors import InputError
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.parts import causal_lm

TOKENS = torch.tensor([[1, 20, 30, 40, 50]])


@pytest.fixture
def exported(tiny_llama, tmp_path):
    """An adapter with nonzero weights, saved by peft, and its logits."""
    model = apply_method(causal_lm(load_model(tiny_llama, dtype=torch.float32)), Lora(kind="lora", lora_rank=4), seed=1)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        return tmp_path / "adapter", model(TOKENS).logits


def start(tiny_llama, adapter, **method):
    base = causal_lm(load_model(tiny_llama, dtype=torch.float32))
    return apply_method(base, Lora(kind="lora", **{"lora_rank": 4, **method}), seed=9, start_from=adapter)


def test_training_starts_from_the_exported_adapter(tiny_llama, exported):
    adapter, logits = exported
    model = start(tiny_llama, adapter)
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, logits)
        assert not torch.equal(start(tiny_llama, None)(TOKENS).logits, logits)
    assert len(trained_parameters(model)) == 28


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ({"lora_rank": 8}, "r 4, here 8"),
        ({"lora_alpha": 4}, "lora_alpha 32"),
        ({"target_modules": ["q_proj"]}, "down_proj"),
    ],
)
def test_an_adapter_of_another_form_is_rejected(tiny_llama, exported, method, text):
    with pytest.raises(InputError, match="another form") as raised:
        start(tiny_llama, exported[0], **method)
    assert text in raised.value.what


def test_a_damaged_adapter_is_rejected(tiny_llama, exported):
    weights = exported[0] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        start(tiny_llama, exported[0])
    (exported[0] / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(InputError):
        start(tiny_llama, exported[0])
