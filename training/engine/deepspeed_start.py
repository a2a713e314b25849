"""The only import of DeepSpeed: without log noise, on the planned device, without compiling extensions."""

import logging
import os
import sys
import warnings
from types import ModuleType

import torch
import torch.distributed as dist

from tunesmith.errors import InputError
from tunesmith.training.distributed.ranks import Ranks


def start_deepspeed(device: str, ranks: Ranks) -> ModuleType:
    """Import and initialize DeepSpeed. InputError if it is not installed."""
    os.environ["DS_ACCELERATOR"] = "cuda" if device == "cuda" else "cpu"
    # torch warns in every process of two deprecated collectives that DeepSpeed uses.
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use", category=FutureWarning)
    try:
        import deepspeed
    except ImportError as error:
        raise InputError(
            "parallelism.zero_stage above 0 needs DeepSpeed, which is not installed",
            where=f"python {sys.executable}",
            remedy="pip install 'tunesmith[deepspeed]', or set parallelism.zero_stage: 0",
        ) from error
    # It warns of optimizers that it did not test, and of skipped steps, which the run's events report.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On a CPU DeepSpeed would compile a shared-memory extension at its first start, which takes minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))
    if not dist.is_initialized():  # DeepSpeed requires a process group, even for a single rank
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    deepspeed.init_distributed(dist_init_required=False)
    return deepspeed


def stop_deepspeed() -> None:
    """Undo DeepSpeed's global changes: with stage 3 it replaces torch's linear function."""
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

    linear = getattr(InsertPostInitMethodToModuleSubClasses, "linear_bk", None)
    if linear is not None:
        torch.nn.functional.linear = linear
