"""PyTorch's flight recorder: which collective a rank is in. NCCL's collectives run on the device: the stack of a rank
shows only that it waits for the device, not for other ranks.
"""

import json
import os
from typing import Any

BUFFER = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
"""Variables of the number of recorded collectives, newest name first; the recorder is off with 0."""
NUM_ENTRIES = "2000"


def enable_flight_recorder() -> None:
    """Record collectives; before the process group is created. What the user has set is kept."""
    if not any(name in os.environ for name in BUFFER):
        os.environ[BUFFER[0]] = NUM_ENTRIES


def pending_collective() -> str:
    """Return the oldest collective of this rank that has not completed, such as `nccl:all_reduce number 17 (Float
    [4096])`; empty if there is none, or no recorder."""
    import torch

    c10d: Any = getattr(torch._C, "_distributed_c10d", None)
    dump = getattr(c10d, "_dump_fr_trace_json", None) or getattr(c10d, "_dump_nccl_trace_json", None)
    if dump is None:
        return ""
    try:
        entries = json.loads(dump(includeCollectives=True, onlyActive=True)).get("entries", [])
    except (ValueError, AttributeError, RuntimeError):
        return ""
    return next((description(entry) for entry in entries if is_pending(entry)), "")


def is_pending(entry: dict[str, Any]) -> bool:
    """Whether a recorded collective has not completed. gloo marks them only as retired, NCCL by their state as well."""
    return entry.get("state") != "completed" and not entry.get("retired")


def description(entry: dict[str, Any]) -> str:
    """Return name, number within its process group, dtype and shape of a recorded collective."""
    number = entry.get("p2p_seq_id" if entry.get("is_p2p") else "collective_seq_id", "?")
    inputs = zip(entry.get("input_dtypes") or (), entry.get("input_sizes") or (), strict=False)
    tensors = ", ".join(f"{dtype} {shape}" for dtype, shape in list(inputs)[:2])
    return f"{entry.get('profiling_name', 'a collective')} number {number}" + (f" ({tensors})" if tensors else "")
