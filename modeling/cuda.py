"""Set-up of the CUDA device of a process, before its first CUDA call."""

import os

import torch


def set_up_cuda(local_rank: int) -> None:
    """Select the device of this process and set what the libraries read when they start.

    Segments that can grow let documents of many lengths share memory without fragmentation. cuDNN's attention is
    disabled: torch prefers it on Hopper and Blackwell, where it makes a new plan for every pair of lengths (about a
    second each), and is never deterministic.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the same variable
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_float32_matmul_precision("highest")  # some containers enable TF32 by a variable
    # Sums of products of large matrices may be split: in fp16 the parts would overflow.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.cuda.set_device(local_rank)
