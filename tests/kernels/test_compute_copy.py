"""bf16 copies of trained weights: one per weight, and never of an earlier step."""

import gc
import weakref

import pytest
import torch

from tunesmith.kernels.compute_copy import compute_copy
from tunesmith.kernels.dispatch import Kernels
from tunesmith.training.optim.flat_adamw import FlatAdamW


def parameter(*shape):
    return torch.nn.Parameter(torch.randn(*shape))


def assert_current(weight):
    assert torch.equal(compute_copy(weight, torch.bfloat16), weight.detach().bfloat16())


def test_a_weight_is_copied_once_until_it_changes():
    weight = parameter(8, 4)
    first = compute_copy(weight, torch.bfloat16)
    assert compute_copy(weight, torch.bfloat16) is first
    assert not first.requires_grad
    with torch.no_grad():
        weight.add_(1.0)
    assert_current(weight)
    assert compute_copy(weight, torch.bfloat16).data_ptr() == first.data_ptr()  # refreshed in place
    weight.data = torch.randn(8, 4)
    assert_current(weight)
    weight.data = torch.randn(4, 2)
    assert_current(weight)


def test_a_weight_of_the_dtype_is_not_copied():
    weight = parameter(3)
    assert compute_copy(weight, torch.float32).data_ptr() == weight.data_ptr()


def test_a_copy_does_not_keep_its_weight():
    weight = parameter(8, 4)
    held = weakref.ref(compute_copy(weight, torch.bfloat16))
    del weight
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("shapes", [[(8, 4)], [(8, 4), (5,), (3, 3)]])
@pytest.mark.parametrize("missing", [False, True])
def test_every_update_of_the_optimizer_is_seen(shapes, missing):
    weights = [parameter(*shape) for shape in shapes]
    options = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
    optimizer = FlatAdamW([{"params": weights, "weight_decay": 0.0}], options, Kernels(), None)
    for _ in range(3):
        before = [compute_copy(weight, torch.bfloat16).clone() for weight in weights]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        if missing:
            weights[-1].grad = None
        optimizer.step()
        updated = weights[:-1] if missing else weights
        assert not any(torch.equal(compute_copy(w, torch.bfloat16), b) for w, b in zip(updated, before, strict=False))
        for weight in weights:
            assert_current(weight)
