"""The gated activation of LLaMA's feed-forward block (Shazeer 2020, arXiv:2002.05202)."""

from torch import Tensor
from torch.nn.functional import silu


def swiglu(gate_TI: Tensor, up_TI: Tensor) -> Tensor:
    """silu(gate) * up with silu(x) = x / (1 + exp(-x)), element by element; shape and type of the inputs, which are
    not written to."""
    return silu(gate_TI) * up_TI
