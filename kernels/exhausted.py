"""Operations whose Triton kernel needs more registers or shared memory than the GPU of this process has.

The parity check runs every kernel at the sizes of the run before the first step, so this is rare: another layout of the
inputs selects another form of the kernel. From then on the reference is used, in both directions.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from tunesmith.kernels.language import OutOfResources

Result = TypeVar("Result")

REASONS: dict[str, str] = {}
"""Operations that ran out of resources. The training loop lets all ranks agree on it, records it in checkpoints and
writes a warning."""
MISFITS: dict[str, str] = {}
"""Operations whose Triton kernels the GPU of this process cannot run (kernels/resources.py); the plan says so."""


def reason(operation: str) -> str | None:
    """Return why the reference of an operation is used; None if its kernel has not failed."""
    return REASONS.get(operation) or MISFITS.get(operation)


def is_exhaustion(error: BaseException) -> bool:
    """Whether a kernel could not be launched for lack of registers, shared memory or threads."""
    return isinstance(error, OutOfResources) or "too many resources requested for launch" in str(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, for a warning."""
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def attempt(operations: Iterable[str], kernel: Callable[[], Result], otherwise: Callable[[], Result]) -> Result:
    """Return `kernel()`, or `otherwise()` if the operations have run out of resources, now or before.

    operations: those that launch the kernel.
    """
    operations = tuple(operations)
    if not any(map(reason, operations)):
        try:
            return kernel()
        except Exception as error:
            if not is_exhaustion(error):
                raise
            for operation in operations:
                REASONS.setdefault(operation, first_line(error))
    return otherwise()


def gradients(
    reference: Callable[..., Any], inputs: Iterable[Tensor], trained: Iterable[bool], doutputs: Iterable[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of the reference with regard to the trained inputs, None for the others."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(needs) for t, needs in zip(inputs, trained, strict=True)]
        outputs = reference(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = iter(torch.autograd.grad(outputs, [leaf for leaf in leaves if leaf.requires_grad], tuple(doutputs)))
    return [next(grads) if leaf.requires_grad else None for leaf in leaves]
