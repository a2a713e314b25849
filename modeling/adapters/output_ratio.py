"""How large the output of adapters is on real rows, compared with the output of the layers that they adapt."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from statistics import median
from typing import Any

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
import torch
from peft.tuners.lora import LoraLayer
from torch.utils.hooks import RemovableHandle

from tunesmith.modeling.loading.attention_choice import attention_of
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.mode import evaluating
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import autocast_to
from tunesmith.progress import advance


def has_adapters(model: torch.nn.Module) -> bool:
    """Whether the model has LoRA layers."""
    return any(isinstance(module, LoraLayer) for module in model.modules())


def output_ratio(
    model: torch.nn.Module, rows: Sequence[Sequence[int]], compute_dtype: torch.dtype | None = None
) -> float | None:
    """Return the median over adapted layers of the norm of the adapter's output divided by that of the layer's.

    rows: token ids, one forward pass each. Infinite if an output is not finite. None if the model has no adapters. The
    model runs in transformers' own blocks: fused ones do not call the layers.
    """
    norms = _Norms()
    handles = [norms.watch(layer) for layer in model.modules() if isinstance(layer, LoraLayer)]
    if not handles:
        return None
    inner: Any = causal_lm(model)
    device = next(inner.parameters()).device
    packed = inner.config._attn_implementation == PACKED
    attention = attention_of(inner, None) if packed else nullcontext()
    try:
        with evaluating(model), attention, autocast_to(compute_dtype, device), torch.no_grad():
            for row in rows:
                tokens_1T = torch.tensor([list(row)], device=device)
                options: dict[str, Any] = {"use_cache": False} if inner.can_generate() else {}
                if inner.config.is_encoder_decoder:
                    options["decoder_input_ids"] = tokens_1T
                inner(input_ids=tokens_1T, **options)
                advance()
    finally:
        for handle in handles:
            handle.remove()
    return norms.ratio()


class _Norms:
    """Sums of squares by layer, from forward hooks."""

    def __init__(self) -> None:
        self._sums: dict[int, list[float]] = {}

    def watch(self, layer: Any) -> RemovableHandle:
        """Measure the output of an adapted layer, and of the layer inside it for the same input. Returns the hook."""
        sums = self._sums.setdefault(id(layer), [0.0, 0.0])

        def measure(_module: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            # Inputs of experts: also which of them compute a token, and their weights.
            base = _first(layer.get_base_layer()(*inputs, **named)).double()
            sums[0] += float((_first(output).double() - base).square().sum())
            sums[1] += float(base.square().sum())

        return layer.register_forward_hook(measure, with_kwargs=True)

    def ratio(self) -> float | None:
        ratios = [_ratio(added, base) for added, base in self._sums.values() if added or base]
        return median(ratios) if ratios else None


def _first(output: Any) -> torch.Tensor:
    """The output of a layer; of a router, its logits."""
    return output[0] if isinstance(output, tuple) else output


def _ratio(added: float, base: float) -> float:
    if not math.isfinite(added) or not math.isfinite(base):
        return math.inf
    return math.sqrt(added / base) if base else math.inf
