"""The device of the inference process."""

import torch

from tunesmith.modeling.cuda import set_up_cuda


def best_device() -> torch.device:
    """Return the GPU of this process, set up, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    set_up_cuda(0)
    return torch.device("cuda")
