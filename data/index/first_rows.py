"""The texts of the first rows, to compare tokenizers on."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.readers.shard import Shard
from tunesmith.data.readers.sources import read
from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.formats import FORMS_OF_TASK, Conversation, read_row
from tunesmith.data.tokenization.agreement import ROWS, require_agreement


def require_agreement_on(shards: Iterable[tuple[str, Shard]], encoder: RowEncoder) -> None:
    """Raise InputError if the installed transformers tokenizes the first rows differently. shards: with the names of
    their files."""
    spec = encoder.spec
    rows = list(islice(_texts(shards, encoder), ROWS))
    require_agreement(encoder.tokenizer, rows, adds=not spec.facts.templated, withheld=spec.withholds)


def _texts(shards: Iterable[tuple[str, Shard]], encoder: RowEncoder) -> Iterator[tuple[str, str]]:
    for name, shard in shards:
        for line in read(shard):
            if not isinstance(line.value, Refusal) and is_encodable(text := _text(line.value, encoder)):
                yield f"{name}:{line.number}", text


def is_encodable(text: str) -> bool:
    """Whether a text has no lone surrogate, which no tokenizer accepts: the row is rejected later."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _text(value: Any, encoder: RowEncoder) -> str:
    """The rendered conversation of a row; all of its texts if it is none."""
    template = encoder.tokenizer.template
    if encoder.spec.task in FORMS_OF_TASK and encoder.spec.facts.templated and template is not None:
        try:
            row = read_row(value, encoder.spec.task)
            if isinstance(row, Conversation):
                return template.render(row.messages, row.tools)
        except Refusal:
            pass  # it is rejected later, with its reason
    return "\n".join(_strings(value))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
