"""These tests run Triton kernels in the interpreter, which must be enabled before triton is imported, or on a CUDA
device (TUNESMITH_KERNEL_DEVICE=cuda). They are therefore only collected in a separate process, started by
../test_interpreted.py."""

import os

import torch

_DEVICE = os.environ.get("TUNESMITH_KERNEL_DEVICE", "cpu")
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" or _DEVICE != "cpu" else ["test_*.py"]
if _DEVICE != "cpu":
    torch.set_default_device(_DEVICE)
