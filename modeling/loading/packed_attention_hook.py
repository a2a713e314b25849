"""Registers packed attention with transformers: attention within documents that are concatenated in one stream.

The model's forward gets `documents`, and optionally the run's `kernels`, as keyword arguments and passes them to every
attention layer (as transformers does for models that use its attention interface). No mask is created: a dense one
would be quadratic in the tokens of the stream.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface

from tunesmith.errors import RunFault
from tunesmith.kernels.dispatch import Kernels, choose
from tunesmith.kernels.varlen_attention import Documents
from tunesmith.modeling.loading.attention_inputs import MaskRule, demands_of, mask_rule, tempered
from tunesmith.modeling.loading.keyword_passing import stored_keywords

PACKED = "tunesmith_packed"
"""Name of this attention implementation in transformers."""


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: MaskRule | Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    documents: Documents | None = None,
    kernels: Kernels | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention function called by transformers. query: [1, H, T, D]; key: [1, K, T, D]; value: [1, K, T, E]; s_aux:
    [H], attention sinks; returns [1, T, H, E] in the query's dtype.

    RunFault if the documents are missing (attention would silently cross documents), or the model passes a mask or an
    argument that is not known here.
    """
    if documents is None:
        stored = stored_keywords(module)
        documents, kernels = stored.get("documents"), stored.get("kernels")
    if documents is None or isinstance(attention_mask, Tensor):
        raise RunFault(
            "packed attention was called without documents, or with an attention mask",
            where=type(module).__name__,
            remedy="call the model through tunesmith's CausalLoss, or set another attention implementation first",
        )
    demands = demands_of(module, attention_mask, sliding_window, others)
    if demands.reason:
        raise RunFault(f"this model cannot be trained on packed rows: {demands.reason}", where=type(module).__name__)
    options: dict[str, Any] = {"scale": scaling, "dropout": dropout, "window": demands.window, "causal": demands.causal}
    size = value.shape[-1]
    if softcap is not None or s_aux is not None:
        options |= {"softcap": softcap, "sinks": s_aux}
    elif query.shape[-1] != size:  # MLA: flash attention has one head size; zeros change no score and no output
        options["scale"] = query.shape[-1] ** -0.5 if scaling is None else scaling
        query, key, value = _of_one_size(query, key, value)
    query = tempered(module, query, documents.positions)
    if demands.chunk is not None:
        documents = documents.chunks(demands.chunk)
    attend = (kernels.choose if kernels is not None else choose)("packed_attention", query)
    output_BHTE = attend(query, key, value, documents, **options)
    return output_BHTE[..., :size].transpose(1, 2), None


def _of_one_size(*tensors: Tensor) -> list[Tensor]:
    """The tensors with zeros appended to each head, up to the largest head size."""
    size = max(tensor.shape[-1] for tensor in tensors)
    return [tensor if tensor.shape[-1] == size else pad(tensor, (0, size - tensor.shape[-1])) for tensor in tensors]


AttentionInterface.register(PACKED, packed_attention_forward)
AttentionMaskInterface.register(PACKED, mask_rule)
