"""An encoder for a tokenizer with more tokens than the model: rows that use one of those are rejected."""

from collections.abc import Iterable
from typing import Any

from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.outcomes import Prepared, rejected
from tunesmith.data.refusal import Refusal
from tunesmith.data.tokenization.model_size import num_ids


class InVocabularyEncoder:
    """Wrapper of an encoder that rejects rows with tokens beyond the model's embedding, which has no vector for them.

    The tokenizer's `num_embeddings` must be known.
    """

    def __init__(self, inner: RowEncoder):
        self.inner = inner
        self.tokenizer, self.spec = inner.tokenizer, inner.spec

    def encode(self, values: Iterable[Any]) -> list[Prepared]:
        """Encode rows like the inner encoder."""
        return [self._checked(result) for result in self.inner.encode(values)]

    def _checked(self, result: Prepared) -> Prepared:
        limit = self.tokenizer.num_embeddings
        assert limit is not None
        token = max((max(document.tokens) for document in result.documents), default=0)
        if token < limit:
            return result
        text = self.tokenizer.token_text(token)
        return rejected(
            Refusal(
                "unknown_token",
                f"token {token} ({text!r}) is beyond the embedding of the base model, which has {limit:,} rows",
                "remove it from the row, or enlarge the base model: "
                f"model.resize_token_embeddings({num_ids(self.tokenizer.backend)}) and model.save_pretrained(...)",
            ),
            result.key,
        )
