"""Time of every kernel at the sizes of LLaMA 8B, forward and backward apart, against goals; and compared with eager
torch, torch.compile and Liger.

Goals are times on an H200 with a copy rate of 4.3 TB/s and a GEMM rate of 790 TFLOP/s; on another GPU they are scaled
by the rates that the stage `machine` measured there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.device_time import kernel_seconds, rotation
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting
from benchmarks.liger_kernels import liger
from tunesmith.kernels.dispatch import TABLE, Implementation, Kernels
from tunesmith.kernels.parity_examples import EXAMPLES, Call, Maker, Sizes

REFERENCE_RATES = {"copy_bytes_per_s": 4.3e12, "gemm_flops": 790e12}
NOT_TIMED = {"trained_linear", "trained_embedding", "norm_lora_linears", "gated_lora_linear"}
"""On a GPU these are the references."""


@dataclass(frozen=True)
class Timed:
    """An operation at the sizes to time. forward_us, backward_us: goals; both_us: both together, of a loss.
    rate: what bounds it."""

    operation: str
    example: int = 0
    forward_us: float | None = None
    backward_us: float | None = None
    both_us: float | None = None
    rate: str = "copy_bytes_per_s"
    trains_head: bool = False

    @property
    def name(self) -> str:
        suffix = " (H=128)" if self.operation == "rms_norm" and self.example else ""
        return self.operation + suffix + (" (trained weight)" if self.trains_head else "")


TIMED = (
    Timed("rms_norm", forward_us=35, backward_us=58),
    Timed("rms_norm", example=1),
    Timed("add_rms_norm", forward_us=70, backward_us=72),
    Timed("layer_norm"),
    Timed("swiglu", forward_us=178, backward_us=300),
    Timed("geglu"),
    Timed("rope", forward_us=46, backward_us=46),
    Timed("cross_entropy", both_us=1650),
    Timed("linear_cross_entropy", both_us=26000, rate="gemm_flops"),
    Timed("linear_cross_entropy", both_us=39000, rate="gemm_flops", trains_head=True),
    Timed("nf4_dequantise", forward_us=39),
    Timed("packed_attention"),
    Timed("lora_linear"),
    Timed("rope_packed"),
    Timed("swiglu_packed"),
    Timed("adamw"),
    Timed("adamw_8bit"),
)
LORA_SHARE = 1.03
"""Goal: a layer with an adapter of rank 16 takes at most 3% more than the layer alone."""


def run(setting: Setting, record: Record) -> None:
    torch.manual_seed(0)
    scale = {name: REFERENCE_RATES[name] / rate for name, rate in setting.rates.items()} or None
    if scale is None:
        record.leave_out("goals", "the rates of this machine are unknown: run the stage machine before")
    kernels = Kernels()
    for timed in TIMED if not setting.short else TIMED[:1]:
        taken = time_of(setting, timed, lambda tensor, name=timed.operation: kernels.chosen(name, tensor))
        record.figure(f"{timed.name}, us", taken)
        if scale is not None and not setting.rehearsal:
            against_goals(record, timed, taken, scale[timed.rate])
        free(setting)
    record.check("operations timed", len(record.content["figures"]), "at least", 1 if setting.short else len(TIMED))
    if not setting.short:
        lora_share(setting, record)


def sizes(setting: Setting, timed: Timed) -> Sizes:
    tokens, hidden, inner, heads, key_heads, head_size, vocab = setting.size(
        (8192, 4096, 14336, 32, 8, 128, 128256), (4, 64, 128, 4, 2, 16, 131)
    )
    dtype = torch.bfloat16
    return Sizes(
        *(tokens, hidden, inner, heads, key_heads, head_size, vocab),
        rank=16,
        dtype=dtype,
        device=setting.device,
        head_dtype=dtype,
        residual_dtype=dtype,
        trains_head=timed.trains_head,
    )


def time_of(setting: Setting, timed: Timed, choose: Callable[[Tensor], Implementation]) -> dict[str, Any]:
    """Microseconds of forward and, where the operation has gradients, backward, of the implementation chosen."""
    timer, maker = setting.timer(), EXAMPLES[timed.operation][timed.example]
    sets = list(examples(setting, timed, maker, timer.cache_bytes))
    implementation = choose(sets[0][0][0])
    calls = [partial(called(implementation.function), *leaves) for leaves, called in sets]
    repeats = setting.size(20, 1)
    taken: dict[str, Any] = {"implementation": implementation.name}
    if timed.both_us is not None:
        both = [both_ways(call, leaves) for call, (leaves, _) in zip(calls, sets, strict=True)]
        return {**taken, "both": 1e6 * kernel_seconds(timer, both, repeats=repeats)}
    taken["forward"] = 1e6 * kernel_seconds(timer, calls, repeats=repeats)
    if any(tensor.requires_grad for tensor in sets[0][0]):
        backward = [backward_of(call, leaves) for call, (leaves, _) in zip(calls, sets, strict=True)]
        taken["backward"] = 1e6 * kernel_seconds(timer, backward, repeats=repeats)
    return taken


def examples(
    setting: Setting, timed: Timed, maker: Maker, cache_bytes: int
) -> Iterator[tuple[list[Tensor], Callable[[Call], Call]]]:
    """Yield sets of inputs with how the operation is called with them, until they exceed the cache."""
    kept: list[Callable[[Call], Call]] = []

    def make() -> tuple[Tensor, ...]:
        generator = torch.Generator(setting.device).manual_seed(len(kept))
        tensors, trained, called = maker(replace(sizes(setting, timed)), generator)
        kept.append(called)
        return tuple(t.requires_grad_(wants) for t, wants in zip(tensors, trained, strict=True))

    for tensors in rotation(make, cache_bytes):
        yield list(tensors), kept[-1]


def backward_of(call: Callable[[], Any], leaves: list[Tensor]) -> Callable[[], object]:
    """The backward pass alone, which can be called again and again."""
    outputs = call()
    outputs = [o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o.requires_grad]
    directions = [torch.ones_like(output) for output in outputs]
    trained = [leaf for leaf in leaves if leaf.requires_grad]
    return lambda: torch.autograd.grad(outputs, trained, directions, retain_graph=True)


def both_ways(call: Callable[[], Any], leaves: list[Tensor]) -> Callable[[], object]:
    """Forward and backward in one call: a loss scales the gradient that its forward computed, which works once."""

    def run_both() -> object:
        loss, *_ = call()
        return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])

    return run_both


def against_goals(record: Record, timed: Timed, taken: dict[str, Any], scale: float) -> None:
    for direction, goal in (("forward", timed.forward_us), ("backward", timed.backward_us)):
        if goal is not None:
            record.goal(f"{timed.name} {direction}, us", taken[direction], "at most", goal * scale)
    if timed.both_us is not None:
        record.goal(f"{timed.name} forward and backward, us", taken["both"], "at most", timed.both_us * scale)


def lora_share(setting: Setting, record: Record) -> None:
    """Forward of a layer with an adapter, relative to the frozen layer alone."""
    timer, maker = setting.timer(), EXAMPLES["lora_linear"][0]
    sets = list(examples(setting, Timed("lora_linear"), maker, timer.cache_bytes))
    function = Kernels().choose("lora_linear", sets[0][0][0])
    adapted = [partial(called(function), *leaves) for leaves, called in sets]
    alone = [partial(torch.nn.functional.linear, leaves[0].detach(), leaves[1]) for leaves, _ in sets]
    repeats = setting.size(20, 1)
    share = kernel_seconds(timer, adapted, repeats=repeats) / kernel_seconds(timer, alone, repeats=repeats)
    record.figure("lora_linear forward, relative to the layer alone", share)
    if not setting.rehearsal:
        record.goal("lora_linear forward, relative to the layer alone", share, "at most", LORA_SHARE)


def compared(setting: Setting, record: Record) -> None:
    """A stage of its own: eager torch, torch.compile and Liger at the same sizes."""
    others = liger()
    if not others:
        record.leave_out("Liger", "liger-kernel is not installed")
    for name in ("rms_norm", "swiglu", "rope", "cross_entropy") if not setting.rehearsal else ("swiglu",):
        reference = TABLE[name][-1].function
        entrants: dict[str, Callable[..., Any]] = {"eager": reference, "compiled": torch.compile(reference)}
        entrants |= {"liger": others[name]} if name in others else {}
        entrants["ours"] = TABLE[name][0].function
        taken = {}
        for who, function in entrants.items():
            try:
                entry = Implementation(who, function, lambda _tensor: True)
                taken[who] = time_of(setting, Timed(name), lambda _tensor, entry=entry: entry)
            except Exception as error:  # another library's fault is a result, too
                record.leave_out(f"{name}: {who}", f"{type(error).__name__}: {error}".splitlines()[0][:200])
            free(setting)
        record.figure(f"{name}, us", taken)
        record.check(f"{name}: ours is timed", "ours" in taken, "equals", True)


def free(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.empty_cache()
