"""Examples for the parity check: inputs of every operation at the run's sizes and dtypes, drawn on the run's device.

T tokens (few: rows are alike), H hidden, I intermediate size, V vocabulary, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels.adamw import MOMENTS_BLOCK, unpacked
from tunesmith.kernels.linear_cross_entropy import linear_cross_entropy_reference
from tunesmith.kernels.lora_block import Adapted
from tunesmith.kernels.nf4 import Nf4, block_scales
from tunesmith.kernels.varlen_attention import Documents


@dataclass(frozen=True)
class Sizes:
    """Sizes of the run's model, with device and dtype of its computations."""

    num_tokens: int
    hidden: int
    inner: int
    num_heads: int
    num_key_heads: int
    head_size: int
    vocab: int
    rank: int
    dtype: torch.dtype
    device: str
    head_dtype: torch.dtype
    """Dtype of the output head's weights."""
    residual_dtype: torch.dtype
    """Dtype of the hidden states between layers: that of the embeddings, also under autocast."""
    trains_head: bool
    four_bits: tuple[Nf4, ...] = ()
    """Frozen 4-bit weights of the model, one of each shape."""


Call = Callable[..., Any]
Example = tuple[list[Tensor], list[bool], Callable[[Call], Call]]
"""Tensors, which of them require a gradient, and how the operation is called with them."""
Maker = Callable[[Sizes, torch.Generator], Example]


def _normal(sizes: Sizes, generator: torch.Generator, *shape: int) -> Tensor:
    """Normal values in fp32, drawn on the device."""
    return torch.randn(*shape, generator=generator, device=sizes.device)


def _drawn(
    sizes: Sizes, generator: torch.Generator, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None
) -> Tensor:
    return (_normal(sizes, generator, *shape) * scale).to(dtype or sizes.dtype)


def _integers(sizes: Sizes, generator: torch.Generator, limit: int, *shape: int) -> Tensor:
    return torch.randint(0, limit, shape, generator=generator, device=sizes.device)


def _uniform(sizes: Sizes, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, device=sizes.device)


def _norm(sizes: Sizes, generator: torch.Generator) -> Example:
    hidden = _drawn(sizes, generator, sizes.num_tokens, sizes.hidden, dtype=sizes.residual_dtype)
    weight = _drawn(sizes, generator, sizes.hidden, dtype=sizes.residual_dtype)
    return [hidden, weight], [True, True], lambda f: lambda x, w: f(x, w, 1e-5)


def _head_norm(sizes: Sizes, generator: torch.Generator) -> Example:
    """The norm of each head's query (Qwen 3): many short rows."""
    query = _drawn(sizes, generator, 1, sizes.num_tokens, sizes.num_heads, sizes.head_size)
    weight = _drawn(sizes, generator, sizes.head_size)
    return [query, weight], [True, True], lambda f: lambda x, w: f(x, w, 1e-5)


def _add_norm(sizes: Sizes, generator: torch.Generator) -> Example:
    dtype = sizes.residual_dtype
    hidden, residual = (_drawn(sizes, generator, sizes.num_tokens, sizes.hidden, dtype=dtype) for _ in range(2))
    weight = _drawn(sizes, generator, sizes.hidden, dtype=dtype)
    return [hidden, residual, weight], [True, True, True], lambda f: lambda x, r, w: f(x, r, w, 1e-5)


def _layer_norm(sizes: Sizes, generator: torch.Generator) -> Example:
    dtype = sizes.residual_dtype
    hidden = _drawn(sizes, generator, sizes.num_tokens, sizes.hidden, dtype=dtype)
    weight, bias = (_drawn(sizes, generator, sizes.hidden, dtype=dtype) for _ in range(2))
    return [hidden, weight, bias], [True] * 3, lambda f: lambda x, w, b: f(x, w, b, 1e-5)


def _rope(sizes: Sizes, generator: torch.Generator) -> Example:
    heads = (sizes.num_heads, sizes.num_key_heads)
    query, key = (_drawn(sizes, generator, 1, sizes.num_tokens, n, sizes.head_size).transpose(1, 2) for n in heads)
    angle = _uniform(sizes, generator, 1, sizes.num_tokens, sizes.head_size // 2).repeat(1, 1, 2) * 6.0
    tables = [table.to(sizes.dtype) for table in (angle.cos(), angle.sin())]
    return [query, key, *tables], [True, True, False, False], lambda f: f


def _rope_packed(sizes: Sizes, generator: torch.Generator) -> Example:
    heads = (sizes.num_heads, sizes.num_key_heads)
    width = (heads[0] + 2 * heads[1]) * sizes.head_size
    packed = _drawn(sizes, generator, 1, sizes.num_tokens, width)
    tables = _rope(sizes, generator)[0][2:]
    return [packed, *tables], [True, False, False], lambda f: lambda qkv, cos, sin: f(qkv, cos, sin, *heads)


def _packed_attention(sizes: Sizes, generator: torch.Generator) -> Example:
    """Three documents, one of a single token."""
    heads = (sizes.num_heads, sizes.num_key_heads, sizes.num_key_heads)
    tensors = [_drawn(sizes, generator, 1, sizes.num_tokens, n, sizes.head_size).transpose(1, 2) for n in heads]
    first = sizes.num_tokens // 3
    documents = Documents([first, 1, sizes.num_tokens - first - 1])
    return tensors, [True] * 3, lambda f: lambda q, k, v: f(q, k, v, documents)


def _gated_packed(sizes: Sizes, generator: torch.Generator) -> Example:
    return [_drawn(sizes, generator, sizes.num_tokens, 2 * sizes.inner)], [True], lambda f: f


def _gated(sizes: Sizes, generator: torch.Generator) -> Example:
    gate, up = (_drawn(sizes, generator, sizes.num_tokens, sizes.inner) for _ in range(2))
    return [gate, up], [True, True], lambda f: f


Weight = Callable[[Tensor], Tensor | Nf4]
"""Maps the first tensor of a layer to the weight that the operation takes: itself, or the 4-bit weight of its codes."""


def _adapted(
    sizes: Sizes, generator: torch.Generator, num_inputs: int, num_outputs: int
) -> tuple[list[Tensor], Weight]:
    """Weight, A and B, scaled so that the adapter's output is as large as the layer's. A 4-bit weight is one of the
    run's."""
    known = [weight for weight in sizes.four_bits if weight.shape == (num_outputs, num_inputs)]
    scale = num_inputs**-0.5
    if known:
        weight, of = known[0].packed, lambda codes: known[0]._replace(packed=codes)
        scale = (
            float(block_scales(known[0]).mean()) / 3.0
        )  # the largest of 64 values is at about 2.5 standard deviations
    else:
        weight, of = _drawn(sizes, generator, num_outputs, num_inputs, scale=scale), lambda numbers: numbers
    a = _drawn(sizes, generator, sizes.rank, num_inputs, scale=scale)
    return [weight, a, _drawn(sizes, generator, num_outputs, sizes.rank, scale=sizes.rank**-0.5)], of


def _lora_linear(sizes: Sizes, generator: torch.Generator) -> Example:
    hidden = _drawn(sizes, generator, sizes.num_tokens, sizes.hidden)
    layer, of = _adapted(sizes, generator, sizes.hidden, sizes.inner)
    return [hidden, *layer], [True, False, True, True], lambda f: lambda x, w, a, b: f(x, of(w), None, a, b, 2.0)


def _norm_lora_linears(sizes: Sizes, generator: torch.Generator) -> Example:
    hidden, norm = (tensor.to(sizes.dtype) for tensor in _norm(sizes, generator)[0])
    layer, of = _adapted(sizes, generator, sizes.hidden, sizes.inner)

    def called(function: Call) -> Call:
        return lambda x, n, w, a, b: function(x, n, 1e-5, 0.0, [Adapted(of(w), None, a, b, 2.0)])

    return [hidden, norm, *layer], [True, False, False, True, True], called


def _gated_lora_linear(sizes: Sizes, generator: torch.Generator) -> Example:
    layer, of = _adapted(sizes, generator, sizes.inner, sizes.hidden)

    def called(function: Call) -> Call:
        return lambda gate, up, w, a, b: function(gate, up, Adapted(of(w), None, a, b, 2.0))

    return [*_gated(sizes, generator)[0], *layer], [True, True, False, True, True], called


def _trained_linear(sizes: Sizes, generator: torch.Generator) -> Example:
    """Two calls with the same weight, like two passes of a step: the second accumulates into the first's gradient."""
    hidden = _drawn(sizes, generator, sizes.num_tokens, sizes.hidden)
    weight = _drawn(sizes, generator, sizes.inner, sizes.hidden, scale=sizes.hidden**-0.5)
    bias = _drawn(sizes, generator, sizes.inner)
    return [weight, bias, hidden], [True] * 3, lambda f: lambda w, b, x: (f(w, b, x), f(w, b, x.flip(0)))


def _trained_embedding(sizes: Sizes, generator: torch.Generator) -> Example:
    """Some tokens are repeated; one is padding."""
    weight = _drawn(sizes, generator, sizes.num_tokens, sizes.hidden)
    tokens = _integers(sizes, generator, sizes.num_tokens, sizes.num_tokens)
    return [weight], [True], lambda f: lambda w: (f(w, None, tokens), f(w, int(tokens[0]), tokens.flip(0)))


def _nf4_dequantise(sizes: Sizes, generator: torch.Generator) -> Example:
    """The run's largest 4-bit weight; a random one if the weights are sharded over ranks."""
    known = sizes.four_bits or (_drawn_nf4(sizes, generator),)
    largest = max(known, key=lambda weight: weight.packed.numel())

    def called(function: Call) -> Call:
        return lambda codes: function(largest._replace(packed=codes), sizes.dtype)

    return [largest.packed], [False], called


def _drawn_nf4(sizes: Sizes, generator: torch.Generator) -> Nf4:
    count = sizes.inner * sizes.hidden
    codes = _integers(sizes, generator, 256, -(-count // 2), 1).to(torch.uint8)
    scales = _uniform(sizes, generator, -(-count // 64)) + 0.5
    table_16 = torch.linspace(-1.0, 1.0, 16, device=sizes.device) ** 3
    return Nf4(codes, scales, table_16, (sizes.inner, sizes.hidden), dtype=sizes.dtype)


_UPDATE = {"learning_rate": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "step": 3}


def _adamw(sizes: Sizes, generator: torch.Generator) -> Example:
    """An adapter's A and a partial block. Compares the change of the parameter and both moments."""
    count = sizes.rank * sizes.hidden + 17
    tensors = [_normal(sizes, generator, count) for _ in range(3)]
    tensors.append(_uniform(sizes, generator, count))

    def called(function: Call) -> Call:
        def run(parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
            after, *moments = parameter.clone(), first.clone(), second.clone()
            function(after, gradient, *moments, **_UPDATE)
            return after - parameter, *moments

        return run

    return tensors, [False] * 4, called


def _adamw_8bit(sizes: Sizes, generator: torch.Generator) -> Example:
    """Like `_adamw`, with code tables spaced like those of training."""
    (parameter, gradient), count = _adamw(sizes, generator)[0][:2], sizes.rank * sizes.hidden + 17
    codes = _integers(sizes, generator, 256, 2, count).to(torch.uint8)
    scales = _uniform(sizes, generator, 2, -(-count // MOMENTS_BLOCK)) + 0.5
    line = torch.linspace(-1.0, 1.0, 257)[1:]
    tables = torch.stack((line**3, torch.linspace(0.0, 1.0, 256) ** 3))

    def called(function: Call) -> Call:
        def run(p: Tensor, g: Tensor, codes: Tensor, scales: Tensor, tables: Tensor) -> tuple[Tensor, ...]:
            after, codes, scales = p.clone(), codes.clone(), scales.clone()
            function(after, g, codes, scales, tables, **_UPDATE)
            return after - p, *(unpacked(codes[i], scales[i], tables[i]) for i in range(2))

        return run

    tensors = [parameter, gradient, *(t.to(sizes.device) for t in (codes, scales, tables))]
    return tensors, [False] * 5, called


def _head(sizes: Sizes, generator: torch.Generator) -> Example:
    hidden = _drawn(sizes, generator, sizes.num_tokens, sizes.hidden)
    weight = _drawn(sizes, generator, sizes.vocab, sizes.hidden, scale=sizes.hidden**-0.5, dtype=sizes.head_dtype)
    labels = _integers(sizes, generator, sizes.vocab, sizes.num_tokens)
    trained = [True, sizes.trains_head]
    return [hidden, weight], trained, lambda f: lambda x, w: f(x.to(w.dtype), w, labels)


def _logits(sizes: Sizes, generator: torch.Generator) -> Example:
    logits = _drawn(sizes, generator, sizes.num_tokens, sizes.vocab)
    labels = _integers(sizes, generator, sizes.vocab, sizes.num_tokens)
    return [logits], [True], lambda f: lambda z: f(z, labels)


EXAMPLES: dict[str, tuple[Maker, ...]] = {
    "rms_norm": (_norm, _head_norm),
    "add_rms_norm": (_add_norm,),
    "layer_norm": (_layer_norm,),
    "rope": (_rope,),
    "rope_packed": (_rope_packed,),
    "swiglu": (_gated,),
    "swiglu_packed": (_gated_packed,),
    "geglu": (_gated,),
    "lora_linear": (_lora_linear,),
    "norm_lora_linears": (_norm_lora_linears,),
    "packed_attention": (_packed_attention,),
    "gated_lora_linear": (_gated_lora_linear,),
    "nf4_dequantise": (_nf4_dequantise,),
    "trained_linear": (_trained_linear,),
    "trained_embedding": (_trained_embedding,),
    "adamw": (_adamw,),
    "adamw_8bit": (_adamw_8bit,),
    "linear_cross_entropy": (_head,),
    "cross_entropy": (_logits,),
}
REFERENCES: dict[str, Call] = {"linear_cross_entropy": linear_cross_entropy_reference}
"""References for operations whose last table entry is more than the plain formula."""
