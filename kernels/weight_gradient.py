"""Trained layers that accumulate the weight gradient directly into `weight.grad`.

T tokens, I inputs, O outputs of a layer, V vocabulary, H hidden.
    y = x W^T + b        dx = dy W        dW += dy^T x        db = sum dy
autograd creates a new dW in every backward pass and then adds it to `.grad`. Here the product itself accumulates (like
gradient_accumulation_fusion in Megatron-LM on a GPU), and an embedding updates only the rows of its tokens instead of
adding a table of zeros. Under autocast the products read one copy of the weight in autocast's dtype (compute_copy.py);
each product is rounded to that dtype, and their sum is in fp32.

The gradient does not pass through autograd: hooks on the weight, and engines that collect gradients by hooks, do not
see it, and `torch.autograd.grad` reports the weight as unused. Weights with hooks and non-leaf weights therefore use
torch's implementation.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.kernels.compute_copy import compute_copy
from tunesmith.kernels.language import product_type, rows_of

OPERATIONS = ("trained_linear", "trained_embedding")
"""Operations that cannot be used if an engine collects gradients by hooks."""


def trained_linear(weight_OI: Tensor, bias_O: Tensor | None, x_TI: Tensor) -> Tensor:
    """Return x W^T + b, [..., O]. x: [..., I]; weight: [O, I]; bias: [O] or None. The reference, in plain PyTorch."""
    return torch.nn.functional.linear(x_TI, weight_OI, bias_O)


def trained_linear_adding(weight_OI: Tensor, bias_O: Tensor | None, x_TI: Tensor) -> Tensor:
    """`trained_linear` whose backward pass accumulates into `weight.grad`. weight, bias: fp32; x: fp32, or any dtype
    under autocast. Returns the dtype of the products."""
    if _collects(weight_OI):
        return _Linear.apply(x_TI, weight_OI, bias_O, product_type(weight_OI))  # type: ignore[return-value]
    if torch.is_grad_enabled():
        return trained_linear(weight_OI, bias_O, x_TI)
    return _product(x_TI, weight_OI, bias_O, product_type(weight_OI))


def trained_embedding(weight_VH: Tensor, padding_index: int | None, tokens_T: Tensor) -> Tensor:
    """Return the embeddings of tokens, [..., H]. weight: [V, H]; tokens: int64 [...]; the row of padding_index gets no
    gradient. The reference, in plain PyTorch."""
    return torch.nn.functional.embedding(tokens_T, weight_VH, padding_index)


def trained_embedding_adding(weight_VH: Tensor, padding_index: int | None, tokens_T: Tensor) -> Tensor:
    """`trained_embedding` whose backward pass accumulates into the tokens' rows of `weight.grad`. weight: fp32."""
    if not _collects(weight_VH):
        return trained_embedding(weight_VH, padding_index, tokens_T)
    return _Embedding.apply(weight_VH, padding_index, tokens_T)  # type: ignore[return-value]


def _collects(weight: Tensor) -> bool:
    """Whether the weight is a leaf that requires a gradient and has no hooks."""
    if not (torch.is_grad_enabled() and weight.requires_grad and weight.is_leaf):
        return False
    return not weight._backward_hooks and not getattr(weight, "_post_accumulate_grad_hooks", None)


def _product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> Tensor:
    bias = None if bias_O is None else bias_O.detach().to(dtype)
    return torch.nn.functional.linear(x.to(dtype), compute_copy(weight_OI, dtype), bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        narrow = x.to(dtype)
        ctx.save_for_backward(narrow, weight_OI)
        ctx.weight_OI = weight_OI  # the leaf itself, which owns `.grad`
        ctx.input_dtype, ctx.bias_dtype = x.dtype, bias_O.dtype if bias_O is not None else None
        return _product(narrow, weight_OI, bias_O, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, _ = ctx.saved_tensors  # raises if the weight was modified since
        weight_OI, wants_x, wants_bias = ctx.weight_OI, ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        x_TI, dy_TO = rows_of(x), rows_of(dy)
        if weight_OI.grad is None:
            weight_OI.grad = torch.mm(dy_TO.T, x_TI).to(weight_OI.dtype)
        elif weight_OI.dtype == x_TI.dtype:
            weight_OI.grad.addmm_(dy_TO.T, x_TI)
        else:
            weight_OI.grad += torch.mm(dy_TO.T, x_TI)
        dx = dbias = None
        if wants_x:
            dx = (dy_TO @ compute_copy(weight_OI, x_TI.dtype)).view(x.shape).to(ctx.input_dtype)
        if wants_bias:
            dbias = dy_TO.sum(0, dtype=ctx.bias_dtype)
        return dx, None, dbias, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VH: Tensor, padding_index: int | None, tokens: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(tokens)
        ctx.weight_VH, ctx.padding_index = weight_VH, padding_index
        return torch.nn.functional.embedding(tokens, weight_VH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (tokens,) = ctx.saved_tensors
        weight_VH, tokens_T, dy_TH = ctx.weight_VH, tokens.reshape(-1), rows_of(dy)
        if ctx.padding_index is not None:
            padding = ctx.padding_index % len(weight_VH)
            dy_TH = dy_TH.masked_fill((tokens_T == padding)[:, None], 0.0)
        if weight_VH.grad is None:
            weight_VH.grad = torch.zeros_like(weight_VH)
        weight_VH.grad.index_add_(0, tokens_T, dy_TH)
        return None, None, None
