"""Set-up of the CUDA device of a process, before its first CUDA call."""

import os

import torch

from tunesmith.errors import InputError


def set_up_cuda(local_rank: int) -> None:
    """Select the device of this process and set what the libraries read when they start. InputError if there is none
    for it.

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
    torch.cuda.set_device(device_index(local_rank, torch.cuda.device_count()))


def device_index(local_rank: int, num_devices: int) -> int:
    """Return the number of the device of a process among those that it sees.

    One that sees a single device uses it, whatever its local rank: its launcher has selected it by
    CUDA_VISIBLE_DEVICES, as `srun --gpus-per-task=1` does, or it is a part of a GPU (MIG), of which CUDA shows only one
    to a process. InputError if there are too few devices.
    """
    if num_devices == 1:
        return 0
    if local_rank < num_devices:
        return local_rank
    raise InputError(
        f"the process with LOCAL_RANK={local_rank} has no GPU: it sees {num_devices}",
        where=f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')}",
        remedy="start fewer processes per machine, or make more GPUs visible",
    )
