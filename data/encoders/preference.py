"""Encode preference rows (data/rows/shapes/preference.py) to two documents: the chosen answer, then the rejected one.

With a chat template, strings become chats; without one, prompt and completion. Only the answers are trained.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tunesmith.data.encoders.language_model import LanguageModelEncoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.outcomes import DROPPED, KEPT, REJECTED, TRUNCATED, Prepared, rejected
from tunesmith.data.refusal import Refusal, name_of
from tunesmith.data.rows.answers import answered_row
from tunesmith.data.rows.context import context_of, require_text_only
from tunesmith.data.rows.formats import Text
from tunesmith.data.rows.shapes.preference import read_pair
from tunesmith.data.tokenization.tokenizer import Tokenizer

_EQUAL = Refusal(
    "equal_answers",
    "both answers become the same tokens: they differ only in what the chat template changes or max_seq_len cuts off",
    "remove the row, set model.chat_template to a template that shows the difference, or increase data.max_seq_len",
)
_Side = dict[str, Any]
"""A row of the task chat, or of the task completion."""


class PreferenceEncoder:
    """Encoder of rows with two answers to two documents each: documents 2i and 2i + 1 of a shard are a pair."""

    def __init__(self, tokenizer: Tokenizer, spec: EncodingSpec):
        spec.require_one_conversation()
        self.chats = tokenizer.template is not None
        self.inner = LanguageModelEncoder(tokenizer, replace(spec, task="chat" if self.chats else "completion"))
        self.tokenizer, self.spec = tokenizer, spec

    def encode(self, values: Iterable[Any]) -> list[Prepared]:
        """Encode rows; return one result per value, in order. values: parsed rows, or a Refusal for an invalid row."""
        read = [self._read(value) for value in values]
        sides = [side for row in read for side in ((row, row) if isinstance(row, Refusal) else row)]
        encoded = iter(self.inner.encode(sides))
        return [_joined(next(encoded), next(encoded)) for _ in read]

    def _read(self, value: Any) -> tuple[_Side, _Side] | Refusal:
        if isinstance(value, Refusal):
            return value
        try:
            if type(value) is not dict:
                raise Refusal(
                    "not_an_object", f"the row is {name_of(value)}, not an object", 'write each row as {"key": ...}'
                )
            require_text_only(value)
            pair = read_pair(value, has_template=self.chats)
            prompt, better, worse = pair.prompt, pair.better, pair.worse
            if better == worse:
                raise Refusal("equal_answers", "both answers are equal", "remove the row")
            context = context_of(value) | ({"tools": pair.tools} if pair.tools else {})
            sides = [answered_row(prompt, answer, context, has_template=self.chats) for answer in (better, worse)]
            return sides[0], sides[1]
        except Refusal as refusal:
            return refusal


def _joined(better: Prepared, worse: Prepared) -> Prepared:
    """Combine the results of both answers: the less favorable outcome of the two, and one key for both."""
    key = Text(better.key.hex() + worse.key.hex()).key() if better.key and worse.key else b""
    for side, name in ((better, "the chosen answer"), (worse, "the rejected answer")):
        if side.outcome == REJECTED:
            shared = better.reason == worse.reason
            reason = side.reason if shared else f"{name}: {side.reason}"
            return Prepared(REJECTED, [], key, reason=reason, remedy=side.remedy, code=side.code)
    lost, lost_supervised = (
        better.lost_tokens + worse.lost_tokens,
        better.lost_supervised + worse.lost_supervised,
    )
    reason = better.reason or worse.reason
    if DROPPED in (better.outcome, worse.outcome):
        return Prepared(DROPPED, [], key, lost, lost_supervised, reason)
    documents = [*better.documents, *worse.documents]
    if [document.tokens for document in better.documents] == [document.tokens for document in worse.documents]:
        return rejected(_EQUAL, key)
    omitted = dict(Counter(better.omitted) | Counter(worse.omitted))  # the maximum of both
    outcome = TRUNCATED if TRUNCATED in (better.outcome, worse.outcome) else KEPT
    special = max(better.num_special, worse.num_special)
    reason = reason if outcome == TRUNCATED or omitted else ""
    joined = Prepared(outcome, documents, key, lost, lost_supervised, reason, omitted=omitted, num_special=special)
    return replace(joined, inserted=dict(Counter(better.inserted) | Counter(worse.inserted)))
