"""Rows as the model sees them: the text of their tokens, and which tokens are trained."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path

from tunesmith.configs.recipe import Recipe
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.build import read_sources
from tunesmith.data.index.prepare import read_labels, refuse_raw_copies
from tunesmith.data.outcomes import Document
from tunesmith.data.readers.sources import read
from tunesmith.data.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class ShownRow:
    """row: row number over all files. source, line: its place. outcome, reason, remedy: as in its receipt.
    segments: its text in order, each with whether it is supervised; empty if the row is dropped or rejected."""

    row: int
    source: str
    line: int
    outcome: str
    reason: str
    remedy: str
    tokens: int
    supervised_tokens: int
    segments: list[tuple[str, bool]] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """The output of `tunesmith data show --json`."""
        return {"fate" if name == "outcome" else name: value for name, value in asdict(self).items()}


def show(
    recipe: Recipe, tokenizer: Tokenizer, *, recipe_dir: Path, first: int = 0, limit: int = 3
) -> Iterator[ShownRow]:
    """Yield rows first .. first + limit of the training files, tokenized without caching. Raises InputError."""
    refuse_raw_copies(recipe, recipe.data.train)
    sources = read_sources(recipe.data.train, 0.0, recipe_dir)
    encoder = make_encoder(tokenizer, EncodingSpec.of(recipe, read_labels(recipe, sources)))
    lines = ((source.name, line) for source in sources for line in read(source.shard))
    for row, (name, line) in enumerate(islice(lines, first, first + limit), start=first):
        result = encoder.encode([line.value])[0]
        tokens = sum(len(document.tokens) for document in result.documents)
        supervised = sum(document.supervised_tokens() for document in result.documents)
        shown = [segment for document in result.documents for segment in segments(tokenizer, document)]
        yield ShownRow(row, name, line.number, result.outcome, result.reason, result.remedy, tokens, supervised, shown)


def segments(tokenizer: Tokenizer, document: Document) -> list[tuple[str, bool]]:
    """Split the document's text into supervised and unsupervised pieces. The first token is never supervised."""
    edges = [0]
    for start, stop in document.supervised:
        edges += [max(start, 1), stop]
    edges.append(len(document.tokens))
    pieces, before = [], ""
    for number, (start, stop) in enumerate(pairwise(edges)):
        if start >= stop:
            continue
        # As the difference of two prefixes, since some decoders drop a leading space.
        so_far = tokenizer.decode(document.tokens[:stop], skip_special_tokens=False)
        text = (
            so_far[len(before) :] if so_far.startswith(before) else tokenizer.decode(document.tokens[start:stop], False)
        )
        pieces.append((text, number % 2 == 1))
        before = so_far
    return pieces
