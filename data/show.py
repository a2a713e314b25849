"""Rows as the model sees them: the text of their tokens, which tokens are trained, and labels by name."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path

from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.objectives import Classification
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.build import encoder_of
from tunesmith.data.index.prepare import recipe_encoders, recipe_sources
from tunesmith.data.outcomes import Document
from tunesmith.data.readers.sources import read
from tunesmith.data.rows.labels import names_of_targets
from tunesmith.data.tokenization.tokenizer import Tokenizer

RATINGS = ("bad", "good")
"""Names of the labels of rated answers."""


@dataclass(frozen=True)
class ShownRow:
    """row: row number over all files. source, line: its place. outcome, reason, remedy: as in its receipt.
    segments: its text in order, each with whether it is supervised; empty if the row is dropped or rejected; of a pair
    the chosen answer with its prompt, then the rejected one. labels: names of its labels, or its rating."""

    row: int
    source: str
    line: int
    outcome: str
    reason: str
    remedy: str
    tokens: int
    supervised_tokens: int
    segments: list[tuple[str, bool]] = field(default_factory=list)
    labels: list[str] | None = None
    num_chosen: int | None = None
    """Number of segments of the chosen answer; None for a row that is not a pair."""
    inserted: list[str] = field(default_factory=list)
    """Texts that the chat template inserts into trained answers, and that are not trained."""
    dataset: str | None = None
    """Name of the data set in a mixture."""

    def as_json(self) -> dict[str, object]:
        """The output of `tunesmith data show --json`."""
        return {"fate" if name == "outcome" else name: value for name, value in asdict(self).items()}

    def parts(self) -> list[tuple[str, list[tuple[str, bool]]]]:
        """Return the segments with a heading: of a pair by answer, otherwise all of them without one."""
        if self.num_chosen is None or not self.segments:
            return [("", self.segments)]
        return [("chosen", self.segments[: self.num_chosen]), ("rejected", self.segments[self.num_chosen :])]


def show(
    recipe: Recipe, tokenizer: Tokenizer, *, recipe_dir: Path, first: int = 0, limit: int = 3
) -> Iterator[ShownRow]:
    """Yield rows first .. first + limit of the training files, tokenized without caching. Raises InputError."""
    sources = recipe_sources(recipe, recipe_dir, training_only=True)
    encoder, encoders = recipe_encoders(recipe, tokenizer, sources)
    num_targets = _num_targets(encoder.spec)
    lines = ((source, line) for source in sources for line in read(source.shard))
    for row, (source, line) in enumerate(islice(lines, first, first + limit), start=first):
        result = encoder_of(source, encoder, encoders).encode([line.value])[0]
        shown = [segments(tokenizer, _text_of(document, num_targets)) for document in result.documents]
        targets = [document.tokens[-num_targets:] for document in result.documents if num_targets]
        yield ShownRow(
            row,
            source.name,
            line.number,
            result.outcome,
            result.reason,
            result.remedy,
            sum(len(document.tokens) for document in result.documents),
            sum(document.supervised_tokens() for document in result.documents),
            [segment for part in shown for segment in part],
            _labels(encoder.spec, targets[0]) if targets else None,
            len(shown[0]) if shown and encoder.spec.facts.is_paired else None,
            list(result.inserted),
            source.dataset or None,
        )


def _text_of(document: Document, num_targets: int) -> Document:
    """Return a document without the labels at its end."""
    size = len(document.tokens) - num_targets
    return Document(document.tokens[:size], [(a, min(b, size)) for a, b in document.supervised if a < size])


def _labels(spec: EncodingSpec, targets: list[int]) -> list[str] | None:
    """Return the names of a document's last tokens if they are labels; None for other tasks."""
    if isinstance(spec.section, Classification) and spec.labels is not None:
        return names_of_targets(targets, spec.section, spec.labels)
    return [RATINGS[target] for target in targets] if spec.facts.is_rated else None


def _num_targets(spec: EncodingSpec) -> int:
    """Number of tokens at the end of a document that are labels, not text."""
    if isinstance(spec.section, Classification) and spec.labels is not None:
        return len(spec.labels) if spec.section.kind == "multi_label" else 1
    return int(spec.facts.is_rated)


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
