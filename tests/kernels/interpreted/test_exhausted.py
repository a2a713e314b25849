"""Kernels that run out of resources in the forward or the backward pass: results and gradients are the reference's."""

import pytest
import torch
from against import assert_matches, drawn

from tunesmith.kernels import cross_entropy, dispatch, exhausted, language, layer_norm, rms_norm, rope, swiglu


def tables():
    return [drawn(1, 5, 8, seed=3), drawn(1, 5, 8, seed=4)]


def labels():
    return torch.tensor([3, -100, 0, 12, 7])


X, W = drawn(5, 16), drawn(16, seed=1)
PARTS = [drawn(1, 4, 5, 8), drawn(1, 2, 5, 8, seed=2)]
CASES = {
    "rms_norm": (rms_norm, "_backward_kernel", lambda f: lambda x, w: f(x, w, 1e-5, weight_offset=1.0), [X, W]),
    "add_rms_norm": (rms_norm, "_backward_kernel", lambda f: lambda x, r, w: f(x, r, w, 1e-5), [X, drawn(5, 16), W]),
    "layer_norm": (layer_norm, "_backward_kernel", lambda f: lambda x, w, b: f(x, w, b, 1e-5), [X, W, drawn(16)]),
    "rope": (rope, "_rope_kernel", lambda f: lambda q, k: f(q, k, *(t.to(q.dtype) for t in tables())), PARTS),
    "rope_packed": (
        *(rope, "_rope_kernel"),
        lambda f: lambda qkv: f(qkv, *(t.to(qkv.dtype) for t in tables()), 4, 2),
        [drawn(1, 5, 64)],
    ),
    "swiglu": (swiglu, "_backward_kernel", lambda f: f, [X, drawn(5, 16, seed=2)]),
    "swiglu_packed": (swiglu, "_backward_kernel", lambda f: f, [X]),
    "geglu": (swiglu, "_backward_kernel", lambda f: f, [X, drawn(5, 16, seed=2)]),
    "cross_entropy": (
        *(cross_entropy, "_backward_kernel"),
        lambda f: lambda z: f(z, labels().to(z.device), label_smoothing=0.1, soft_cap=9.0, z_loss=0.01)[0].reshape(1),
        [X],
    ),
}
FORWARD = {"rope": "_rope_kernel", "rope_packed": "_rope_kernel"}


class Exhausted:
    """Stands for a kernel; counts its launches. after: launches that succeed."""

    def __init__(self, kernel, after):
        self.kernel, self.after, self.launches = kernel, after, 0

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.launches += 1
            if self.launches > self.after:
                raise language.OutOfResources(104_448, 101_376, "shared memory")
            return self.kernel[grid](*arguments, **options)

        return launch


@pytest.fixture(autouse=True)
def nothing_exhausted(monkeypatch):
    monkeypatch.setattr(exhausted, "REASONS", {})


@pytest.mark.parametrize("operation", CASES)
def test_backward(operation, monkeypatch):
    module, name, called, inputs = CASES[operation]
    # The rotary kernel is also the one of the forward pass, which succeeds.
    planted = Exhausted(getattr(module, name), after=1 if operation in FORWARD else 0)
    monkeypatch.setattr(module, name, planted)
    kernel = called(dispatch.TABLE[operation][0].function)
    reference = called(dispatch.TABLE[operation][-1].function)
    assert_matches(kernel, reference, inputs)
    assert operation in exhausted.REASONS
    failed = planted.launches
    if operation not in FORWARD:  # the launch is not attempted again
        assert_matches(kernel, reference, inputs)
        assert planted.launches == failed == 1


@pytest.mark.parametrize("operation", CASES)
def test_forward(operation, monkeypatch):
    module, _, called, inputs = CASES[operation]
    planted = Exhausted(None, after=0)
    monkeypatch.setattr(module, FORWARD.get(operation, "_forward_kernel"), planted)
    kernel = called(dispatch.choose(operation, inputs[0]))
    reference = called(dispatch.TABLE[operation][-1].function)
    for _ in range(2):
        assert_matches(kernel, reference, inputs)
    assert planted.launches == 1
    assert dispatch.choose(operation, inputs[0]) is dispatch.TABLE[operation][-1].function
