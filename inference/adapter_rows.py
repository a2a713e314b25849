"""Embeddings of new tokens in adapters (peft's `trainable_token_indices`): a row of a batch uses those of its adapter.

Rows may be beyond the base model's vocabulary: logits then have more columns, which are meaningless for sequences
without that adapter; `AdapterTokens.num_tokens` is the number of those that count.

T rows of a step, R of them with logits, K token rows of an adapter, V vocabulary, H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_SUFFIX = ".token_adapter.trainable_tokens_delta"
_PREFIX = "base_model.model."


class Ranges(Protocol):
    """Rows of each adapter during a forward pass, as (start, stop, name): of all layers, and of the head."""

    body: Sequence[tuple[int, int, str]]
    head: Sequence[tuple[int, int, str]]


@dataclass(frozen=True)
class TokenRows:
    """Token ids, int64 [K] ascending, and their rows [K, H] of embedding and head."""

    ids_K: Tensor
    embedding_KH: Tensor
    head_KH: Tensor

    def num_bytes(self) -> int:
        tied = self.head_KH is self.embedding_KH
        return sum(t.numel() * t.element_size() for t in (self.embedding_KH, *([] if tied else [self.head_KH])))


class AdapterTokens:
    """The token rows of the adapters of one base model, by adapter. Installs itself in the model at first use."""

    def __init__(self, model: Any, ranges: Ranges):
        self.model, self.ranges = model, ranges
        self.rows: dict[str, TokenRows] = {}
        self._base: int = model.get_input_embeddings().num_embeddings

    def num_tokens(self, adapter: str) -> int:
        """Size of the vocabulary with this adapter."""
        rows = self.rows.get(adapter)
        return self._base if rows is None else max(self._base, int(rows.ids_K[-1]) + 1)

    def add(self, adapter: str, rows: TokenRows) -> None:
        self.rows[adapter] = rows
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        if not isinstance(embedding, EmbeddingWithTokens):
            self.model.set_input_embeddings(EmbeddingWithTokens(embedding, self))
            self.model.set_output_embeddings(HeadWithTokens(head, self))

    def read(self, tensors: dict[str, Tensor], config: dict[str, Any], dtype: torch.dtype, device: Any) -> TokenRows:
        """Remove the token rows from the tensors of an adapter and return them. config: adapter_config.json. Raises
        ValueError with the reason if they do not fit the base model."""
        values = {
            name.removeprefix(_PREFIX).removesuffix(_SUFFIX): tensors.pop(name)
            for name in [name for name in tensors if name.endswith(_SUFFIX)]
        }
        listed = config["trainable_token_indices"]
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        path_of = {id(module): path for path, module in self.model.named_modules() if path in values}
        paths = path_of.get(id(embedding)), path_of.get(id(head))
        tied = _weight(head) is _weight(embedding)
        if paths[0] is None or (paths[1] is None) != tied or len(values) != (1 if tied else 2):
            raise ValueError("its token rows are not those of embedding and head")
        ids = _ids_of(listed, paths[0])
        if not tied and _ids_of(listed, str(paths[1])) != ids:
            raise ValueError("it has different token rows in embedding and head")
        if not ids or len(set(ids)) < len(ids) or not all(type(number) is int and number >= 0 for number in ids):
            raise ValueError("its token ids are no list of different numbers")
        beyond = sorted(number for number in ids if number >= self._base)
        if beyond != list(range(self._base, self._base + len(beyond))):
            raise ValueError("its token rows leave gaps beyond the vocabulary")
        shape = (len(ids), _weight(embedding).shape[1])
        if any(value.shape != shape for value in values.values()):
            raise ValueError(f"its token rows are no matrices of shape {list(shape)}")
        order = sorted(range(len(ids)), key=ids.__getitem__)
        rows = [values[path][order].to(device, dtype) for path in paths if path is not None]
        return TokenRows(torch.tensor(sorted(ids), device=device), rows[0], rows[-1])


def _ids_of(listed: Any, path: str) -> list[int]:
    """The token ids of a module. listed: a list, or lists by the ends of paths."""
    if not isinstance(listed, dict):
        return list(listed)
    return next((list(ids) for name, ids in listed.items() if f".{path}".endswith(f".{name}")), [])


def _weight(module: Any) -> Tensor:
    return _weight(module.inner) if isinstance(module, EmbeddingWithTokens | HeadWithTokens) else module.weight


class EmbeddingWithTokens(nn.Module):
    """The base model's embedding, with other rows for the tokens of adapters."""

    def __init__(self, inner: nn.Module, tokens: AdapterTokens):
        super().__init__()
        self.inner = inner
        self._tokens = (tokens,)  # in a tuple: it refers to the model, which would become a submodule

    @property
    def num_embeddings(self) -> int:
        return self.inner.num_embeddings  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        return self.inner.weight  # type: ignore[return-value]

    def forward(self, tokens_1T: Tensor) -> Tensor:
        """Embeddings [1, T, H] of tokens [1, T]."""
        (state,) = self._tokens
        output = self.inner(tokens_1T.clamp(max=self.num_embeddings - 1))
        tokens_T, output_TH = tokens_1T.reshape(-1), output.view(-1, output.shape[-1])
        scale = getattr(self.inner, "embed_scale", None)  # Gemma 3 scales in the forward of its embedding
        for start, stop, name in state.ranges.body:
            if (rows := state.rows.get(name)) is None:
                continue
            tokens_t = tokens_T[start:stop]
            place_t = torch.searchsorted(rows.ids_K, tokens_t).clamp(max=len(rows.ids_K) - 1)
            own_tH = rows.embedding_KH[place_t]
            own_tH = own_tH if scale is None else own_tH * scale.to(own_tH.dtype)  # type: ignore[operator]
            is_own = (rows.ids_K[place_t] == tokens_t)[:, None]
            output_TH[start:stop] = torch.where(is_own, own_tH, output_TH[start:stop])
        return output


class HeadWithTokens(nn.Module):
    """The base model's head, with other columns of the logits for the tokens of adapters."""

    def __init__(self, inner: nn.Module, tokens: AdapterTokens):
        super().__init__()
        self.inner = inner
        self._tokens = (tokens,)

    @property
    def weight(self) -> Tensor:
        return self.inner.weight  # type: ignore[return-value]

    def forward(self, hidden_1RH: Tensor) -> Tensor:
        """Logits [1, R, V] or more of hidden states [1, R, H]."""
        (state,) = self._tokens
        output = self.inner(hidden_1RH)
        width = max(state.num_tokens(name) for _, _, name in [*state.ranges.head, (0, 0, "")])
        output = nn.functional.pad(output, (0, width - output.shape[-1]))
        hidden_RH, output_RV = hidden_1RH.reshape(-1, hidden_1RH.shape[-1]), output.view(-1, width)
        bias = getattr(self.inner, "bias", None)
        for start, stop, name in state.ranges.head:
            if (rows := state.rows.get(name)) is not None:
                own_rK = hidden_RH[start:stop] @ rows.head_KH.t()
                if bias is not None:
                    known_K = rows.ids_K.clamp(max=len(bias) - 1)
                    own_rK = own_rK + bias[known_K] * (rows.ids_K < len(bias))
                output_RV[start:stop, rows.ids_K] = own_rK
        return output
