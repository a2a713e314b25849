"""NEFTune noise: its scale by document length, and its generator."""

import pytest
import torch

from tunesmith.modeling.adapters.neftune import add_noise


def test_noise_is_uniform_with_a_bound_by_document_length():
    torch.manual_seed(0)
    lengths, width, alpha = [4, 100], 64, 5.0
    embeddings = torch.ones(104, width)
    noise = add_noise(embeddings, lengths, alpha) - 1.0
    for part, length in zip(noise.split(lengths), lengths, strict=True):
        bound = alpha / (length * width) ** 0.5
        assert part.abs().max() <= bound * 1.0001
        assert part.abs().max() > 0.9 * bound
        assert part.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert torch.equal(embeddings, torch.ones(104, width))


def test_noise_follows_the_generator():
    embeddings = torch.zeros(6, 8)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(add_noise(embeddings, [6], 5.0))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
