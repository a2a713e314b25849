"""Installs the run's kernels in its model and compares them with their references before the first step."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from tunesmith.kernels import exhausted
from tunesmith.kernels.dispatch import Kernels
from tunesmith.kernels.nf4 import Nf4
from tunesmith.kernels.parity import Parity, check
from tunesmith.kernels.parity_examples import Sizes
from tunesmith.modeling.adapters.new_rows import frozen_layer
from tunesmith.modeling.parts import causal_lm, head_of
from tunesmith.modeling.patching.replacements import use_kernels
from tunesmith.modeling.quantization.four_bits import nf4_of

TOKENS = {"cpu": 32, "cuda": 512}
"""Tokens of the parity check: rows are alike, and the head takes most of the time (0.2 s for SmolLM2 on a CPU)."""


def install_kernels(
    model: nn.Module,
    kernels: Kernels,
    *,
    device: str,
    compute_dtype: torch.dtype | None,
    agree: Callable[[bool], bool] = bool,
    sharded: bool = False,
    also: Iterable[str] = (),
) -> list[Parity]:
    """Replace the model's forwards by the run's kernels, and disable each that differs from its reference by more than
    rounding.

    agree: collective that returns whether any rank found a fault, so that all ranks use the same kernels. sharded:
    weights are sharded over ranks (ZeRO-3), see `use_kernels`. also: operations used outside the model. Returns all
    comparisons.
    """
    operations = sorted(
        {"linear_cross_entropy", "packed_attention", *also, *use_kernels(model, kernels, sharded=sharded)}
    )
    results = check(kernels, sizes_of(model, device, compute_dtype), operations)
    failed = {parity.operation for parity in results if not parity.holds}
    for operation in operations:  # not only those in `results`: a host without Triton has fewer, and all must agree
        if agree(operation in failed or exhausted.reason(operation) is not None):
            kernels.switch_off(operation)
    return results


def sizes_of(model: nn.Module, device: str, compute_dtype: torch.dtype | None) -> Sizes:
    """Return the sizes of a causal language model for the parity check, with or without adapters."""
    inner = causal_lm(model)
    config: Any = inner.config.get_text_config(decoder=True)
    embeddings: Any = frozen_layer(inner.get_input_embeddings())
    hidden = _size(config, "hidden_size") or embeddings.embedding_dim
    heads = _size(config, "num_attention_heads") or 1  # state-space models have none: packed attention is not used
    head = getattr(frozen_layer(head_of(inner)), "weight", None)
    head_dtype = head.dtype if isinstance(head, torch.Tensor) and head.is_floating_point() else torch.float32
    dtype = compute_dtype or next(p.dtype for p in inner.parameters() if p.is_floating_point())
    width = _size(config, "intermediate_size") or _size(config, "n_inner") or 4 * hidden
    ranks = [len(weight) for name, weight in model.named_parameters() if ".lora_A." in name]
    return Sizes(
        num_tokens=TOKENS["cuda" if device.startswith("cuda") else "cpu"],
        hidden=hidden,
        inner=width,
        num_heads=heads,
        num_key_heads=_size(config, "num_key_value_heads") or heads,
        head_size=_size(config, "head_dim") or max(1, hidden // heads),
        vocab=config.vocab_size,
        rank=max(ranks, default=1) or 1,  # sharded weights (ZeRO-3) are empty here
        dtype=dtype,
        device=device,
        head_dtype=compute_dtype or head_dtype,
        residual_dtype=embeddings.weight.dtype,
        trains_head=isinstance(head, torch.Tensor) and head.requires_grad,
        four_bits=tuple(four_bits_by_shape(model).values()),
    )


def _size(config: Any, name: str) -> int | None:
    """The size of this name, or the largest where layers differ; None if the configuration does not state one for all
    layers."""
    try:
        value = getattr(config, name, None)
    except (ValueError, RuntimeError):  # transformers, for what only each layer's own configuration states
        return None
    sizes = value if isinstance(value, list | tuple) else [value]
    return max((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def four_bits_by_shape(model: nn.Module) -> dict[tuple[int, ...], Nf4]:
    """Return the first 4-bit weight of each shape; empty if weights are sharded."""
    by_shape: dict[tuple[int, ...], Nf4] = {}
    for parameter in model.parameters():
        weight = nf4_of(parameter)
        if weight is not None and weight.packed.numel():
            by_shape.setdefault(weight.shape, weight)
    return by_shape
