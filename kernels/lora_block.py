"""The two halves of a LLaMA block before and after its attention, with LoRA adapters on frozen layers, fused into one
operation each (LoRA: Hu et al. 2021, arXiv:2106.09685).

T tokens, H hidden, I inputs, O outputs of a layer, R rank. Cheap values are recomputed in the backward pass instead of
saved: normed values from their input and one scale per token, the gated product from gate and up. A block of
SmolLM2-135M saves 25 KB per token this way, compared with 59 in torch and peft. Products accumulate in place, and
tokens are processed in equal parts of at most PASS_TOKENS, which bounds the recomputed tensors. 4-bit weights (nf4.py)
are dequantized once for all parts. Only the sums of the adapters' gradients depend on where parts end.

In bf16 the products take bf16, with the adapters cast once per call; norms and the sums of the adapters' gradients are
in fp32.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from tunesmith.kernels.language import equal_parts, rows_of, shaped
from tunesmith.kernels.lora_linear import dense_weight, lora_linear_reference
from tunesmith.kernels.nf4 import Nf4
from tunesmith.kernels.rms_norm import inverse_rms, rms_norm
from tunesmith.kernels.swiglu import swiglu

PASS_TOKENS = 512
"""Tokens per part in fp32; twice as many in bf16. On two Xeon cores six feed-forward halves (H 576, I 1536) in fp32
took as long as with all 2,048 tokens in one part (0.99 and 1.02 of it) and 5% less memory."""


class Adapted(NamedTuple):
    """A frozen linear layer and its LoRA adapter: y = x W^T + bias + scaling (x A^T) B^T."""

    weight_OI: Tensor | Nf4
    bias_O: Tensor | None
    a_RI: Tensor
    b_OR: Tensor
    scaling: float


def norm_lora_linears_reference(
    hidden_TH: Tensor, norm_H: Tensor, eps: float, weight_offset: float, layers: list[Adapted]
) -> tuple[Tensor, ...]:
    """Reference of `norm_lora_linears` in plain PyTorch. Same arguments and results."""
    normed_TH = rms_norm(hidden_TH, norm_H, eps, weight_offset=weight_offset)
    return tuple(lora_linear_reference(normed_TH, *layer) for layer in layers)


def norm_lora_linears(
    hidden_TH: Tensor, norm_H: Tensor, eps: float, weight_offset: float, layers: list[Adapted]
) -> tuple[Tensor, ...]:
    """Apply RMS norm and several adapted linear layers: query, key and value, or gate and up.

    hidden: [..., H] in fp32 or bf16, the dtype of the frozen weights; norm: [H], plus weight_offset. Returns a tensor
    [..., O] per layer. Gradients for hidden and adapters; the weights of norm and layers are frozen.
    """
    adapters = [matrix for layer in layers for matrix in (layer.a_RI, layer.b_OR)]
    return _NormLinears.apply(hidden_TH, norm_H, eps, weight_offset, layers, *adapters)  # type: ignore[return-value]


def gated_lora_linear_reference(gate_TI: Tensor, up_TI: Tensor, layer: Adapted) -> Tensor:
    """Reference of `gated_lora_linear` in plain PyTorch. Same arguments and results."""
    return lora_linear_reference(swiglu(gate_TI, up_TI), *layer)


def gated_lora_linear(gate_TI: Tensor, up_TI: Tensor, layer: Adapted) -> Tensor:
    """Apply an adapted linear layer to silu(gate) * up (SwiGLU: Shazeer 2020, arXiv:2002.05202).

    gate, up: [..., I] in fp32 or bf16, the dtype of the frozen weights. Returns [..., O]. Gradients for gate, up and
    the adapter.
    """
    return _GatedLinear.apply(gate_TI, up_TI, layer, layer.a_RI, layer.b_OR)  # type: ignore[return-value]


def _parts(rows_TI: Tensor) -> list[slice]:
    """Parts of equal size in bytes, whatever the dtype."""
    return equal_parts(len(rows_TI), PASS_TOKENS * 4 // rows_TI.element_size())


def _normed(hidden_tH: Tensor, scale_t1: Tensor, weight_H: Tensor) -> Tensor:
    """The normed part, computed in fp32 and rounded once to the dtype of the hidden states."""
    return (hidden_tH * scale_t1).mul_(weight_H).to(hidden_tH.dtype)


def _add_product(sum_: Tensor, left: Tensor, right: Tensor, factor: float = 1.0) -> None:
    """sum += factor left @ right; products of another dtype than the sum are rounded to theirs before."""
    if sum_.dtype == left.dtype:
        sum_.addmm_(left, right, alpha=factor)
    else:
        sum_.add_(left @ right, alpha=factor)


class _Layers:
    """Adapted layers of the same input, for one forward or backward pass: all matrices dense and in the dtype of the
    products. S: sum of the ranks. The matrices A of all layers are multiplied at once."""

    def __init__(self, layers: Sequence[Adapted], like: Tensor):
        self.weights = [dense_weight(layer.weight_OI, like) for layer in layers]
        self.biases = [None if layer.bias_O is None else layer.bias_O.to(like.dtype) for layer in layers]
        self.b_by_layer = [layer.b_OR.detach().to(like.dtype) for layer in layers]
        self.scalings = [layer.scaling for layer in layers]
        self.ranks = [len(layer.a_RI) for layer in layers]
        self.a_SI = torch.cat([layer.a_RI.detach() for layer in layers]).to(like.dtype)

    def forward_(self, outputs: list[Tensor], x_tI: Tensor) -> None:
        """Write the output [t, O] of each layer for inputs [t, I]."""
        parts = (x_tI @ self.a_SI.T).split(self.ranks, 1)
        rows = zip(outputs, self.weights, self.biases, parts, self.b_by_layer, self.scalings, strict=True)
        for y_tO, weight_OI, bias_O, xa_tR, b_OR, scaling in rows:
            if bias_O is None:
                torch.mm(x_tI, weight_OI.T, out=y_tO)
            else:
                torch.addmm(bias_O, x_tI, weight_OI.T, out=y_tO)
            y_tO.addmm_(xa_tR, b_OR.T, alpha=scaling)


class _Sums:
    """Accumulates the gradients of the adapters over parts, in the dtype of their parameters."""

    def __init__(self, layers: Sequence[Adapted], like: Tensor):
        self.layers = _Layers(layers, like)
        self.da_SI = torch.zeros_like(self.layers.a_SI, dtype=layers[0].a_RI.dtype)
        self.db_by_layer = [torch.zeros_like(layer.b_OR) for layer in layers]

    def add(self, x_tI: Tensor, dy_by_layer: list[Tensor], dx_tI: Tensor | None) -> None:
        """Add one part, and write the gradient of its input to dx."""
        layers, g_by_layer = self.layers, []
        parts = (x_tI @ layers.a_SI.T).split(layers.ranks, 1)
        rows = zip(dy_by_layer, layers.weights, layers.b_by_layer, layers.scalings, parts, strict=True)
        for number, (dy_tO, weight_OI, b_OR, scaling, xa_tR) in enumerate(rows):
            g_by_layer.append((dy_tO @ b_OR).mul_(scaling))
            _add_product(self.db_by_layer[number], dy_tO.T, xa_tR, scaling)
            if dx_tI is not None and number == 0:
                torch.mm(dy_tO, weight_OI, out=dx_tI)
            elif dx_tI is not None:
                dx_tI.addmm_(dy_tO, weight_OI)
        g_tS = torch.cat(g_by_layer, 1)
        if dx_tI is not None:
            dx_tI.addmm_(g_tS, layers.a_SI)
        _add_product(self.da_SI, g_tS.T, x_tI)

    def gradients(self) -> list[Tensor]:
        """Return dA and dB of each layer in turn."""
        pairs = zip(self.da_SI.split(self.layers.ranks), self.db_by_layer, strict=True)
        return [gradient for pair in pairs for gradient in pair]


class _NormLinears(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden: Tensor,
        norm_H: Tensor,
        eps: float,
        offset: float,
        layers: list[Adapted],
        *adapters: Tensor,
    ) -> tuple[Tensor, ...]:
        hidden_TH = rows_of(hidden)
        scale_T1 = inverse_rms(hidden_TH, eps)
        weight_H = norm_H + offset if offset else norm_H
        ctx.save_for_backward(hidden, scale_T1, weight_H, *adapters)
        ctx.layers = layers
        outputs = [hidden_TH.new_empty(len(hidden_TH), len(layer.b_OR)) for layer in layers]
        together = _Layers(layers, hidden_TH)
        for part in _parts(hidden_TH):
            normed_tH = _normed(hidden_TH[part], scale_T1[part], weight_H)
            together.forward_([output_TO[part] for output_TO in outputs], normed_tH)
        return tuple(shaped(output_TO, hidden) for output_TO in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *doutputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, scale_T1, weight_H, *_ = ctx.saved_tensors
        hidden_TH = rows_of(hidden)
        dy_by_layer = [rows_of(doutput) for doutput in doutputs]
        sums = _Sums(ctx.layers, hidden_TH)
        dx_TH = torch.empty_like(hidden_TH) if ctx.needs_input_grad[0] else None
        for part in _parts(hidden_TH):
            hidden_tH, scale_t1 = hidden_TH[part], scale_T1[part]
            normed_tH = _normed(hidden_tH, scale_t1, weight_H)
            dx_tH = dx_TH[part] if dx_TH is not None else None
            sums.add(normed_tH, [dy_TO[part] for dy_TO in dy_by_layer], dx_tH)
            if dx_tH is not None:
                _norm_backward_(dx_tH, hidden_tH, scale_t1, weight_H)
        dhidden = dx_TH.view(hidden.shape) if dx_TH is not None else None
        return dhidden, None, None, None, None, *sums.gradients()


def _norm_backward_(dx_tH: Tensor, hidden_tH: Tensor, scale_t1: Tensor, weight_H: Tensor) -> None:
    """Overwrite the gradient of the normed values by that of the hidden states; computed in fp32."""
    wide_tH, hidden_tH = dx_tH.float(), hidden_tH.float()
    wide_tH.mul_(weight_H)
    mean_t1 = (wide_tH * hidden_tH).sum(-1, keepdim=True).mul_(scale_t1.square()).div_(-len(weight_H))
    wide_tH.addcmul_(hidden_tH, mean_t1).mul_(scale_t1)
    if wide_tH is not dx_tH:
        dx_tH.copy_(wide_tH)


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gate: Tensor, up: Tensor, layer: Adapted, a_RI: Tensor, b_OR: Tensor
    ) -> Tensor:
        ctx.save_for_backward(gate, up, a_RI, b_OR)
        ctx.layer = layer
        gate_TI, up_TI = rows_of(gate), rows_of(up)
        output_TO = gate_TI.new_empty(len(gate_TI), len(b_OR))
        alone = _Layers([layer], gate_TI)
        for part in _parts(gate_TI):
            alone.forward_([output_TO[part]], silu(gate_TI[part]).mul_(up_TI[part]))
        return shaped(output_TO, gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutput: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up, _, _ = ctx.saved_tensors
        gate_TI, up_TI, dy_TO = rows_of(gate), rows_of(up), rows_of(doutput)
        dgate_TI, dup_TI = torch.empty_like(gate_TI), torch.empty_like(up_TI)
        sums = _Sums([ctx.layer], gate_TI)
        for part in _parts(gate_TI):
            gate_tI, up_tI = gate_TI[part], up_TI[part]
            active_tI = silu(gate_tI)
            dproduct_tI = torch.empty_like(active_tI)
            sums.add(active_tI * up_tI, [dy_TO[part]], dproduct_tI)
            torch.mul(active_tI, dproduct_tI, out=dup_TI[part])
            torch.ops.aten.silu_backward.grad_input(dproduct_tI.mul_(up_tI), gate_tI, grad_input=dgate_TI[part])
        return dgate_TI.view(gate.shape), dup_TI.view(up.shape), None, *sums.gradients()
