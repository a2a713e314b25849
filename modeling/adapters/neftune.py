"""NEFTune: noise on the embeddings during training (Jain et al. 2023, arXiv:2310.05914)."""

import torch
from torch import Tensor


def add_noise(embeddings_TH: Tensor, lengths: list[int], alpha: float) -> Tensor:
    """Return embeddings + alpha / sqrt(L H) * uniform(-1, 1), with L the length of the token's document in tokens.

    embeddings: [T, H] of any floating dtype; lengths: tokens of each document, summing to T. Uses torch's global
    generator; returns a new tensor of the same shape and dtype.
    """
    length_T = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.float32), torch.tensor(lengths))
    scale_T1 = (alpha / (length_T * embeddings_TH.shape[1]).sqrt())[:, None].to(embeddings_TH.device)
    noise_TH = torch.empty_like(embeddings_TH, dtype=torch.float32).uniform_(-1.0, 1.0) * scale_T1
    return embeddings_TH + noise_TH.to(embeddings_TH.dtype)
