"""Tokenize one shard of rows: a pure function whose result is cached by the hash of all its inputs.

A prepared shard is a directory that is committed atomically: after a kill, only the unfinished shards are repeated.

    tokens.u32, supervised.u8    concatenated documents, in row order
    documents.npy                tokens of each document
    rows.npy                     one record per row, see ROW
    notes.jsonl                  {"row", "reason", "remedy", "text"} of rows not kept unchanged; row counts from 0
    found.jsonl                  {"row", "found": {kind: places}} of rows with de-identified text
    special.npy                  rows with special tokens in their content
    omitted.jsonl                {"row", "omitted": {kind: values}} of rows that the template shows in part only
    inserted.jsonl               {"row", "inserted": {text: answers}} of rows into which the template inserts text
"""

import json
from array import array
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.cache import build_once
from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.index.token_index import COUNT, FLAG, TOKEN
from tunesmith.data.outcomes import OUTCOMES, Prepared
from tunesmith.data.readers.lines import Line
from tunesmith.data.readers.shard import Shard
from tunesmith.data.readers.sources import read
from tunesmith.data.refusal import excerpt

OMITTED, INSERTED = "omitted.jsonl", "inserted.jsonl"
WITHHELD = "(withheld: data.deidentify)"
"""Replaces the text of a rejected row, which is not de-identified."""
SCHEMA = 1  # increase it when the same rows would give different tokens
# The tokenizer takes 15% less time per row in batches of 2,000 rows than of 500, and 40% less than of 16 (tokenizers
# 0.23.3, rows of 400 tokens); a batch of 2 MiB of text uses about 60 MB of memory.
BATCH_ROWS = 2048
BATCH_BYTES = 2 << 20
_COUNTS = ("line", "tokens", "supervised", "lost_tokens", "lost_supervised")
ROW = np.dtype(
    [
        ("key_high", "<u8"),
        ("key_low", "<u8"),
        *((name, "<i8") for name in _COUNTS),
        ("documents", "<u4"),
        ("fate", "u1"),
    ]
)
"""key: 16 bytes, equal for equal content. line: relative to the shard's first line. fate: its index in OUTCOMES."""


def shard_id(shard: Shard, encoder: RowEncoder) -> str:
    """Return the SHA-256 (hex) over the rows, how they are read, and all that affects their tokens, but not the file
    name."""
    inputs: list[object] = [SCHEMA, shard.kind, shard.sha256, shard.header, shard.first_line == 1]
    inputs += [shard.delimiter] if shard.delimiter else []
    *encoding, options = encoder.spec.as_json()
    inputs += [encoder.tokenizer.fingerprint, *encoding, *([options] if options else [])]
    return sha256(json.dumps(inputs).encode("utf-8")).hexdigest()


def prepare_shard(shard: Shard, encoder: RowEncoder, cache: Path) -> Path:
    """Prepare a shard, unless it is in the cache; return its directory. Raises InputError if the file is unreadable."""
    return build_once(cache / "shards" / shard_id(shard, encoder), lambda directory: _write(shard, encoder, directory))


def _write(shard: Shard, encoder: RowEncoder, directory: Path) -> None:
    rows: list[tuple[Any, ...]] = []
    lengths: list[int] = []
    special: list[int] = []
    with (
        open(directory / "tokens.u32", "wb") as tokens,
        open(directory / "supervised.u8", "wb") as supervised,
        open(directory / "notes.jsonl", "w", encoding="utf-8") as notes,
        open(directory / "found.jsonl", "w", encoding="utf-8") as replacements,
        open(directory / OMITTED, "w", encoding="utf-8") as omissions,
        open(directory / INSERTED, "w", encoding="utf-8") as insertions,
    ):
        for lines in _batches(read(shard)):
            results = encoder.encode([line.value for line in lines])
            for line, result in zip(lines, results, strict=True):
                if result.reason:
                    notes.write(_note(len(rows), line, result, encoder.spec.withholds))
                if result.replaced:
                    replacements.write(json.dumps({"row": len(rows), "found": result.replaced}) + "\n")
                if result.num_special:
                    special.append(len(rows))
                if result.omitted:
                    omissions.write(json.dumps({"row": len(rows), "omitted": result.omitted}) + "\n")
                if result.inserted:
                    insertions.write(json.dumps({"row": len(rows), "inserted": result.inserted}) + "\n")
                rows.append(_record(line.number - shard.first_line, result))
            _write_tokens(results, lengths, tokens, supervised)
    np.save(directory / "rows.npy", np.array(rows, ROW))
    np.save(directory / "documents.npy", np.array(lengths, COUNT))
    np.save(directory / "special.npy", np.array(special, np.int64))


def _batches(lines: Iterator[Line]) -> Iterator[list[Line]]:
    batch, size = [], 0
    for line in lines:
        batch.append(line)
        size += len(line.raw) if isinstance(line.raw, bytes) else 0
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _record(line: int, result: Prepared) -> tuple[Any, ...]:
    key = result.key or bytes(16)
    tokens = supervised = 0
    for document in result.documents:
        tokens += len(document.tokens)
        supervised += document.supervised_tokens()
    high, low = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    lost = (result.lost_tokens, result.lost_supervised)
    return (high, low, line, tokens, supervised, *lost, len(result.documents), OUTCOMES.index(result.outcome))


def _write_tokens(results: list[Prepared], lengths: list[int], tokens: Any, supervised: Any) -> None:
    documents = [document for result in results for document in result.documents]
    sizes = [len(document.tokens) for document in documents]
    total = sum(sizes)
    flags = np.zeros(total, FLAG)
    start = 0
    for document, size in zip(documents, sizes, strict=True):
        for first, stop in document.supervised:
            flags[start + first : start + stop] = 1
        flags[start] = 0  # a document's first token is never a target
        start += size
    ids = array("I")  # converts a list four times as fast as numpy
    for document in documents:
        ids.fromlist(document.tokens)
    tokens.write(np.array(ids, TOKEN).data)
    supervised.write(flags.data)
    lengths += sizes


def _note(row: int, line: Line, result: Prepared, withheld: bool) -> str:
    note = {"row": row, "reason": result.reason, "remedy": result.remedy}
    if not result.documents:
        note["text"] = WITHHELD if withheld else excerpt(line.raw)
    return json.dumps(note, ensure_ascii=False) + "\n"
