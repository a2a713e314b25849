"""NEFTune: noise on the embeddings in training (Jain et al. 2023, arXiv:2310.05914)."""

import torch
from torch import Tensor


def add_noise(embeddings_TH: Tensor, lengths: list[int], alpha: float) -> Tensor:
    """embeddings + alpha / sqrt(L H) * uniform(-1, 1), where L is the length of the token's document in tokens.

    lengths: tokens of each document, summing to T. Draws from torch's own generator; returns a new tensor of the same
    type.
    """
    length_T = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.float32), torch.tensor(lengths))
    scale_T1 = (alpha / (length_T * embeddings_TH.shape[1]).sqrt())[:, None].to(embeddings_TH.device)
    noise_TH = torch.empty_like(embeddings_TH, dtype=torch.float32).uniform_(-1.0, 1.0) * scale_T1
    return embeddings_TH + noise_TH.to(embeddings_TH.dtype)
