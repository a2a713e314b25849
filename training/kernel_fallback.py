"""Kernels that ran out of resources during training: all ranks use their references, checkpoints and events say so."""

from tunesmith.kernels import exhausted
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.rank_context import RankContext


def is_new(state: RunState) -> bool:
    """Whether a kernel has run out of resources on this rank since the last call of `agree`."""
    return bool(exhausted.REASONS.keys() - state.kernels_off.keys())


def agree(context: RankContext, state: RunState) -> None:
    """Use the references of every rank's exhausted kernels from this step on, and write a warning for each. A
    collective."""
    for reasons in context.ranks.gather(dict(exhausted.REASONS)):
        for operation, reason in sorted(reasons.items()):
            if operation in state.kernels_off:
                continue
            state.kernels_off[operation] = exhausted.REASONS[operation] = reason
            context.journal.warning(
                f"the kernel for {operation} needs more than the GPU has, the PyTorch reference is used from step "
                f"{state.step + 1} on: {reason}",
                code="kernel_off",
            )


def restore(state: RunState) -> None:
    """Use the references that the resumed run used."""
    exhausted.REASONS.update(state.kernels_off)
