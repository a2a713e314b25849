"""NEFTune: noise on the embeddings during training (Jain et al. 2023, arXiv:2310.05914)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def add_noise(embeddings_TH: Tensor, lengths: list[int], alpha: float) -> Tensor:
    """Return embeddings + alpha / sqrt(L H) * uniform(-1, 1), with L the length of the token's document in tokens.

    embeddings: [T, H] of any floating dtype; lengths: tokens of each document, summing to T. Uses torch's global
    generator; returns a new tensor of the same shape and dtype.
    """
    length_T = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.float32), torch.tensor(lengths))
    scale_T1 = (alpha / (length_T * embeddings_TH.shape[1]).sqrt())[:, None].to(embeddings_TH.device)
    noise_TH = torch.empty_like(embeddings_TH, dtype=torch.float32).uniform_(-1.0, 1.0) * scale_T1
    return embeddings_TH + noise_TH.to(embeddings_TH.dtype)


@contextmanager
def noisy_embeddings(embeddings: nn.Module, alpha: float | None, lengths: list[int]) -> Iterator[None]:
    """Context in which the module adds the noise to its output. alpha: None or 0: no noise.

    lengths: tokens of each document, all in one row or each in a row of its own, padded on the right.
    """
    if not alpha:
        yield
        return

    def add(_module: nn.Module, _inputs: Any, output_BSH: Tensor) -> Tensor:
        if len(output_BSH) == 1:
            return add_noise(output_BSH[0], lengths, alpha)[None]
        rows = [
            torch.nn.functional.pad(add_noise(row[:n], [n], alpha), (0, 0, 0, len(row) - n))
            for row, n in zip(output_BSH, lengths, strict=True)
        ]
        return torch.stack(rows)

    hook = embeddings.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()
