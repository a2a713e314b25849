"""The gated activation of Gemma and T5 1.1 (Shazeer 2020, arXiv:2002.05202): GELU in the place of SiLU.

T tokens, I values of a token. The kernel is that of swiglu.py.
"""

from torch import Tensor
from torch.nn.functional import gelu

from tunesmith.kernels.swiglu import GELU, GELU_TANH, gated


def geglu(gate_TI: Tensor, up_TI: Tensor, *, tanh: bool = True) -> Tensor:
    """gelu(gate) * up; tanh: GELU by its tanh approximation, as Gemma has it. The reference: plain torch."""
    return gelu(gate_TI, approximate="tanh" if tanh else "none") * up_TI


def geglu_triton(gate_TI: Tensor, up_TI: Tensor, *, tanh: bool = True) -> Tensor:
    """`geglu` in one launch. gate, up: [..., I], of one type."""
    return gated(gate_TI, up_TI, GELU_TANH if tanh else GELU)
