"""Precision of a run on a GPU, by its compute capability; and whether the installed torch can use the GPU at all."""

from collections.abc import Sequence

from tunesmith.errors import InputError
from tunesmith.launcher.hardware import Gpu

BF16_CAPABILITY = (8, 0)
FP16_CAPABILITY = (7, 0)
"""The first compute capabilities with tensor cores for these types."""


def choose_gpu_precision(requested: str, capability: tuple[int, int]) -> tuple[str, str]:
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
