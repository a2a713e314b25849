"""A kernel that runs out of resources on one rank: all ranks use its reference, and a resumed run does too."""

from types import SimpleNamespace

import pytest

from tunesmith.kernels import dispatch, exhausted
from tunesmith.training import kernel_fallback
from tunesmith.training.checkpoint.state import RunState


@pytest.fixture(autouse=True)
def reasons(monkeypatch):
    reasons: dict[str, str] = {}
    monkeypatch.setattr(exhausted, "REASONS", reasons)
    return reasons


def a_context(others):
    """A rank whose peers have the given reasons. Returns it with its warnings."""
    warnings: list[tuple[str, str]] = []
    ranks = SimpleNamespace(gather=lambda own: [own, *others])
    journal = SimpleNamespace(warning=lambda message, code: warnings.append((code, message)))
    return SimpleNamespace(ranks=ranks, journal=journal), warnings


def test_every_rank_takes_over_what_one_has_found(reasons):
    state = RunState(step=4)
    context, warnings = a_context([{"rope": "out of resource: shared memory"}])
    assert not kernel_fallback.is_new(state)  # on this rank
    kernel_fallback.agree(context, state)  # type: ignore[arg-type]
    assert reasons == state.kernels_off == {"rope": "out of resource: shared memory"}
    assert warnings == [
        (
            "kernel_off",
            "the kernel for rope needs more than the GPU has, the PyTorch reference is used from step 5 on: out of "
            "resource: shared memory",
        )
    ]
    assert not kernel_fallback.is_new(state)
    reasons["swiglu"] = "too many resources requested"
    assert kernel_fallback.is_new(state)
    kernel_fallback.agree(context, state)  # type: ignore[arg-type]
    assert set(state.kernels_off) == {"rope", "swiglu"}
    assert len(warnings) == 2


def test_a_resumed_run_uses_the_references_from_the_start(reasons):
    state = RunState(step=4, kernels_off={"rope": "out of resource: shared memory"})
    kernel_fallback.restore(RunState.from_json(state.to_json()))
    assert exhausted.reason("rope") == "out of resource: shared memory"
    import torch

    reference = dispatch.TABLE["rope"][-1]
    assert dispatch.Kernels().chosen("rope", torch.empty(1, 1, 1, 2)) is reference


def test_checkpoints_of_earlier_versions_have_no_such_kernels():
    raw = RunState().to_json()
    del raw["kernels_off"]
    assert RunState.from_json(raw).kernels_off == {}
