"""Encode classification rows: the tokens of the text as the model reads them, followed by the targets.

    tokens      [CLS] the text's tokens [SEP]  7        single_label: the class index; binary: 0 or 1
    supervised                        0        1        multi_label: a 0 or 1 for each label

A pair of texts (data/rows/shapes/texts.py) is encoded as the tokenizer encodes pairs: [CLS] first [SEP] second [SEP].

So receipts, packing and the ledger treat labels like supervised tokens; the loss removes them from the input.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Encoding

from tunesmith.configs.sections.objectives import Classification
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.outcomes import DROPPED, KEPT, TRUNCATED, Document, Prepared, rejected
from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.formats import Text
from tunesmith.data.rows.labels import names_in, targets_of
from tunesmith.data.rows.shapes.texts import texts_of
from tunesmith.data.tokenization.encodings import without_overflow
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
        texts = [text for row in read if not isinstance(row, Refusal) for text in row[0]]
        encode = self.tokenizer.content_encodings if self.spec.split_special_tokens else self.tokenizer.encodings
        encodings = iter(encode(texts))
        return [
            rejected(row)
            if isinstance(row, Refusal)
            else self._finished(*row, [next(encodings) for _ in range(len(row[0]))])
            for row in read
        ]

    def _read(self, value: Any) -> tuple[tuple[str, ...], list[int]] | Refusal:
        """Return the row's text, or two of them, and its targets."""
        if isinstance(value, Refusal):
            return value
        try:
            names = names_in(value, self.settings, self.labels)
            text, second = texts_of(value, self.settings.text_column)
            targets = targets_of(names, self.settings, self.labels, self.spec.withholds)
            texts = (text,) if second is None else (text, second)
            if self.spec.split_special_tokens:
                for one in texts:
                    self.tokenizer.require_encodable(one)
            return texts, targets
        except Refusal as refusal:
            return refusal

    def _finished(self, texts: tuple[str, ...], targets: list[int], encodings: list[Encoding]) -> Prepared:
        result = self._fitted(texts, targets, encodings)
        result.num_special = sum(map(self.tokenizer.control.num_tokens, texts))
        return result

    def _fitted(self, texts: tuple[str, ...], targets: list[int], encodings: list[Encoding]) -> Prepared:
        limit = self.spec.max_seq_len - self.num_targets
        key = Text(f"{targets}\x1f" + "\x1f\x1e".join(texts)).key()
        added = self.tokenizer.num_added_tokens if len(texts) == 1 else self.tokenizer.num_added_in_pair
        room = limit - added
        size = sum(len(encoding.ids) for encoding in encodings)
        if size > room:
            total = size + added + len(targets)
            reason = f"too long: {total:,} tokens, max_seq_len is {self.spec.max_seq_len:,}"
            if self.spec.too_long == "error":
                remedy = "increase data.max_seq_len, shorten the row, or set data.too_long to truncate or drop"
                return rejected(Refusal("too_long", reason, remedy), key)
            if self.spec.too_long == "drop":
                return Prepared(DROPPED, [], key, size, self.num_targets, reason)
            encodings = _truncated(encodings, room)
            where = "the text" if len(texts) == 1 else "the longer text"
            reason += f"; {size - room:,} tokens are truncated at the end of {where}"
            return Prepared(TRUNCATED, [self._document(encodings, targets)], key, size - room, 0, reason)
        return Prepared(KEPT, [self._document(encodings, targets)], key)

    def _document(self, encodings: Sequence[Encoding], targets: Sequence[int]) -> Document:
        ids = self.tokenizer.with_added_tokens(*encodings)
        return Document([*ids, *targets], [(len(ids), len(ids) + len(targets))])


def _truncated(encodings: Sequence[Encoding], room: int) -> list[Encoding]:
    """Cut the end of a text, of a pair that of the longer one until both are equal (`longest_first`)."""
    if len(encodings) == 1:
        encodings[0].truncate(room)
    else:
        shorter, longer = sorted(encodings, key=lambda encoding: len(encoding.ids))
        kept = min(len(shorter.ids), room // 2)
        shorter.truncate(kept)
        longer.truncate(room - kept)
    return [without_overflow(encoding) for encoding in encodings]
