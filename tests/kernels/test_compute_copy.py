"""bf16 copies of trained weights: one per weight, and never of an earlier step."""

import gc
import weakref

import torch

from tunesmith.kernels.compute_copy import compute_copy, expire_copies


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


def test_writes_that_no_version_counts_are_seen_after_the_copies_expire():
    """As torch's fused AdamW, bitsandbytes and DeepSpeed write."""
    weight = parameter(8, 4)
    compute_copy(weight, torch.bfloat16)
    version = weight._version
    weight.data.add_(1.0)
    assert weight._version == version
    expire_copies()
    assert_current(weight)
