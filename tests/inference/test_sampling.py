"""The sampler shared by all forms of generation."""

import pytest
import torch

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.grammar import json_grammar
from tunesmith.inference.sampling import Sampler, pick_token, seeded, seeded_by_prompt
from tunesmith.inference.types import Sampling


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-6, 1e-5])
def test_very_low_temperatures_are_greedy(temperature):
    """Dividing by them overflows, which would break sampling; the API accepts every temperature from 0."""
    logits_V = torch.tensor([-30.0, 1e4, 2e4, 2e4 - 1.0])
    assert pick_token(logits_V, temperature, 1.0, torch.Generator().manual_seed(0)) == 2


def picked(logits: list[float], count: int, **options) -> list[int]:
    """Greedy tokens from constant logits."""
    sampler = Sampler(Sampling(**options), seeded(0), None)
    tokens = []
    for _ in range(count):
        tokens.append(sampler.pick(torch.tensor(logits)))
        assert sampler.accept(tokens[-1]) is False
    return tokens


def test_penalties_and_biases_shift_the_logits():
    """A presence penalty applies once per generated token, a frequency penalty once per occurrence."""
    logits = [3.0, 2.0, 1.5]
    assert picked(logits, 3) == [0, 0, 0]
    assert picked(logits, 4, presence_penalty=1.25) == [0, 1, 0, 0]
    assert picked(logits, 6, frequency_penalty=1.25) == [0, 1, 0, 2, 1, 0]
    assert picked(logits, 2, logit_bias={2: 2.0, 99: 100.0}) == [2, 2]


def test_a_grammar_masks_tokens_and_reports_completion(tiny_llama):
    tokenizer = Tokenizer.load(tiny_llama)
    sampler = Sampler(Sampling(grammar=json_grammar({"enum": ["yes"]})), seeded(0), tokenizer)
    tokens, complete = [], False
    while not complete:
        tokens.append(sampler.pick(torch.zeros(tokenizer.vocab_size)))
        complete = sampler.accept(tokens[-1])
    assert tokenizer.decode(tokens) == '"yes"'


def test_generators_are_reproducible_by_seed_and_prompt():
    def drawn(generator: torch.Generator) -> list[int]:
        return torch.randint(1 << 30, (4,), generator=generator).tolist()

    assert drawn(seeded(5)) == drawn(torch.Generator().manual_seed(5))
    assert drawn(seeded(None)) != drawn(seeded(None))
    assert drawn(seeded_by_prompt([1, 2], 5)) == drawn(seeded_by_prompt((1, 2), 5))
    others = [seeded_by_prompt([2, 1], 5), seeded_by_prompt([1, 2], 6), seeded_by_prompt([1, 2], None), seeded(5)]
    assert drawn(seeded_by_prompt([1, 2], 5)) not in [drawn(generator) for generator in others]
