"""Precision of a run: on a GPU by its compute capability, on a CPU by a measurement; and whether the installed torch
can use a GPU at all."""

from collections.abc import Sequence

from tunesmith.configs.recipe import Recipe
from tunesmith.errors import InputError
from tunesmith.kernels.resources import BF16_CAPABILITY, FP16_CAPABILITY
from tunesmith.launcher.hardware import Gpu, Hardware
from tunesmith.launcher.product_rates import BF16_FLAGS

BF16_GAIN = 1.25
"""bf16 is chosen on a CPU if its matrix products are at least this much faster: it rounds, and the rest of a step gains
nothing."""


def choose_precision(recipe: Recipe, hardware: Hardware, capability: tuple[int, int] | None) -> tuple[str, str]:
    """Choose fp32, bf16 or fp16, with the reason. capability: compute capability of the GPU, None on a CPU."""
    if capability is not None:
        return _on_gpu(recipe.precision, capability)
    if recipe.precision == "fp16":
        return "fp16", "set in the recipe; CPUs compute fp16 slowly, it is for GPUs without bf16"
    faster, fact = _bf16_on_cpu(hardware)
    if recipe.precision == "auto":
        return ("bf16" if faster else "fp32"), fact
    return recipe.precision, f"set in the recipe; {fact}"


def _on_gpu(requested: str, capability: tuple[int, int]) -> tuple[str, str]:
    """Return the precision on a GPU, with the reason. requested: as in the recipe."""
    has = {"bf16": capability >= BF16_CAPABILITY, "fp16": capability >= FP16_CAPABILITY, "fp32": True}
    best = next(precision for precision, native in has.items() if native)
    name = f"capability {capability[0]}.{capability[1]}"
    fact = {
        "bf16": f"{name} has bf16 tensor cores",
        "fp16": f"{name} lacks bf16 tensor cores and has fp16 ones",
        "fp32": f"{name} lacks bf16 and fp16 tensor cores",
    }[best]
    precision = best if requested == "auto" else requested
    if requested != "auto":
        fact = f"set in the recipe; {fact}"
    if precision == "fp16":
        fact += "; the loss is scaled dynamically, steps that overflow are skipped"
    if precision == "bf16" and not has["bf16"]:
        fact += ", in which bf16 is many times slower"
    return precision, f"{fact}; products in fp32 are exact, without TF32"


def _bf16_on_cpu(hardware: Hardware) -> tuple[bool, str]:
    """Whether bf16 is faster than fp32 on this CPU, with the reason."""
    rates = hardware.product_rates
    if not hardware.cpu_flags & BF16_FLAGS:
        return False, "this CPU has no bf16 instructions (AMX, AVX-512); bf16 would be many times slower than fp32"
    if rates is None:
        return False, "this CPU has bf16 instructions; their speed was not measured"
    measured = f"matrix products measured on this CPU: {rates.bf16:.0f} GFLOP/s in bf16, {rates.fp32:.0f} in fp32"
    faster = rates.bf16 >= BF16_GAIN * rates.fp32
    return faster, measured if faster else f"{measured}; bf16 needs {BF16_GAIN:g} times the rate of fp32"


def require_supported(gpu: Gpu, architectures: Sequence[str]) -> None:
    """Raise InputError if the installed torch was not built for this GPU. architectures: for which it was built, such
    as sm_75 (machine code, also for later cards of the same major number) and compute_90 (compiled when loaded, for all
    later cards); empty: unknown."""
    if not architectures or any(_supports(architecture, gpu.capability) for architecture in architectures):
        return
    own = "sm_" + "".join(map(str, gpu.capability))
    raise InputError(
        f"the installed torch cannot use {gpu.name} ({own}): it was built for {', '.join(architectures)}",
        where="torch",
        remedy=f"install a torch build that lists {own} (for V100 and P100 those for CUDA 12.6, up to torch 2.14), or "
        "hide the GPU with CUDA_VISIBLE_DEVICES= to train on the CPU",
    )


def _supports(architecture: str, capability: tuple[int, int]) -> bool:
    kind, _, digits = architecture.partition("_")
    number = "".join(filter(str.isdigit, digits))
    if not number:
        return False
    built = int(number[:-1] or 0), int(number[-1])
    if not digits.isdigit():  # sm_90a: for this card only
        return built == capability
    return built <= capability and (kind == "compute" or built[0] == capability[0])
