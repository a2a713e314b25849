"""Encode KTO rows (data/rows/shapes/rated.py): the conversation with the answer, then its rating as a token.

With a chat template, strings become chats; without one, prompt and completion. Only the answer is trained:

    tokens      prompt's tokens   answer's tokens   1        1: the answer is good; 0: it is bad
    supervised  0                 1                 0

The label comes last, so that no prediction of a causal model can depend on it. It is an input token like the others:
of a mixture of experts, the router loss includes it.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tunesmith.data.encoders.language_model import LanguageModelEncoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.outcomes import DROPPED, KEPT, MASKED, TRUNCATED, Document, Prepared
from tunesmith.data.refusal import Refusal, name_of
from tunesmith.data.rows.answers import answered_row
from tunesmith.data.rows.context import context_of, require_text_only
from tunesmith.data.rows.formats import Text
from tunesmith.data.rows.shapes.rated import read_rated
from tunesmith.data.tokenization.tokenizer import Tokenizer


class KtoEncoder:
    """Encoder of a row to one document that ends with its label. max_seq_len includes the label."""

    def __init__(self, tokenizer: Tokenizer, spec: EncodingSpec):
        spec.require_splittable()
        spec.require_one_conversation()
        self.chats = tokenizer.template is not None
        task = "chat" if self.chats else "completion"
        self.inner = LanguageModelEncoder(tokenizer, replace(spec, task=task, max_seq_len=spec.max_seq_len - 1))
        self.tokenizer, self.spec = tokenizer, spec

    def encode(self, values: Iterable[Any]) -> list[Prepared]:
        """Encode rows; return one result per value, in order. values: parsed rows, or a Refusal for an invalid row."""
        read = [self._read(value) for value in values]
        encoded = self.inner.encode([row if isinstance(row, Refusal) else row[0] for row in read])
        return [
            result if isinstance(row, Refusal) else _labeled(result, row[1])
            for result, row in zip(encoded, read, strict=True)
        ]

    def _read(self, value: Any) -> tuple[dict[str, Any], bool] | Refusal:
        """Convert to a row of the task chat or completion, and return it with its label."""
        if isinstance(value, Refusal):
            return value
        try:
            if type(value) is not dict:
                raise Refusal(
                    "not_an_object", f"the row is {name_of(value)}, not an object", 'write each row as {"key": ...}'
                )
            require_text_only(value)
            prompt, answer, label = read_rated(value, has_template=self.chats)
            return answered_row(prompt, answer, context_of(value), has_template=self.chats), label
        except Refusal as refusal:
            return refusal


def _labeled(result: Prepared, label: bool) -> Prepared:
    """Append the label to the tokens, and include it in the key, since the same answer may occur as good and as bad."""
    key = Text(f"{result.key.hex()} {label}").key() if result.key else b""
    if result.code == "too_long" or result.outcome in (DROPPED, TRUNCATED):
        result = replace(result, reason=f"{result.reason}; the label takes one more token")
    documents = [Document([*document.tokens, int(label)], document.supervised) for document in result.documents]
    return replace(result, outcome=KEPT if result.outcome == MASKED else result.outcome, documents=documents, key=key)
