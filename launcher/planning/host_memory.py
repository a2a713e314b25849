"""CPU memory of a node that trains on GPUs: its processes, what they offload, staged checkpoints."""

from tunesmith.configs.plan import Choice
from tunesmith.launcher.planning.batching import Batching, DoesNotFit
from tunesmith.launcher.planning.memory import Footprint
from tunesmith.report.wording import plural, size

PROCESS_BYTES = 3 << 30
"""Of a process with a CUDA context: libraries, pinned buffers, the loader. Assumed, not measured."""


def choose_host_memory(
    shape: Footprint, batching: Batching, *, per_node: int, memory_bytes: int
) -> tuple[int, list[Choice]]:
    """Return the CPU memory that remains on a node for staged checkpoints, and the line of the plan.

    memory_bytes: of the node. Raises DoesNotFit if offloaded state does not fit.
    """
    activations = shape.activations_on_host(batching.pass_tokens, batching.gradient_checkpointing)
    needed = per_node * (PROCESS_BYTES + shape.host + activations)
    processes = plural(per_node, "process", "processes")
    parts = f"{processes} with {size(PROCESS_BYTES)} each"
    if shape.host:
        parts += f", offloaded state {size(shape.host)} each"
    if activations:
        parts += f", offloaded activations {size(activations)} each"
    offloaded = shape.host + activations > 0
    if needed > memory_bytes and offloaded:
        raise DoesNotFit(
            needed_bytes=needed,
            memory_bytes=memory_bytes,
            where=f"CPU memory of a node: {parts}",
            remedy="offload less (parallelism.offload_optimizer, parallelism.offload_params, "
            "optimization.offload_activations), or distribute the run over more nodes",
        )
    choice = Choice(key="CPU memory per node", value="", reason=f"estimated: {parts}", num_bytes=needed)
    return memory_bytes - needed, [choice]
