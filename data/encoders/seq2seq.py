"""Encode seq2seq rows for encoder-decoder models: the tokens of the source, then those of the target.

tokens      s1 s2 s3 </s>  t1 t2 </s>
supervised  0  0  0  0     1  1  1         the encoder's input ends before the first supervised token
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Encoding

from tunesmith.configs.sections.objectives import Seq2Seq
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.outcomes import DROPPED, KEPT, TRUNCATED, Document, Prepared, rejected
from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.formats import Completion
from tunesmith.data.rows.messages import read_text
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError


class Seq2SeqEncoder:
    """Encoder of rows with a source and a target. max_seq_len applies to both together."""

    def __init__(self, tokenizer: Tokenizer, spec: EncodingSpec):
        spec.require_splittable()
        if tokenizer.num_added_tokens == 0 and tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has no end token: the model would not learn to stop",
                where=f"task: {spec.task}",
                remedy="set eos_token in the model's tokenizer_config.json",
            )
        assert isinstance(spec.section, Seq2Seq)
        self.tokenizer, self.spec, self.settings = tokenizer, spec, spec.section

    def encode(self, values: Iterable[Any]) -> list[Prepared]:
        """Encode rows; return one result per value, in order. values: parsed rows, or a Refusal for an invalid row."""
        read = [self._read(value) for value in values]
        good = [row for row in read if not isinstance(row, Refusal)]
        prefix = self.settings.prefix
        if self.spec.split_special_tokens:
            sources = iter(self.tokenizer.content_encodings([source for source, _ in good], prefix))
        else:
            sources = iter(self.tokenizer.encodings([prefix + source for source, _ in good]))
        targets = iter(self.tokenizer.encodings([target for _, target in good]))
        return [
            rejected(row) if isinstance(row, Refusal) else self._finished(*row, next(sources), next(targets))
            for row in read
        ]

    def _read(self, value: Any) -> tuple[str, str] | Refusal:
        if isinstance(value, Refusal):
            return value
        try:
            if type(value) is not dict:
                raise Refusal("not_an_object", "the row is not an object", 'write each row as {"key": ...}')
            source, target = (
                self._text(value, key) for key in (self.settings.source_column, self.settings.target_column)
            )
            if self.spec.split_special_tokens:
                self._check_special(source, target)
            return source, target
        except Refusal as refusal:
            return refusal

    def _check_special(self, source: str, target: str) -> None:
        """Raise Refusal if a special token of the source cannot be text, or if the target contains one that ends it."""
        self.tokenizer.require_encodable(source)
        if token := self.tokenizer.control.framing_token(target):
            raise Refusal(
                "special_token",
                f'the target contains "{token}", which begins or ends a text',
                "remove it (an end token is added to every target), or set data.split_special_tokens: false",
            )

    def _text(self, value: Mapping[str, object], key: str) -> str:
        if value.get(key) is None:
            raise Refusal(
                "missing_key", f'"{key}" is missing', "set seq2seq.source_column and target_column to the texts' keys"
            )
        text = read_text(value[key], key)
        if not text.strip():
            raise Refusal("empty", f'"{key}" is empty', "fill it in, or remove the row")
        return text

    def _finished(self, source: str, target: str, source_encoding: Encoding, target_encoding: Encoding) -> Prepared:
        result = self._fitted(self.settings.prefix + source, target, source_encoding, target_encoding)
        result.num_special = self.tokenizer.control.num_tokens(source)
        return result

    def _fitted(self, source: str, target: str, source_encoding: Encoding, target_encoding: Encoding) -> Prepared:
        key = Completion(source, target).key()
        added = self.tokenizer.num_added_tokens
        sizes = len(source_encoding.ids) + added, len(target_encoding.ids) + max(added, 1)
        over = sum(sizes) - self.spec.max_seq_len
        if over <= 0:
            return Prepared(KEPT, [self._document(source_encoding, target_encoding)], key)
        reason = f"too long: {sum(sizes):,} tokens, max_seq_len is {self.spec.max_seq_len:,}"
        if self.spec.too_long == "error":
            remedy = "increase data.max_seq_len, shorten the row, or set data.too_long to truncate or drop"
            return rejected(Refusal("too_long", reason, remedy), key)
        if self.spec.too_long == "drop":
            return Prepared(DROPPED, [], key, sum(sizes), sizes[1], reason)
        if over >= len(source_encoding.ids):
            remedy = "increase data.max_seq_len, or set data.too_long to drop"
            return rejected(Refusal("too_long", reason + "; the target leaves no space for the source", remedy), key)
        source_encoding.truncate(len(source_encoding.ids) - over)
        reason += f"; {over:,} tokens are truncated at the end of the source"
        return Prepared(TRUNCATED, [self._document(source_encoding, target_encoding)], key, over, 0, reason)

    def _document(self, source: Encoding, target: Encoding) -> Document:
        inputs, targets = (self._with_eos(self.tokenizer.with_added_tokens(encoding)) for encoding in (source, target))
        return Document([*inputs, *targets], [(len(inputs), len(inputs) + len(targets))])

    def _with_eos(self, ids: list[int]) -> list[int]:
        """Append the eos token, unless the tokenizer already adds it."""
        if self.tokenizer.num_added_tokens == 0 and self.tokenizer.eos_token_id is not None:
            return [*ids, self.tokenizer.eos_token_id]
        return ids
