"""Rows of new tokens, trained alone while all other rows of embedding and head stay frozen.

peft stores them (`trainable_token_indices`), so that an adapter with them is loaded by plain peft. Its forward copies
the whole matrix and computes the gradient of all its rows; here the rows are looked up, and their columns of the
logits replaced.

T tokens, V vocabulary, H hidden, K trained rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import InputError
from tunesmith.kernels.trained_rows import TrainedRows

_ADAPTER = "default"


def row_targets(model: PreTrainedModel, rows: Sequence[int]) -> dict[str, list[int]] | None:
    """Return peft's `trainable_token_indices` for these rows of embedding and head; None without rows. InputError if
    the head is not a linear layer."""
    if not rows:
        return None
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise InputError(
            f"the rows of new tokens cannot be trained alone in {type(model).__name__}: its embedding is a "
            f"{type(embedding).__name__}, its head a {type(head).__name__}",
            where="key model.add_tokens",
            remedy="train all weights: method.kind: full",
        )
    names = {module: name for name, module in model.named_modules()}
    modules = [embedding] if head.weight is embedding.weight else [embedding, head]
    return {names[module]: list(rows) for module in modules}


def whole_rows(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Return a context in which embedding and head are whole on every rank, also with ZeRO-3: peft copies rows."""
    heads = [getattr(m, "weight", None) for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    sharded = list({id(weight): weight for weight in heads if hasattr(weight, "ds_id")}.values())
    if not sharded:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded)


def replace_forwards(model: nn.Module) -> None:
    """Compute with the trained rows without copying the matrix that they belong to."""
    for _, module in wrappers_of(model):
        layer = module.token_adapter
        kind = _embedded if isinstance(layer.get_base_layer(), nn.Embedding) else _logits
        module.forward = partial(kind, module, module.forward)


def wrappers_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the embedding and head that have trained rows, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, TrainableTokensWrapper):
            yield name, module


def frozen_layer(module: nn.Module) -> nn.Module:
    """Return the layer below trained rows, or the module itself. peft computes `weight` of a module with trained rows
    as a copy of the whole matrix."""
    return module.token_adapter.get_base_layer() if isinstance(module, TrainableTokensWrapper) else module  # type: ignore[union-attr]


def is_tied_wrapper(module: nn.Module | None) -> bool:
    """Whether this head shares its trained rows, and its weight, with the embedding."""
    return isinstance(module, TrainableTokensWrapper) and module.token_adapter.tied_adapter is not None


def linear_with_rows(head: nn.Module) -> tuple[nn.Linear, TrainedRows] | None:
    """Return the frozen linear layer of a head and its trained rows; None for any other head, or if adapters are
    disabled or merged."""
    if not isinstance(head, TrainableTokensWrapper):
        return None
    linear, trained = head.token_adapter.get_base_layer(), _rows_of(head.token_adapter)
    return (linear, trained) if isinstance(linear, nn.Linear) and trained is not None else None


def merged_weight(module: Any, dtype: torch.dtype) -> Tensor:
    """Return the whole weight of an embedding or head with its trained rows, in `dtype`; other rows keep their
    values."""
    layer = module.token_adapter
    weight = layer.get_base_layer().weight.detach().to(dtype)
    trained = _rows_of(layer)
    return weight if trained is None else trained.placed_in(weight)


def _rows_of(layer: TrainableTokensLayer) -> TrainedRows | None:
    if layer.disable_adapters or layer.merged or list(layer.active_adapters) != [_ADAPTER]:
        return None
    values_KH = layer.trainable_tokens_delta[_ADAPTER]
    rows_K = getattr(layer, "_rows_K", None)  # the same for every step: created once per device
    if rows_K is None or rows_K.device != values_KH.device:
        rows_K = torch.tensor(layer.token_indices[_ADAPTER], device=values_KH.device)
        layer._rows_K = rows_K  # type: ignore[assignment]
    return TrainedRows(rows_K, values_KH)


def _embedded(module: Any, original: Any, tokens: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
    """Embeddings of tokens [...], [..., H]. The rows are ascending."""
    trained = None if arguments or keywords else _rows_of(module.token_adapter)
    if trained is None:
        return original(tokens, *arguments, **keywords)
    frozen = module.token_adapter.get_base_layer()(tokens)
    place = torch.searchsorted(trained.rows_K, tokens).clamp(max=len(trained.rows_K) - 1)
    own = nn.functional.embedding(place, trained.values_KH).to(frozen.dtype)
    scale = module.token_adapter._get_embed_scale()  # Gemma 3 scales in the forward of its embedding
    if scale is not None:
        own = own * scale.to(own.dtype)
    return torch.where((trained.rows_K[place] == tokens)[..., None], own, frozen)


def _logits(module: Any, original: Any, hidden: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
    """Logits of hidden states [..., H], [..., V]."""
    trained = None if arguments or keywords else _rows_of(module.token_adapter)
    if trained is None:
        return original(hidden, *arguments, **keywords)
    head = module.token_adapter.get_base_layer()
    frozen = head(hidden)
    bias_K = None if head.bias is None else head.bias[trained.rows_K]
    own = nn.functional.linear(hidden, trained.values_KH.to(head.weight.dtype), bias_K)
    return frozen.index_copy(-1, trained.rows_K, own.to(frozen.dtype))
