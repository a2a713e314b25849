"""Machines with GPUs that are elsewhere, and GPUs by name: memory, capability and rates of the data sheets.

Products are dense ones in bf16 with sums in fp32 (fp16 below capability 8.0). Links are one direction of one GPU:
NVLink where the product has it, otherwise PCIe. Sources: NVIDIA's data sheets of the products (A100, H100, H200, L4,
L40S, A10, T4, V100, RTX A6000) and architecture papers (Ampere GA102, Ada, Blackwell) for GeForce.
"""

import re
from dataclasses import dataclass

from tunesmith.errors import InputError
from tunesmith.launcher.hardware import Gpu, Hardware

GIB = 1 << 30
FREE_SHARE = 0.97
"""Of the nominal memory, what a new process finds free: ECC, firmware and driver take the rest (an 80 GB H100 lists
81,559 of 81,920 MiB, an RTX 4090 24,564 of 24,576, before the driver's own)."""


@dataclass(frozen=True)
class GpuProduct:
    """memory_gib: nominal. tflops: dense products in 16 bits, 10^12 operations per second. memory_gb_s, link_gb_s: 10^9
    bytes per second."""

    name: str
    memory_gib: int
    capability: tuple[int, int]
    tflops: float
    memory_gb_s: float
    link_gb_s: float


PRODUCTS = {
    product.name: product
    for product in (
        GpuProduct("T4", 16, (7, 5), 65, 320, 16),
        GpuProduct("V100", 32, (7, 0), 125, 900, 150),
        GpuProduct("RTX3090", 24, (8, 6), 71, 936, 32),
        GpuProduct("RTX4090", 24, (8, 9), 165, 1008, 32),
        GpuProduct("RTX5090", 32, (12, 0), 209, 1792, 64),
        GpuProduct("A10", 24, (8, 6), 125, 600, 32),
        GpuProduct("L4", 24, (8, 9), 121, 300, 32),
        GpuProduct("L40S", 48, (8, 9), 362, 864, 32),
        GpuProduct("A6000", 48, (8, 6), 155, 768, 32),
        GpuProduct("A100-40GB", 40, (8, 0), 312, 1555, 300),
        GpuProduct("A100", 80, (8, 0), 312, 2039, 300),
        GpuProduct("H100", 80, (9, 0), 989, 3350, 450),
        GpuProduct("H200", 141, (9, 0), 989, 4800, 450),
        GpuProduct("B200", 180, (10, 0), 2250, 8000, 900),
    )
}


def product_of(gpu_name: str) -> GpuProduct | None:
    """The product of a GPU by the name that its driver reports, such as `NVIDIA H100 80GB HBM3`; None: not listed."""
    words = re.split(r"[\s_-]+", gpu_name.upper().replace("RTX ", "RTX"))
    for product in PRODUCTS.values():
        kind, _, memory = product.name.upper().partition("-")
        if any(word in (kind, f"RTX{kind}") for word in words) and (not memory or memory in words):
            return product
    return None


_SPEC = re.compile(
    r"(?:(?P<nodes>\d+)x)?(?:(?P<gpus>\d+)x)?(?P<kind>[A-Za-z][\w-]*|(?P<gib>\d+)G(?:i?B)?)", re.IGNORECASE
)


@dataclass(frozen=True)
class Machines:
    """Nodes with GPUs that are elsewhere. product: None if only the memory is known; times are then not estimated."""

    nodes: int
    gpus_per_node: int
    gpu: Gpu
    product: GpuProduct | None = None
    several_nodes: bool = True

    def num_nodes(self) -> int:
        return self.nodes

    def hardware(self, *, measure: bool = False) -> Hardware:
        """One node, with enough CPU memory and 8 cores for each GPU: these are not described."""
        cores = 8 * self.gpus_per_node
        memory = 4 * self.gpus_per_node * self.gpu.memory_bytes
        return Hardware(
            cores=cores,
            cores_source=f"assumed: 8 for each of {self.gpus_per_node} GPUs",
            memory_bytes=memory,
            memory_source="assumed: four times that of the GPUs",
            gpus=(self.gpu,) * self.gpus_per_node,
            torch_has_cuda=True,
        )


def parse_machines(text: str) -> Machines:
    """Parse `[[NODES x] GPUS x] KIND`, where KIND is a product or a memory size: `H100`, `8x80GB`, `2x8xA100`. With a
    size the capability is assumed to be 8.0. Raises InputError."""
    match = _SPEC.fullmatch(text.strip().replace(" ", ""))
    if match is None:
        raise _unknown(text)
    first, second = match["nodes"], match["gpus"]
    nodes, gpus = (int(first), int(second)) if first and second else (1, int(first or second or 1))
    if nodes < 1 or gpus < 1:
        raise InputError("the number of nodes and GPUs must be at least 1", where=f"--gpus {text}")
    if match["gib"]:
        gib = int(match["gib"])
        if gib < 1:
            raise InputError("the memory of a GPU must be at least 1 GB", where=f"--gpus {text}")
        return Machines(nodes, gpus, _gpu(f"GPU with {gib} GB", gib, (8, 0)))
    names = {name.lower().replace("-", ""): product for name, product in PRODUCTS.items()}
    product = names.get(match["kind"].lower().replace("-", ""))
    if product is None:
        raise _unknown(text)
    return Machines(nodes, gpus, _gpu(product.name, product.memory_gib, product.capability), product)


def _gpu(name: str, gib: int, capability: tuple[int, int]) -> Gpu:
    return Gpu(name, gib * GIB, int(FREE_SHARE * gib * GIB), capability)


def _unknown(text: str) -> InputError:
    return InputError(
        "these GPUs are not understood",
        where=f"--gpus {text}",
        remedy="write NODESxGPUSxKIND, such as 2x8xH100, 8x80GB or RTX4090; KIND is a memory size in GB or one of "
        + ", ".join(PRODUCTS),
    )
