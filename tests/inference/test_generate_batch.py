"""Batched generation equals generation one by one, and transformers' `generate`."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError
from tunesmith.inference.generate import generate, generate_batch
from tunesmith.inference.types import Sampling
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.parts import causal_lm


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 384, length).tolist() for length in (1, 5, 40, 17, 90, 2, 33, 64)]


@pytest.fixture(scope="module")
def tokenizer(tiny_llama) -> Tokenizer:
    return Tokenizer.load(tiny_llama)


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load_model(tiny_llama, dtype=torch.float32, attention=PACKED)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_responses_do_not_depend_on_the_batch(model, tokenizer, prompts, temperature):
    sampling = Sampling(max_new_tokens=24, temperature=temperature, top_p=0.95, seed=3)
    alone = [generate_batch(model, tokenizer, [prompt], sampling)[0].tokens for prompt in prompts]
    assert len({tuple(tokens) for tokens in alone}) > 4
    for size in (2, 3, 8):
        together = []
        for start in range(0, len(prompts), size):
            together += generate_batch(model, tokenizer, prompts[start : start + size], sampling)
        assert [response.tokens for response in together] == alone
    reordered = generate_batch(model, tokenizer, prompts[::-1], sampling)[::-1]
    assert [response.tokens for response in reordered] == alone


def test_greedy_responses_equal_single_generation_and_transformers(model, tokenizer, prompts, tiny_llama):
    responses = generate_batch(model, tokenizer, prompts, Sampling(max_new_tokens=16))
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    for prompt, response in zip(prompts, responses, strict=True):
        single = generate(model, tokenizer, prompt, Sampling(16))
        assert (response.tokens, response.text, response.stopped) == (single.tokens, single.text, single.stopped)
        expected = plain.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=list(tokenizer.stop_token_ids),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert response.tokens == [token for token in expected if token not in tokenizer.stop_token_ids]


def test_samples_repeat_with_a_seed_and_differ_between_seeds(model, tokenizer, prompts):
    samples = [
        [a.tokens for a in generate_batch(model, tokenizer, prompts, Sampling(12, temperature=1.0, seed=seed))]
        for seed in (1, 1, 2)
    ]
    assert samples[0] == samples[1]
    assert samples[0] != samples[2]


def test_stop_strings_end_a_response_and_are_cut_off(model, tokenizer, prompts):
    whole = generate_batch(model, tokenizer, prompts, Sampling(max_new_tokens=24))
    texts = [response.text for response in whole]
    pieces = (text[start : start + 2] for text in texts for start in range(3, len(text) - 4))
    stop = next(piece for piece in pieces if "�" not in piece)
    for response, before in zip(
        generate_batch(model, tokenizer, prompts, Sampling(max_new_tokens=24, stop=(stop, "never generated"))),
        whole,
        strict=True,
    ):
        start = before.text.find(stop)
        assert response.text == (before.text if start < 0 else before.text[:start])
        assert stop not in response.text
        assert response.stopped == (before.stopped or start >= 0)
        if start >= 0:
            assert len(response.tokens) <= len(before.tokens)
    assert any(stop in text for text in texts)


def test_mode_and_attention_are_restored(model, tokenizer, prompts):
    model.train()
    generate_batch(model, tokenizer, prompts[:2], Sampling(max_new_tokens=2))
    assert all(module.training for module in model.modules())
    assert causal_lm(model).config._attn_implementation == PACKED
    model.eval()


def test_empty_and_too_long_prompts_are_rejected(model, tokenizer):
    with pytest.raises(InputError, match="context"):
        generate_batch(model, tokenizer, [[5] * 4000], Sampling(max_new_tokens=2))
    with pytest.raises(InputError, match="empty"):
        generate_batch(model, tokenizer, [[]], Sampling(max_new_tokens=2))
    (response,) = generate_batch(model, tokenizer, [[5] * 2046], Sampling(max_new_tokens=9))
    assert len(response.tokens) <= 2


FAMILIES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 8}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_model_families_with_and_without_sliding_window(family, tokenizer, prompts):
    import transformers

    config_class, model_class, extra = FAMILIES[family]
    shape = (
        {}
        if family == "gpt2"
        else {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
        }
    )
    torch.manual_seed(1)
    config = getattr(transformers, config_class)(
        vocab_size=384, **shape, **extra, initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    model = getattr(transformers, model_class)(config).float().eval()
    sampling = Sampling(max_new_tokens=20)
    alone = [generate_batch(model, tokenizer, [prompt], sampling)[0].tokens for prompt in prompts]
    assert [response.tokens for response in generate_batch(model, tokenizer, prompts, sampling)] == alone
    single = [generate(model, tokenizer, prompt, Sampling(20)).tokens for prompt in prompts]
    assert alone == single
    assert len({tuple(tokens) for tokens in alone}) > 4
