"""The summary of `tunesmith data check`: row counts and outcomes, rejected rows, lengths and an example."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.configs.recipe import Recipe
from tunesmith.data.cache import cache_root
from tunesmith.data.deidentification.deidentify import deidentified
from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.assemble import Assembly
from tunesmith.data.index.build import OwnEncoders, Progress, Source, encoder_of, prepare_sources, read_sources
from tunesmith.data.index.prepare import FIRST_ROWS, recipe_encoders, recipe_sources, shape_of
from tunesmith.data.index.summary import SplitSummary, percentiles, summarise
from tunesmith.data.readers.sources import Line, read
from tunesmith.data.refusal import Refusal, excerpt
from tunesmith.data.rows.formats import Completion, Conversation, Row, guess_task, read_row
from tunesmith.data.rows.known_keys import ignored_keys
from tunesmith.data.rows.receipts import Note, Reject
from tunesmith.data.rows.split import first_equals
from tunesmith.data.tokenization.agreement import missing_comparison
from tunesmith.data.tokenization.tokenizer import Tokenizer

SHOWN_KEYS = 20


@dataclass
class CheckSummary:
    """rows: number of rows read; outcomes: count of each outcome, summing to rows. rejects: the first ones.
    duplicates: rows equal to an earlier one. unit: unit of lengths, tokens or (without a tokenizer) characters.
    splits: as in summary.json, empty for bare files. example: the first valid row, as read."""

    task: str
    files: list[str]
    rows: int
    outcomes: dict[str, int]
    rejects: list[Reject]
    duplicates: int
    unit: str
    length_percentiles: dict[str, int]
    total: int
    supervised_tokens: int | None = None
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    example: Any = None
    omitted: dict[str, int] = field(default_factory=dict)
    """Number of rows of which the chat template does not show everything, by the kind of value."""
    inserted: dict[str, int] = field(default_factory=dict)
    """Number of rows into whose trained answers the chat template inserts text that is not trained, by the text."""
    near_duplicates: dict[str, Any] | None = None
    """As in summary.json; None for bare files."""
    ignored_keys: list[str] = field(default_factory=list)
    """Keys of the first rows that have no meaning for the task, and are not trained."""
    warnings: list[str] = field(default_factory=list)
    special_token_rows: int = 0
    """As in summary.json; 0 for bare files."""
    datasets: list[dict[str, Any]] = field(default_factory=list)
    """Rows and tokens of each data set, as in summary.json but without samples; empty if they have no names."""

    @property
    def num_rejected(self) -> int:
        return self.outcomes.get("rejected", 0)

    def as_json(self) -> dict[str, object]:
        """The output of `tunesmith data check --json`."""
        shown: dict[str, object] = {
            "fates" if name == "outcomes" else name: value for name, value in asdict(self).items()
        }
        return shown | {"rejects": [reject.as_json() for reject in self.rejects]}


def check_recipe(
    recipe: Recipe,
    tokenizer: Tokenizer,
    *,
    recipe_dir: Path,
    limit: int = 20,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> CheckSummary:
    """Check the recipe's rows as training reads them; the tokens are cached. limit: maximum rejects in the summary.

    Rejected rows are reported, not raised. Raises InputError if a file is missing or unreadable.
    """
    sources = recipe_sources(recipe, recipe_dir, progress)
    encoder, encoders = recipe_encoders(recipe, tokenizer, sources)
    prepared = prepare_sources(sources, encoder, cache or cache_root(), progress, encoders=encoders)
    assembly = Assembly(prepared, shape_of(recipe))
    outcomes = assembly.outcomes
    summary = summarise(outcomes, {}, None)
    return CheckSummary(
        task=recipe.task,
        files=_files(sources),
        rows=summary["rows"],
        outcomes=summary["fates"],
        rejects=assembly.rejects(limit),
        duplicates=int((outcomes.duplicate_of >= 0).sum()),
        unit="tokens",
        length_percentiles=percentiles(outcomes.tokens[outcomes.indexed]),
        total=int(outcomes.tokens.sum()),
        supervised_tokens=int(outcomes.supervised.sum()),
        splits=summary["splits"],
        example=_first_good(sources, encoder, encoders),
        ignored_keys=_ignored_keys(sources, encoder.spec, {name: own.spec for name, own in encoders.items()}),
        omitted=assembly.omitted(),
        inserted=assembly.inserted(),
        near_duplicates=assembly.near_duplicates(),
        special_token_rows=assembly.num_special,
        datasets=assembly.dataset_facts(),
        warnings=list(filter(None, [missing_comparison(tokenizer)])),
    )


def check_files(
    names: Sequence[str], task: str | None = None, *, recipe_dir: Path | None = None, limit: int = 20
) -> CheckSummary:
    """Check bare files without a model: format, roles, keys, text. task: if None, inferred from the first rows' keys.

    Lengths are in characters; checks that need a tokenizer (length limit, chat template) are skipped. Raises InputError
    if a file is missing or unreadable.
    """
    sources = read_sources(names, 0.0, recipe_dir or Path.cwd())
    task = task or _guess(sources)
    counts: Counter[str] = Counter(kept=0, rejected=0)
    rejects: list[Reject] = []
    keys, lengths, example = bytearray(), [], None
    for number, (name, line) in enumerate(_lines(sources)):
        row = _row_or_refusal(line, task)
        if isinstance(row, Refusal):
            counts["rejected"] += 1
            if len(rejects) < limit:
                note = Note(row.reason, row.remedy, excerpt(line.raw), row.code)
                rejects.append(Reject.of(number, name, line.number, note))
            continue
        counts["kept"] += 1
        example = example or line.value
        keys += row.key()
        lengths.append(_characters(row))
    halves = np.frombuffer(bytes(keys), np.uint64).reshape(-1, 2)
    duplicate_of = first_equals(halves[:, 0], halves[:, 1], np.ones(len(halves), np.bool_))
    return CheckSummary(
        task=task,
        files=_files(sources),
        rows=counts.total(),
        outcomes=dict(counts),
        rejects=rejects,
        duplicates=int((duplicate_of >= 0).sum()),
        unit="characters",
        length_percentiles=percentiles(np.array(lengths)),
        total=sum(lengths),
        example=example,
        ignored_keys=_ignored_keys(sources, EncodingSpec(task, 0)),
    )


def _lines(sources: Sequence[Source]) -> Any:
    return ((source.name, line) for source in sources for line in read(source.shard))


def _row_or_refusal(line: Line, task: str) -> Row | Refusal:
    try:
        return line.value if isinstance(line.value, Refusal) else read_row(line.value, task)
    except Refusal as refusal:
        return refusal


def _guess(sources: Sequence[Source]) -> str:
    """Infer the task from the first row whose keys indicate one; chat if none of the first hundred rows does."""
    for (_, line), _ in zip(_lines(sources), range(100), strict=False):
        if task := guess_task(line.value):
            return task
    return "chat"


def _first_good(sources: Sequence[Source], encoder: RowEncoder, encoders: OwnEncoders) -> Any:
    """Return the first trained row as training reads it, with de-identification applied."""
    lines = ((source, line) for source in sources for line in read(source.shard))
    for (source, line), _ in zip(lines, range(1000), strict=False):
        if encoder_of(source, encoder, encoders).encode([line.value])[0].documents:
            settings = encoder.spec.deidentify
            return line.value if settings is None else deidentified(line.value, settings)[0]
    return None


def _ignored_keys(
    sources: Sequence[Source], spec: EncodingSpec, specs: Mapping[tuple[str, bool], EncodingSpec] | None = None
) -> list[str]:
    """Return the keys of the first rows that are not read. De-identified rows do not show their keys. specs: of data
    sets that have another one, with keys as in OwnEncoders."""
    if spec.withholds:
        return []
    keys: dict[str, None] = {}
    lines = ((source, line) for source in sources for line in read(source.shard))
    for (source, line), _ in zip(lines, range(FIRST_ROWS), strict=False):
        named = (specs or {}).get((source.dataset, source.validation), spec).columns
        columns = named.renamed() if named is not None else {}
        keys |= dict.fromkeys(ignored_keys(line.value, spec.task, spec.section, columns))
        if len(keys) >= SHOWN_KEYS:
            break
    return [key[:40] for key in keys][:SHOWN_KEYS]


def _files(sources: Sequence[Source]) -> list[str]:
    return list(dict.fromkeys(source.name for source in sources))


def _characters(row: Row) -> int:
    if isinstance(row, Conversation):
        return sum(len(message.get("content") or "") for message in row.messages)
    return len(row.prompt) + len(row.completion) if isinstance(row, Completion) else len(row.text)
