"""Chooses the device of a rank, with its precision, memory and threads. Pure."""

from dataclasses import dataclass

from tunesmith.configs.plan import Choice, Plan
from tunesmith.configs.recipe import Recipe
from tunesmith.errors import InputError
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.precision import choose_precision, require_supported
from tunesmith.launcher.planning.step_time import Rates, rates_of
from tunesmith.launcher.planning.world import World


@dataclass(frozen=True)
class Device:
    """Device, precision, memory and threads of a rank. capability: of the GPU; None on a CPU. rates: None if
    they are unknown."""

    device: str
    capability: tuple[int, int] | None
    precision: str
    memory_bytes: int
    threads: int
    choices: list[Choice]
    rates: Rates | None


def choose_device(
    recipe: Recipe, hardware: Hardware, world: World, threads: int | None, earlier: Plan | None = None
) -> Device:
    """Choose a GPU if there is one that torch can use, otherwise the CPU, and the precision that is faster on it.

    world: its processes per node share a node. earlier: see `make_plan`.
    """
    per_node = world.per_node
    gpu = hardware.gpus[0] if hardware.gpus and hardware.torch_has_cuda else None
    if gpu is not None and per_node > len(hardware.gpus):
        raise InputError(
            f"{per_node} processes need {per_node} GPUs, but {len(hardware.gpus)} are visible",
            remedy="start fewer processes, or check CUDA_VISIBLE_DEVICES"
            + (" (a process sees only one part of a GPU, and NCCL connects no two)" if " MIG " in gpu.name else ""),
        )
    if gpu is not None:
        require_supported(gpu, hardware.torch_architectures)
        device, why = "cuda", f"{gpu.name}, capability {'.'.join(map(str, gpu.capability))}"
        memory, memory_why = min(g.free_bytes for g in hardware.gpus[:per_node]), "free on the GPU"
    else:
        device, why = "cpu", "no GPU is visible"
        if hardware.gpus:
            why = f"found {hardware.gpus[0].name}, but the installed torch was built without CUDA"
        memory, memory_why = hardware.memory_bytes // per_node, hardware.memory_source
    precision, precision_why = choose_precision(recipe, hardware, gpu.capability if gpu else None)
    if earlier is not None and earlier.compute.device == device:
        kept = next((choice for choice in earlier.choices if choice.key == "precision"), None)
        precision, precision_why = earlier.compute.precision, kept.reason if kept else "as planned before"
    per_rank = max(1, hardware.cores // per_node)
    threads_why = hardware.cores_source + (f", shared by {per_node} processes" if per_node > 1 else "")
    if threads is not None:
        per_rank, threads_why = threads, "OMP_NUM_THREADS"
    choices = [
        Choice(key="device", value=device, reason=why),
        Choice(key="memory", value="", reason=memory_why, num_bytes=memory),
        Choice(key="precision", value=precision, reason=precision_why),
        Choice(key="threads_per_rank", value=per_rank, reason=threads_why),
    ]
    rates = rates_of(hardware, device, precision, per_rank, world.nodes)
    return Device(device, gpu.capability if gpu else None, precision, memory, per_rank, choices, rates)
