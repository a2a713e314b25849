"""Generation with encoder-decoder models equals transformers; sampling and stop strings work as elsewhere."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.generate import generate_target
from tunesmith.inference.types import Sampling

SOURCES = [[70, 80, 90, 2], [60, 61, 62, 63, 64, 65, 66, 67, 2], [300, 2]]


@pytest.fixture(scope="module")
def tokenizer(tiny_llama) -> Tokenizer:
    return Tokenizer.load(tiny_llama)


@pytest.fixture(scope="module")
def model() -> T5ForConditionalGeneration:
    torch.manual_seed(2)
    sizes = {"vocab_size": 384, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = T5Config(**sizes, decoder_start_token_id=0, eos_token_id=2, initializer_factor=3.0)
    return T5ForConditionalGeneration(config)


def test_greedy_targets_equal_transformers(model, tokenizer):
    model.train()
    responses = [generate_target(model, tokenizer, source, Sampling(15)) for source in SOURCES]
    assert model.training
    model.eval()
    for source, response in zip(SOURCES, responses, strict=True):
        expected = model.generate(torch.tensor([source]), max_new_tokens=15, do_sample=False)[0, 1:].tolist()
        assert response.stopped == (2 in expected)
        assert response.tokens == (expected[: expected.index(2)] if response.stopped else expected)
        assert response.text == tokenizer.decode(response.tokens)
    assert len({tuple(response.tokens) for response in responses}) > 1


def test_sampling_and_stop_strings(model, tokenizer):
    def text(seed: int, stop: tuple[str, ...] = ()) -> str:
        return generate_target(model, tokenizer, SOURCES[0], Sampling(30, temperature=2.0, seed=seed, stop=stop)).text

    assert text(1) == text(1) != text(2)
    whole = text(1)
    stop = next(letter for letter in whole[3:] if letter != "�" and letter not in whole[:3])
    assert text(1, (stop,)) == whole[: whole.index(stop)]


def test_ranks_follow_the_agreed_tokens(model, tokenizer):
    """Of a sharded model: a rank that computes other logits takes the tokens of rank 0, so that all stop together."""
    agreed = iter([70, 71, 72, 2])
    answer = generate_target(model, tokenizer, SOURCES[0], Sampling(15), agree=lambda _: next(agreed))
    assert (answer.tokens, answer.stopped) == ([70, 71, 72], True)
    assert next(agreed, None) is None
