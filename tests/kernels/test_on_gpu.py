"""The chosen implementations on a CUDA device in bf16 and fp32, compared with fp64 on the CPU. The Triton kernels by
themselves: test_interpreted.py."""

import pytest
import torch

from tunesmith.kernels.dispatch import Kernels
from tunesmith.kernels.linear_cross_entropy import linear_cross_entropy_reference
from tunesmith.kernels.packed_attention import packed_attention_reference
from tunesmith.kernels.varlen_attention import Documents

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def assert_near(actual, expected, tolerance):
    assert (actual.cpu().double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_linear_cross_entropy(dtype):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(300, 64, generator=generator), torch.randn(1009, 64, generator=generator) * 0.1
    labels = torch.randint(0, 1009, (300,), generator=generator)
    labels[::3] = -100
    outcomes = []
    for function, device, precision in (
        (Kernels().choose("linear_cross_entropy", hidden.to("cuda", dtype)), "cuda", dtype),
        (linear_cross_entropy_reference, "cpu", torch.float64),
    ):
        leaves = [t.to(dtype).to(device, precision, copy=True).requires_grad_() for t in (hidden, weight)]
        loss, _ = function(*leaves, labels.to(device))
        (loss / 200).backward()
        outcomes.append([loss.detach(), *(t.grad for t in leaves)])
    for actual, expected in zip(*outcomes, strict=True):
        assert_near(actual, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("window", [None, 40])
def test_packed_attention(dtype, window):
    lengths = [100, 1, 37]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, sum(lengths), n, 64, generator=generator).transpose(1, 2) for n in (6, 2, 2)]
    outcomes = []
    for function, device, precision in (
        (Kernels().choose("packed_attention", inputs[0].to("cuda", dtype)), "cuda", dtype),
        (packed_attention_reference, "cpu", torch.float64),
    ):
        leaves = [t.to(dtype).to(device, precision, copy=True).requires_grad_() for t in inputs]
        output = function(*leaves, Documents(lengths), window=window)
        output.square().sum().backward()
        outcomes.append([output.detach(), *(t.grad for t in leaves)])
    for actual, expected in zip(*outcomes, strict=True):
        assert_near(actual, expected, TOLERANCE[dtype])
