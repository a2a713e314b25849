"""Keep what the backward pass needs in pinned host memory instead of GPU memory.

The forward pass copies every tensor that autograd saves to the host, and the backward pass copies it back: a GPU then
holds the activations of one block at a time. With activation checkpointing the saved tensors are the inputs of the
blocks. Copies are queued on the stream that computes, so they are ordered with the operations that write and read the
tensors; pinned memory is kept by torch and used again in the next pass.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

MIN_BYTES = 1 << 16
"""Smaller tensors (masks of few documents, statistics of norms) stay: copying them costs a launch each."""


def keep_activations_on_host(module: nn.Module, *, device_type: str = "cuda") -> None:
    """Make the module's forward keep what autograd saves on the host, in training mode.

    Weights and buffers of the module are not copied. device_type: of the tensors to move; tensors of other devices
    stay where they are. Gradients are bit-identical.
    """
    forward: Callable[..., Any] = module.forward
    store = _HostStore(module, device_type)

    @wraps(forward)
    def offloading(*arguments: Any, **keywords: Any) -> Any:
        if not module.training or not torch.is_grad_enabled():
            return forward(*arguments, **keywords)
        store.note_weights()
        with torch.autograd.graph.saved_tensors_hooks(store.to_host, store.to_device):
            return forward(*arguments, **keywords)

    module.forward = offloading


class _HostStore:
    """The two hooks. module: whose weights stay on the device."""

    def __init__(self, module: nn.Module, device_type: str):
        self._module, self._device_type = module, device_type
        self._weights: frozenset[int] = frozenset()

    def note_weights(self) -> None:
        """Note where the weights are: optimizers and loaders may have replaced their storage since the last pass."""
        tensors = [*self._module.parameters(), *self._module.buffers()]
        self._weights = frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)

    def to_host(self, tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        moves = tensor.device.type == self._device_type and tensor.nbytes >= MIN_BYTES
        if not moves or tensor.untyped_storage().data_ptr() in self._weights:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        host.copy_(tensor, non_blocking=True)
        return tensor.device, host

    def to_device(self, saved: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        device, host = saved
        return host.to(device, non_blocking=True) if device.type != "cpu" else host
