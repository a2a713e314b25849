"""Compares a kernel with its reference in fp64: values, gradients, unmodified inputs."""

import os

import torch

DEVICE = os.environ.get("TUNESMITH_KERNEL_DEVICE", "cpu")
"""Device of the kernels: the CPU with the interpreter, or cuda."""
RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
"""Limit of the difference relative to the norm. bf16: the interpreter truncates instead of rounding, up to 0.5%."""


def drawn(*shape, seed=0, dtype=torch.float32, scale=1.0):
    generator = torch.Generator("cpu").manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu") * scale).to(DEVICE, dtype)


def outcome(function, inputs, trained=None):
    """(outputs, gradients) for random output gradients. trained: inputs that require a gradient; None: all."""
    trained = range(len(inputs)) if trained is None else trained
    leaves = [t.detach().requires_grad_(i in trained) if t.is_floating_point() else t for i, t in enumerate(inputs)]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [drawn(*o.shape, seed=9 + i, dtype=torch.float64).to(o.dtype) for i, o in enumerate(outputs)]
    torch.autograd.backward(outputs, grads)
    return [o.detach() for o in outputs], [leaves[i].grad for i in trained]


def assert_near(actual, expected, tolerance):
    expected = expected.double()
    assert expected.norm() > 1e-6
    assert (actual.double() - expected).norm() <= tolerance * expected.norm()


def assert_matches(kernel, reference, inputs, trained=None):
    """Compare the kernel in the dtype of the inputs with the reference in fp64 on the same values."""
    dtype = inputs[0].dtype
    before = [t.clone() for t in inputs]
    outputs, gradients = outcome(kernel, inputs, trained)
    assert all(torch.equal(t, b) for t, b in zip(inputs, before, strict=True))
    wide = [t.double() if t.is_floating_point() else t for t in inputs]
    expected_outputs, expected_gradients = outcome(reference, wide, trained)
    for actual, expected in zip([*outputs, *gradients], [*expected_outputs, *expected_gradients], strict=True):
        assert actual.dtype == dtype
        assert_near(actual, expected, RELATIVE[dtype])
