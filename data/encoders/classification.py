"""Encode classification rows: the tokens of the text as the model reads them, followed by the targets.

    tokens      [CLS] the text's tokens [SEP]  7        single_label: the class index; binary: 0 or 1
    supervised                        0        1        multi_label: a 0 or 1 for each label

So receipts, packing and the ledger treat labels like supervised tokens; the loss removes them from the input.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Encoding

from tunesmith.configs.recipe import Classification
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.outcomes import DROPPED, KEPT, TRUNCATED, Document, Prepared, rejected
from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.formats import Text
from tunesmith.data.rows.labels import names_in, targets_of
from tunesmith.data.rows.messages import read_text
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError


class ClassificationEncoder:
    """Encoder of rows with a text and its labels. max_seq_len includes the targets.

    Raises InputError if the spec does not suit this task.
    """

    def __init__(self, tokenizer: Tokenizer, spec: EncodingSpec):
        spec.require_splittable()
        assert isinstance(spec.section, Classification)
        assert spec.labels is not None
        self.tokenizer, self.spec, self.settings, self.labels = tokenizer, spec, spec.section, spec.labels
        self.num_targets = len(self.labels) if self.settings.kind == "multi_label" else 1
        if spec.max_seq_len <= self.num_targets + 8:
            raise InputError(
                f"data.max_seq_len is too small for a text and its {self.num_targets} targets",
                where="data.max_seq_len",
                remedy="increase data.max_seq_len, which includes the targets",
            )

    def encode(self, values: Iterable[Any]) -> list[Prepared]:
        """Encode rows; return one result per value, in order. values: parsed rows, or a Refusal for an invalid row."""
        read = [self._read(value) for value in values]
        texts = [row[0] for row in read if not isinstance(row, Refusal)]
        encodings = iter(self.tokenizer.encodings(texts))
        return [rejected(row) if isinstance(row, Refusal) else self._finished(*row, next(encodings)) for row in read]

    def _read(self, value: Any) -> tuple[str, list[int]] | Refusal:
        if isinstance(value, Refusal):
            return value
        try:
            names = names_in(value, self.settings)
            key = self.settings.text_column
            if value.get(key) is None:
                remedy = "set classification.text_column to the text's key"
                raise Refusal("missing_key", f'"{key}" is missing', remedy)
            text = read_text(value[key], key)
            if not text.strip():
                raise Refusal("empty", f'"{key}" is empty', "fill it in, or remove the row")
            return text, targets_of(names, self.settings, self.labels, self.spec.withholds)
        except Refusal as refusal:
            return refusal

    def _finished(self, text: str, targets: list[int], encoding: Encoding) -> Prepared:
        limit = self.spec.max_seq_len - self.num_targets
        key = Text(f"{targets}\x1f{text}").key()
        room = limit - self.tokenizer.num_added_tokens
        size = len(encoding.ids)
        if size > room:
            reason = (
                f"too long: {size + limit - room + len(targets):,} tokens, max_seq_len is {self.spec.max_seq_len:,}"
            )
            if self.spec.too_long == "error":
                remedy = "increase data.max_seq_len, shorten the row, or set data.too_long to truncate or drop"
                return rejected(Refusal("too_long", reason, remedy), key)
            if self.spec.too_long == "drop":
                return Prepared(DROPPED, [], key, size, self.num_targets, reason)
            encoding.truncate(room)
            reason += f"; {size - room:,} tokens are truncated at the end of the text"
            return Prepared(TRUNCATED, [self._document(encoding, targets)], key, size - room, 0, reason)
        return Prepared(KEPT, [self._document(encoding, targets)], key)

    def _document(self, encoding: Encoding, targets: Sequence[int]) -> Document:
        ids = self.tokenizer.with_added_tokens(encoding)
        return Document([*ids, *targets], [(len(ids), len(ids) + len(targets))])
