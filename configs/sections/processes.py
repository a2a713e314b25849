"""The sections resources and parallelism: processes, and how training state is sharded over them."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from tunesmith.configs.sections.section import Section


class Resources(Section):
    """The training processes and their placement, on one machine or on a cluster."""

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Number of processes, one per GPU; on a CPU they share its cores. [min, max]: as many as fit, and fewer after a
    machine is lost. Null: one per GPU, or one per machine without GPUs."""
    nodes: PositiveInt | None = None
    """Number of machines; more than one requires a cluster. Null: all machines of the cluster."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs to use on each machine; 0 trains on the CPU. Null: all visible GPUs."""
    max_restarts: NonNegativeInt | None = None
    """Maximum number of restarts from the newest checkpoint after processes are killed or a machine is lost.
    Null: 3 with several processes, 0 with one."""


class Parallelism(Section):
    """Sharding of training state across processes: ZeRO (arXiv:1910.02054), through DeepSpeed."""

    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """0: nothing is sharded; 1: optimizer state; 2: also gradients; 3: also weights. auto: the lowest that fits."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where to keep optimizer state and fp32 master weights; none: on the compute device."""
    offload_params: Literal["none", "cpu", "nvme"] = "none"
    """Where to keep weights that are not in use (zero_stage 3 only); none: on the compute device."""
    nvme_path: str | None = None
    """Directory for nvme offloading, on a fast local disk of every node."""
    deepspeed_config: str | None = None
    """A DeepSpeed configuration file (JSON) for options without a recipe key. Values that contradict the recipe are
    errors."""
