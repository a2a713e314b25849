"""The token index: prepared documents and samples in flat files that are read by position and verified page by page.

A document is a tokenized row (text may be split into several). A sample is the unit of a batch: one document, or a bin
of packed documents. Files of a directory, little-endian, with sizes recorded in `index.json`:

    tokens.u32             token ids of the concatenated documents    supervised.u8        1 for each target token
    document_offsets.i64   start of each document, and the end        document_rows.i64    row id of each document
    sample_offsets.i64     start of each sample in sample_documents   sample_documents.i64 documents of the samples
    sample_tokens.i64      tokens of each sample                      sample_supervised.i64  targets of each sample
    pages.sha256           hashes of the pages of all files (data/index/pages.py); earlier versions wrote none
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.data.index.pages import PagedFile, PageHashes, verified_hashes, write_page_hashes
from tunesmith.errors import RunFault

FACTS = "index.json"
SCHEMA = 1
TOKEN = np.dtype("<u4")
FLAG = np.dtype("u1")
COUNT = np.dtype("<i8")
FILES = {
    "tokens.u32": TOKEN,
    "supervised.u8": FLAG,
    "document_offsets.i64": COUNT,
    "document_rows.i64": COUNT,
    "sample_offsets.i64": COUNT,
    "sample_documents.i64": COUNT,
    "sample_tokens.i64": COUNT,
    "sample_supervised.i64": COUNT,
}


@dataclass(frozen=True)
class IndexFacts:
    """The fields of index.json other than its schema."""

    num_samples: int
    num_documents: int
    num_tokens: int
    supervised_tokens: int
    longest_tokens: int
    max_seq_len: int
    fingerprint: str

    @classmethod
    def read(cls, directory: Path) -> "IndexFacts":
        """Read index.json. Raises ValueError, KeyError or TypeError if it is damaged or of another version."""
        fields = json.loads((directory / FACTS).read_text(encoding="utf-8"))
        schema = fields.pop("schema")
        if schema != SCHEMA:
            raise ValueError(f"it has schema {schema}, but this version reads schema {SCHEMA}")
        return cls(**fields)


@dataclass(frozen=True)
class Sample:
    """tokens: uint32 [T]. supervised: bool [T], false for the first token of each document. lengths: tokens of each
    document, in order, summing to T. rows: the row id of each document."""

    tokens: np.ndarray
    supervised: np.ndarray
    lengths: list[int]
    rows: list[int]


class TokenIndex:
    """One prepared split, opened for reading. Cheap to open. Every byte is verified each time it is read.

    Reading raises RunFault if a file was damaged since it was written."""

    def __init__(self, directory: Path, facts: IndexFacts, hashes: PageHashes | None = None):
        self.directory, self._hashes = directory, hashes
        self.num_samples, self.num_documents = facts.num_samples, facts.num_documents
        self.num_tokens, self.supervised_tokens = facts.num_tokens, facts.supervised_tokens
        self.max_seq_len, self.fingerprint = facts.max_seq_len, facts.fingerprint
        documents, samples = self.num_documents, self.num_samples
        self._tokens = self._open("tokens.u32", self.num_tokens)
        self._supervised = self._open("supervised.u8", self.num_tokens)
        self._document_offsets = self._open("document_offsets.i64", documents + 1)
        self._document_rows = self._open("document_rows.i64", documents)
        self._sample_offsets = self._open("sample_offsets.i64", samples + 1)
        self._sample_documents = self._open("sample_documents.i64", documents)
        self.sample_tokens = self._open("sample_tokens.i64", samples)
        """int64 [num_samples]: tokens of each sample."""
        self.sample_supervised = self._open("sample_supervised.i64", samples)
        """int64 [num_samples]: supervised tokens of each sample."""

    @classmethod
    def open(cls, directory: Path) -> "TokenIndex":
        """Open the files of a directory and check their sizes; their content is verified when it is read.

        An index of an earlier version has no hashes of its pages: its files are verified here, if they are in a
        committed directory. Raises RunFault if a file is missing, damaged or of the wrong size.
        """
        try:
            facts = IndexFacts.read(directory)
            return cls(directory, facts, verified_hashes(directory, [FACTS, *FILES], facts.fingerprint))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFault(
                f"the prepared token index cannot be read: {error}",
                where=str(directory),
                remedy="delete this directory and run the command that started the run: it prepares the data again",
            ) from error

    def sample(self, number: int) -> Sample:
        """Return a sample, its documents concatenated. Raises IndexError outside range(num_samples)."""
        if not 0 <= number < self.num_samples:
            raise IndexError(f"sample {number} of {self.num_samples}")
        documents = [self.document(document) for document in self.documents_of(number).tolist()]
        if len(documents) == 1:
            return documents[0]
        return Sample(
            np.concatenate([document.tokens for document in documents]),
            np.concatenate([document.supervised for document in documents]),
            [length for document in documents for length in document.lengths],
            [row for document in documents for row in document.rows],
        )

    def document(self, number: int) -> Sample:
        """Return one document as a sample. Raises IndexError outside range(num_documents)."""
        if not 0 <= number < self.num_documents:
            raise IndexError(f"document {number} of {self.num_documents}")
        tokens, supervised = self._content(number)
        return Sample(
            tokens.copy(), supervised.copy(), [len(tokens)], self._document_rows.read(number, number + 1).tolist()
        )

    def targets(self, document: int) -> np.ndarray:
        """Return the supervised tokens of a document, uint32; for a classification, its targets."""
        tokens, supervised = self._content(document)
        return tokens[supervised]

    def documents_of(self, sample: int) -> np.ndarray:
        """Return the documents of a sample, int64, in order."""
        return self._sample_documents.read(*self._sample_offsets.read(sample, sample + 2).tolist())

    def _content(self, document: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and flags of a document, read-only."""
        start, stop = self._document_offsets.read(document, document + 2).tolist()
        return self._tokens.read(start, stop), self._supervised.read(start, stop).view(np.bool_)

    def _open(self, name: str, length: int) -> PagedFile:
        digests = self._hashes.digests(name) if self._hashes is not None else None
        return PagedFile(self.directory / name, FILES[name], length, digests)


class IndexWriter:
    """Incremental writer of a token index. Memory: 24 bytes per document, independent of the number of tokens."""

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._tokens = open(directory / "tokens.u32", "wb")  # noqa: SIM115 (closed by finish)
        self._supervised = open(directory / "supervised.u8", "wb")  # noqa: SIM115
        self._lengths: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []

    def add(self, tokens: np.ndarray, supervised: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> None:
        """Append concatenated documents. tokens, supervised: [T]; lengths, rows: [D]; lengths are positive, sum to T.

        The first token of a document is never a target; its flag in `supervised` is ignored. Raises ValueError.
        """
        lengths = np.asarray(lengths, COUNT)
        if int(lengths.sum()) != len(tokens) or len(tokens) != len(supervised) or len(lengths) != len(rows):
            raise ValueError("lengths, rows, tokens and supervised do not match")
        if not len(lengths):
            return
        if int(lengths.min()) < 1:
            raise ValueError("a document has no tokens")
        starts = np.cumsum(lengths) - lengths
        flags = np.array(supervised, FLAG)
        flags[starts] = 0
        self._tokens.write(np.ascontiguousarray(tokens, TOKEN).data)
        self._supervised.write(flags.data)
        self._lengths.append(lengths)
        self._targets.append(np.add.reduceat(flags, starts, dtype=COUNT))
        self._rows.append(np.asarray(rows, COUNT))

    def lengths(self) -> np.ndarray:
        """Return the tokens of each document so far, int64."""
        return np.concatenate(self._lengths) if self._lengths else np.zeros(0, COUNT)

    def rows(self) -> np.ndarray:
        """Return the row id of each document so far, int64."""
        return np.concatenate(self._rows) if self._rows else np.zeros(0, COUNT)

    def finish(self, bins: np.ndarray | None, *, max_seq_len: int, fingerprint: str) -> IndexFacts:
        """Write the remaining files and close. bins: int64 [D], the sample of each document, numbered without gaps;
        None: each document is a sample. Return the contents of index.json."""
        self._tokens.close()
        self._supervised.close()
        lengths, targets = self.lengths(), np.concatenate(self._targets or [np.zeros(0, COUNT)])
        bins = np.arange(len(lengths)) if bins is None else np.asarray(bins, COUNT)
        num_samples = int(bins.max()) + 1 if len(bins) else 0
        documents_each = np.bincount(bins, minlength=num_samples)
        if len(bins) != len(lengths) or (num_samples and not documents_each.all()):
            raise ValueError("every document needs a sample, and every sample a document")
        self._save("document_offsets.i64", np.concatenate([[0], np.cumsum(lengths)]))
        self._save("document_rows.i64", np.concatenate(self._rows or [np.zeros(0, COUNT)]))
        self._save("sample_offsets.i64", np.concatenate([[0], np.cumsum(documents_each)]))
        self._save("sample_documents.i64", np.argsort(bins, kind="stable"))
        self._save("sample_tokens.i64", _sums(bins, lengths, num_samples))
        self._save("sample_supervised.i64", _sums(bins, targets, num_samples))
        facts = IndexFacts(
            num_samples=num_samples,
            num_documents=len(lengths),
            num_tokens=int(lengths.sum()),
            supervised_tokens=int(targets.sum()),
            longest_tokens=int(lengths.max(initial=0)),
            max_seq_len=max_seq_len,
            fingerprint=fingerprint,
        )
        written = {"schema": SCHEMA, **vars(facts)}
        (self.directory / FACTS).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        write_page_hashes(self.directory, [FACTS, *FILES])
        return facts

    def _save(self, name: str, values: np.ndarray) -> None:
        np.ascontiguousarray(values, COUNT).tofile(self.directory / name)


def write_index(
    directory: Path,
    documents: Sequence[tuple[Sequence[int], Sequence[bool], int]],
    *,
    max_seq_len: int,
    fingerprint: str = "",
    bins: Sequence[int] | None = None,
) -> TokenIndex:
    """Write a small index from documents in memory: (tokens, supervised, row id)."""
    writer = IndexWriter(directory)
    for tokens, supervised, row in documents:
        writer.add(np.array(tokens, TOKEN), np.array(supervised, FLAG), np.array([len(tokens)]), np.array([row]))
    writer.finish(None if bins is None else np.array(bins), max_seq_len=max_seq_len, fingerprint=fingerprint)
    return TokenIndex.open(directory)


def _sums(bins: np.ndarray, values: np.ndarray, num_samples: int) -> np.ndarray:
    sums = np.zeros(num_samples, COUNT)
    np.add.at(sums, bins, values)
    return sums
