"""Parity check: each chosen kernel is compared with its reference, forward and backward, at the run's sizes and dtype.

The reference computes in fp32 from the same inputs. Callers disable kernels that differ by more than rounding.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tunesmith.kernels import exhausted
from tunesmith.kernels.dispatch import Kernels
from tunesmith.kernels.parity_examples import EXAMPLES, REFERENCES, Call, Maker, Sizes
from tunesmith.progress import advance

FEWEST_TOKENS = 32
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Limit of the relative difference (by norm) of each output and gradient; bf16 rounds by 4e-3, several times in a
row."""


@dataclass(frozen=True)
class Parity:
    """Result of a comparison. difference: the largest ||kernel - reference|| / ||reference|| over outputs and
    gradients; infinite if the kernel failed."""

    operation: str
    implementation: str
    difference: float
    tolerance: float
    fault: str = ""

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance

    @property
    def excess(self) -> float:
        """The difference relative to the tolerance."""
        return self.difference / self.tolerance


def check(kernels: Kernels, sizes: Sizes, operations: Iterable[str]) -> list[Parity]:
    """Compare the chosen kernel of each operation with its reference, on every example; the one with the largest
    difference is returned. Operations that use the reference are skipped.

    Random inputs come from a separate generator. Does not disable any kernel.
    """
    results = []
    for operation in operations:
        compared = [_compare(kernels, operation, sizes, example) for example in EXAMPLES.get(operation, ())]
        worst = max((one for one in compared if one is not None), key=lambda one: one.excess, default=None)
        if worst is not None:
            results.append(worst)
        advance()
    return results


def _compare(kernels: Kernels, operation: str, sizes: Sizes, example: Maker) -> Parity | None:
    """Compare on one example; None if the reference is chosen for it. With fewer tokens if memory runs out."""
    tensors, trained, called = example(sizes, torch.Generator(sizes.device).manual_seed(0))
    chosen = kernels.chosen(operation, tensors[0])
    if chosen is kernels.reference(operation) and operation not in REFERENCES:
        return None
    plain = REFERENCES.get(operation, kernels.reference(operation).function)
    tolerance = TOLERANCE.get(tensors[0].dtype, TOLERANCE[sizes.dtype])
    try:
        difference, fault = _difference(called(chosen.function), called(plain), tensors, trained), ""
        if operation in exhausted.REASONS:  # the gradient was computed by the reference
            difference, fault = float("inf"), exhausted.REASONS[operation]
    except torch.OutOfMemoryError as error:
        if sizes.num_tokens > FEWEST_TOKENS:
            del tensors, called
            torch.cuda.empty_cache()
            return _compare(kernels, operation, replace(sizes, num_tokens=sizes.num_tokens // 4), example)
        difference, fault = float("inf"), _first_line(error)
    except Exception as error:  # the run continues without a kernel that fails in any way
        difference, fault = float("inf"), _first_line(error)
    return Parity(operation, chosen.name, difference, tolerance, fault)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _difference(kernel: Call, plain: Call, tensors: list[Tensor], trained: list[bool]) -> float:
    outputs = _outcome(kernel, tensors, trained)
    wide = [tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors]
    expected_outputs = _outcome(plain, wide, trained)
    differences = [
        ((actual.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-20)).item()
        for actual, expected in zip(outputs, expected_outputs, strict=True)
    ]
    return max(difference if difference == difference else float("inf") for difference in differences)  # NaN: inf


def _outcome(function: Call, tensors: list[Tensor], trained: list[bool]) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_(wants) for t, wants in zip(tensors, trained, strict=True)]
    with torch.enable_grad():
        result = function(*leaves)
    outputs = [o for o in (result if isinstance(result, tuple) else (result,)) if o.is_floating_point()]
    if any(trained):
        directions = [torch.cos(torch.arange(o.numel(), device=o.device)).view(o.shape).to(o.dtype) for o in outputs]
        torch.autograd.backward(outputs, directions)
    if not all(torch.equal(leaf, tensor) for leaf, tensor in zip(leaves, tensors, strict=True)):
        raise ValueError("it writes to its inputs")
    gradients = [leaf.grad for leaf, wants in zip(leaves, trained, strict=True) if wants]
    if any(gradient is None for gradient in gradients):
        raise ValueError("it does not compute a gradient")
    return [*(o.detach() for o in outputs), *(g for g in gradients if g is not None)]
