"""Which models generate with a cache, and that they generate the same without."""

from typing import Any

import pytest
import torch
import transformers

from tests.modeling.proof.test_compare import make
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.generate import generate
from tunesmith.inference.model_cache import generate_without_cache, new_cache
from tunesmith.inference.types import Sampling


def test_a_class_with_a_cache_of_its_own_gets_none():
    assert set(new_cache(make("LlamaForCausalLM"))) == {"past_key_values"}
    own = make("MiniMaxForCausalLM", num_local_experts=4, head_dim=8)
    assert new_cache(own) == {}


def test_a_model_can_be_made_to_generate_without_a_cache(tiny_llama, monkeypatch):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    tokenizer: Any = Tokenizer.load(tiny_llama)
    with_cache = generate(model, tokenizer, [70, 80, 90], Sampling(6)).tokens
    generate_without_cache(model)
    monkeypatch.setattr(transformers.DynamicCache, "update", lambda *arguments: pytest.fail("a cache was used"))
    assert generate(model, tokenizer, [70, 80, 90], Sampling(6)).tokens == with_cache
