"""A kernel that runs out of resources: its reference takes over, once and for all later calls."""

import pytest
import torch

from tunesmith.kernels import dispatch, exhausted, language, parity
from tunesmith.kernels.swiglu import swiglu

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def nothing_exhausted(monkeypatch):
    monkeypatch.setattr(exhausted, "REASONS", {})
    monkeypatch.setattr(exhausted, "MISFITS", {})


def too_large():
    return language.OutOfResources(104_448, 101_376, "shared memory")


@pytest.fixture
def planted(monkeypatch):
    """A kernel that fails at every launch; returns its calls."""
    calls = []

    def kernel(gate, up):
        calls.append(gate.shape)
        raise too_large()

    entry = dispatch.Implementation(dispatch.TRITON, kernel, lambda tensor: True)
    monkeypatch.setitem(dispatch.TABLE, "swiglu", [entry, dispatch.TABLE["swiglu"][-1]])
    return calls


def test_the_reference_takes_over_after_one_attempt(planted):
    gate, up = torch.randn(3, 4), torch.randn(3, 4)
    kernels = dispatch.Kernels()
    chosen = kernels.choose("swiglu", gate)
    for _ in range(3):
        assert torch.equal(chosen(gate, up), swiglu(gate, up))
    assert len(planted) == 1
    assert "104448" in exhausted.REASONS["swiglu"]
    assert kernels.choose("swiglu", gate) is swiglu
    assert dispatch.Kernels().choose("swiglu", gate) is swiglu


def test_other_errors_are_raised(monkeypatch):
    def kernel(gate, up):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    entry = dispatch.Implementation(dispatch.TRITON, kernel, lambda tensor: True)
    monkeypatch.setitem(dispatch.TABLE, "swiglu", [entry, dispatch.TABLE["swiglu"][-1]])
    with pytest.raises(RuntimeError, match="illegal memory access"):
        dispatch.choose("swiglu", torch.ones(1, 1))(torch.ones(1, 1), torch.ones(1, 1))
    assert not exhausted.REASONS


def test_registers_run_out_at_the_launch():
    error = RuntimeError("Triton Error [CUDA]: too many resources requested for launch")
    assert exhausted.is_exhaustion(error)
    assert exhausted.attempt(("rope",), lambda: raising(error), lambda: "reference") == "reference"
    assert exhausted.attempt(("rope",), lambda: "kernel", lambda: "reference") == "reference"


def raising(error):
    raise error


def test_the_parity_check_reports_a_gradient_that_the_reference_computed(monkeypatch):
    """The forward pass of the kernel succeeds, and its backward pass runs out of resources."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, gate, up):  # pyright: ignore[reportIncompatibleMethodOverride]
            ctx.save_for_backward(gate, up)
            return swiglu(gate, up)

        @staticmethod
        def backward(ctx, doutput):  # pyright: ignore[reportIncompatibleMethodOverride]
            return exhausted.attempt(
                ("swiglu",),
                lambda: raising(too_large()),
                lambda: tuple(exhausted.gradients(swiglu, ctx.saved_tensors, (True, True), (doutput,))),
            )

    entry = dispatch.Implementation(dispatch.TRITON, Kernel.apply, lambda tensor: True)
    monkeypatch.setitem(dispatch.TABLE, "swiglu", [entry, dispatch.TABLE["swiglu"][-1]])
    sizes = parity.Sizes(32, 16, 32, 2, 2, 8, 64, 4, *(torch.float32, "cpu", torch.float32, torch.float32), False)
    (result,) = parity.check(dispatch.Kernels(), sizes, ["swiglu"])
    assert not result.holds
    assert "104448" in result.fault


def test_a_gpu_that_cannot_run_the_kernels_uses_the_references(planted, monkeypatch):
    monkeypatch.setattr(dispatch.torch.cuda, "get_device_capability", lambda device: (7, 0))
    dispatch.note_misfits.__wrapped__(torch.device("cuda", 0))
    assert dispatch.choose("swiglu", torch.ones(1, 1)) is swiglu
    assert not planted
    assert not exhausted.REASONS
