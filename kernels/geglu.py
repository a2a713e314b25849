"""GEGLU, the gated activation of Gemma and T5 1.1 (Shazeer 2020, arXiv:2002.05202): GELU instead of SiLU.

T tokens, I values per token. Uses the kernel of swiglu.py.
"""

from torch import Tensor
from torch.nn.functional import gelu

from tunesmith.kernels.swiglu import GELU, GELU_TANH, gated


def geglu(gate_TI: Tensor, up_TI: Tensor, *, tanh: bool = True) -> Tensor:
    """Return gelu(gate) * up (Shazeer 2020, arXiv:2002.05202), in the shape and dtype of gate and up, [..., I].

    tanh: use the tanh approximation of GELU, as Gemma does. The reference, in plain PyTorch.
    """
    return gelu(gate_TI, approximate="tanh" if tanh else "none") * up_TI


def geglu_triton(gate_TI: Tensor, up_TI: Tensor, *, tanh: bool = True) -> Tensor:
    """`geglu` as one Triton kernel. gate, up: [..., I], both fp32, bf16 or fp16; computed in fp32."""
    return gated(gate_TI, up_TI, GELU_TANH if tanh else GELU)
