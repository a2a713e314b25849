"""Attention over documents: which backend torch chooses, what a new length costs, the error and the time of one
variable-length launch compared with one launch per document."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.recipes import DOCUMENTS
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting
from tunesmith.kernels.packed_attention import packed_attention, packed_attention_varlen
from tunesmith.kernels.varlen_attention import Documents

Heads = tuple[int, int, int]
"""Query heads, key heads, head size."""


def run(setting: Setting, record: Record) -> None:
    heads = setting.size((32, 8, 128), (4, 2, 16))
    lengths = setting.size([301, 302, 303], [21, 22, 23])
    for cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        name = "cuDNN allowed" if cudnn else "cuDNN off"
        record.figure(f"backend, {name}", backend(setting, heads))
        record.figure(f"seconds of new lengths, {name}", new_lengths(setting, heads, lengths))
    chosen = record.content["figures"]["backend, cuDNN off"]
    record.check("with cuDNN off another backend is chosen", chosen != "CUDNN_ATTENTION", "equals", True)
    with variable_length(setting):
        errors(setting, record)
        times(setting, record, heads)


@contextmanager
def variable_length(setting: Setting) -> Iterator[None]:
    """In a rehearsal a dense form computes torch's variable-length operators, which have CUDA kernels only."""
    if setting.rehearsal:
        from tests.kernels.flash_on_cpu import flash_on_cpu

        context: Any = flash_on_cpu()
    else:
        context = nullcontext()
    with context:
        yield


def drawn(setting: Setting, heads: Heads, num_tokens: int, seed: int) -> list[Tensor]:
    """Query, key and value, laid out like projections: bf16, and fp32 in a rehearsal, whose stand-in for torch's
    operators rounds more often in bf16 than they do."""
    dtype = setting.size(torch.bfloat16, torch.float32)
    generator = torch.Generator(setting.device).manual_seed(seed)
    counts = (heads[0], heads[1], heads[1])
    return [
        torch.randn(1, num_tokens, count, heads[2], device=setting.device, generator=generator)
        .to(dtype)
        .transpose(1, 2)
        for count in counts
    ]


def backend(setting: Setting, heads: Heads) -> str:
    """Name of the backend that torch's dispatcher prefers for one document."""
    query, key, value = drawn(setting, heads, setting.size(512, 32), seed=0)
    choice = torch.ops.aten._fused_sdp_choice(query, key, value, is_causal=True, enable_gqa=heads[0] != heads[1])
    return SDPBackend(choice).name  # pyright: ignore[reportCallIssue]


def new_lengths(setting: Setting, heads: Heads, lengths: list[int]) -> list[float]:
    """Seconds of forward and backward at each length's first use; a warm-up at another length comes before."""
    seconds = []
    for number, length in enumerate([lengths[0] - 1, *lengths]):
        leaves = [t.requires_grad_() for t in drawn(setting, heads, length, seed=number)]
        setting.synchronize()
        started = time.perf_counter()
        query, key, value = leaves
        scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=heads[0] != heads[1]
        ).sum().backward()
        setting.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def errors(setting: Setting, record: Record) -> None:
    """Error of the variable-length form against fp64, at most twice that of flash attention document by document."""
    generator = random.Random(0)
    shapes: list[Heads] = setting.size([(32, 8, 128), (9, 3, 64), (8, 8, 256), (4, 4, 40)], [(4, 2, 16), (2, 2, 8)])
    cases, worst = setting.size(6, 3), 0.0
    for heads in shapes:
        for case in range(cases):
            limit = setting.size(700, 12)
            lengths = [generator.randrange(1, limit) for _ in range(generator.randrange(1, 9))]
            window = [None, None, max(1, limit // 5)][case % 3]
            worst = max(worst, ratio_of_errors(setting, heads, lengths, window))
    record.figure("packings compared", cases * len(shapes))
    record.check("error of one launch, relative to flash attention per document", worst, "at most", 2.0)


def ratio_of_errors(setting: Setting, heads: Heads, lengths: list[int], window: int | None) -> float:
    """Largest ratio over output and gradients."""
    documents, inputs = Documents(lengths), drawn(setting, heads, sum(lengths), seed=len(lengths))
    exact = outcome(packed_attention, [t.double() for t in inputs], documents, window)
    fused = outcome(packed_attention_varlen, inputs, documents, window)
    # A window with a mask excludes flash attention per document: its error without a window is the yardstick.
    single = outcome(packed_attention, inputs, documents, None)
    plain = exact if window is None else outcome(packed_attention, [t.double() for t in inputs], documents, None)
    ratios = []
    for values in zip(fused, exact, single, plain, strict=True):
        ours, ours_exact, per_document, single_exact = (t.double() for t in values)
        error = ((ours - ours_exact).norm() / ours_exact.norm().clamp(min=1e-30)).item()
        known = ((per_document - single_exact).norm() / single_exact.norm().clamp(min=1e-30)).item()
        # Documents of one token are exact in every form: the rounding of one value is then the yardstick.
        ratios.append(error / max(known, torch.finfo(inputs[0].dtype).eps / 2))
    return max(ratios)


Attention = Callable[..., Tensor]


def outcome(function: Attention, inputs: list[Tensor], documents: Documents, window: int | None) -> list[Tensor]:
    """Output and gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    output = function(*leaves, documents, window=window)
    direction = torch.cos(torch.arange(output.numel(), device=output.device)).view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, direction)]


def times(setting: Setting, record: Record, heads: Heads) -> None:
    """Milliseconds of forward and backward for each layout of a stream, after a warm-up, with launches."""
    for name, lengths in DOCUMENTS.items():
        scaled = lengths if not setting.rehearsal else [max(1, length // 64) for length in lengths]
        documents = Documents(scaled)
        leaves = [t.requires_grad_() for t in drawn(setting, heads, documents.num_tokens, seed=0)]
        forms: dict[str, Attention] = {"one launch": packed_attention_varlen, "per document": packed_attention}
        taken = {form: milliseconds(setting, function, leaves, documents) for form, function in forms.items()}
        record.figure(f"forward and backward ms, {name}", taken)
        if name == "27 documents" and not setting.rehearsal:
            ratio = taken["one launch"] / taken["per document"]
            record.goal("27 documents in one launch: time, relative to one launch per document", ratio, "at most", 1.0)


def milliseconds(setting: Setting, function: Attention, leaves: list[Tensor], documents: Documents) -> float:
    direction, taken = None, []
    for _ in range(setting.size(8, 2)):
        setting.synchronize()
        started = time.perf_counter()
        output = function(*leaves, documents)
        direction = torch.ones_like(output) if direction is None else direction
        torch.autograd.grad(output, leaves, direction)
        setting.synchronize()
        taken.append(time.perf_counter() - started)
    return 1e3 * sorted(taken)[len(taken) // 2]
