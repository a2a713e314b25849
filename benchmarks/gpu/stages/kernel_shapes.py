"""Every entry of the kernel table against its reference at the sizes of real models, with memory poisoned by NaN.

`kernels.parity` is the comparison of a run, here at more sizes: widths, vocabularies, ranks and token counts around
the limits of the kernels' tiles, and logits whose offsets exceed 31 bits.
"""

from collections.abc import Iterator

import torch

from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting
from tunesmith.kernels.cross_entropy import cross_entropy_triton
from tunesmith.kernels.dispatch import Kernels
from tunesmith.kernels.parity import check
from tunesmith.kernels.parity_examples import EXAMPLES, Sizes

TOKENS = (1, 2, 32, 33, 255, 256, 257, 512, 513, 2048)
WIDTHS = ((128, 512), (4096, 14336), (5120, 13824), (8192, 28672))
VOCABULARIES = (50257, 128256)
RANKS = (8, 16, 64, 256)
HEADS = {"linear_cross_entropy", "cross_entropy"}


def run(setting: Setting, record: Record) -> None:
    poison()
    compare(setting, record)
    long_offsets(setting, record)


def poison() -> None:
    """Let every new tensor without values hold NaN (torch fills them in deterministic mode), so that a kernel which
    leaves out values cannot pass."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    assert torch.empty(4).isnan().all()


def compare(setting: Setting, record: Record) -> None:
    kernels, on_device = Kernels(), set()
    for sizes, operations in all_sizes(setting):
        compared = check(kernels, sizes, operations)
        on_device |= {parity.operation for parity in compared if parity.implementation == "triton"}
        worst = max(compared, key=lambda parity: parity.excess)
        dtype = str(sizes.dtype).removeprefix("torch.")
        where = f"{sizes.num_tokens} tokens, width {sizes.hidden}, vocabulary {sizes.vocab}, rank {sizes.rank}, {dtype}"
        what = f"{where}: worst of {len(compared)}, {worst.operation}" + (f", {worst.fault}" if worst.fault else "")
        record.check(what, worst.difference, "at most", worst.tolerance)
        if setting.device == "cuda":
            torch.cuda.empty_cache()
    record.check("operations with a Triton kernel compared", len(on_device), "at least", 10)


def all_sizes(setting: Setting) -> Iterator[tuple[Sizes, list[str]]]:
    """Yield sizes with the operations to compare at them, bf16 before fp32.

    Every token count with the first width, two with the others: between these the kernels' tiles change.
    """
    small = [name for name in EXAMPLES if name not in HEADS]
    tokens, widths = setting.size((TOKENS, WIDTHS), ((1, 33), ((64, 96),)))
    vocabularies, ranks = setting.size((VOCABULARIES, RANKS), ((131,), (8,)))
    for dtype in (torch.float32,) if setting.short else (torch.bfloat16, torch.float32):
        for hidden, inner in widths:
            for count in tokens if hidden == widths[0][0] else (tokens[3], tokens[-1]):
                yield sizes_of(setting, count, hidden, inner, vocabularies[0], ranks[0], dtype), small
        for rank in ranks[1:]:
            hidden, inner = widths[-1]
            yield sizes_of(setting, tokens[-2], hidden, inner, vocabularies[0], rank, dtype), ["lora_linear"]
        for vocabulary in vocabularies:
            for trains in (False, True):
                hidden, inner = widths[min(1, len(widths) - 1)]
                yield sizes_of(setting, tokens[-2], hidden, inner, vocabulary, ranks[0], dtype, trains), sorted(HEADS)


def sizes_of(
    setting: Setting,
    num_tokens: int,
    hidden: int,
    inner: int,
    vocab: int,
    rank: int,
    dtype: torch.dtype,
    trains_head: bool = False,
) -> Sizes:
    head_size = setting.size(128, 16)
    heads = max(1, hidden // head_size)
    key_heads = max(1, heads // 4)
    return Sizes(
        num_tokens=num_tokens,
        hidden=hidden,
        inner=inner,
        num_heads=heads,
        num_key_heads=key_heads,
        head_size=head_size,
        vocab=vocab,
        rank=rank,
        dtype=dtype,
        device=setting.device,
        head_dtype=dtype,
        residual_dtype=dtype,
        trains_head=trains_head,
    )


def long_offsets(setting: Setting, record: Record) -> None:
    """Cross-entropy over logits of more than 2^31 elements: the last rows must equal the same rows alone."""
    vocab = setting.size(128256, 257)
    num_tokens = (1 << 31) // vocab + 300 if not setting.rehearsal else 40
    generator = torch.Generator(setting.device).manual_seed(0)
    logits = torch.empty(num_tokens, vocab, dtype=torch.bfloat16, device=setting.device)
    logits.fill_(1.0)
    tail = slice(num_tokens - 30, None)
    logits[tail] = torch.randn(30, vocab, generator=generator, device=setting.device).to(torch.bfloat16)
    labels = torch.full((num_tokens,), -100, device=setting.device)
    labels[tail] = torch.randint(0, vocab, (30,), generator=generator, device=setting.device)
    alone = logits[tail].clone().requires_grad_()
    expected, _ = cross_entropy_triton(alone, labels[tail])
    expected.backward()
    leaf = logits.requires_grad_()
    loss, _ = cross_entropy_triton(leaf, labels)
    loss.backward()
    record.figure("elements of the logits", leaf.numel())
    # Each sum adds the same 30 losses, with zeros between: the order may differ.
    record.check("loss of the last rows", abs(loss.item() / expected.item() - 1.0), "at most", 1e-6)
    assert leaf.grad is not None
    assert alone.grad is not None
    record.check("gradient of the last rows, bitwise", torch.equal(leaf.grad[tail], alone.grad), "equals", True)
    record.check("gradient of the last rows is not zero", alone.grad.abs().sum().item() > 0, "equals", True)
    record.check(
        "gradient of masked rows",
        bool(leaf.grad[:1000].any()) if not setting.rehearsal else bool(leaf.grad[:10].any()),
        "equals",
        False,
    )
