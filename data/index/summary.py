"""summary.json: counts of the rows read, their outcomes and the contents of the token indexes, which add up."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import numpy as np

from tunesmith.data.index.token_index import IndexFacts
from tunesmith.data.outcomes import OUTCOMES, UNSELECTED
from tunesmith.data.rows.receipts import SPLITS, RowOutcomes

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


class SplitSummary(TypedDict):
    """fates: number of rows by outcome. trained_rows: rows in the index. duplicates: rows equal to an earlier one,
    dropped or not. padding_share: fraction of padding in packed samples; None without packing."""

    rows: int
    fates: dict[str, int]
    trained_rows: int
    documents: int
    samples: int
    longest_document: int
    tokens: int
    supervised_tokens: int
    duplicates: int
    lost_tokens: int
    lost_supervised_tokens: int
    length_percentiles: dict[str, int]
    padding_share: float | None


class Summary(TypedDict):
    """near_duplicates: as returned by `Assembly.near_duplicates`. deidentified: number of replaced places by kind.
    special_token_rows: number of rows in the indexes with special tokens in their content, if there are any. omitted:
    number of rows in an index of which the chat template does not show everything, by the kind of value. inserted:
    number of rows in an index into whose trained answers it inserts text, by the text. datasets: fields of
    DataSetFacts, if data sets have names."""

    rows: int
    fates: dict[str, int]
    splits: dict[str, SplitSummary]
    near_duplicates: NotRequired[dict[str, Any] | None]
    deidentified: NotRequired[dict[str, int]]
    special_token_rows: NotRequired[int]
    omitted: NotRequired[dict[str, int]]
    inserted: NotRequired[dict[str, int]]
    datasets: NotRequired[list[dict[str, Any]]]


def summarise(outcomes: RowOutcomes, indexes: Mapping[str, IndexFacts], capacity: int | None) -> Summary:
    """Summarize the outcomes of rows. indexes: by split. capacity: maximum tokens of a packed sample; None without
    packing. Raises AssertionError if the counts do not add up."""
    splits: dict[str, SplitSummary] = {}
    for number, name in enumerate(SPLITS):
        rows = outcomes.split == number
        if rows.any():
            splits[name] = _summary_of(outcomes, rows, indexes.get(name), capacity if name == "train" else None)
    total = Counter[str]()
    for split in splits.values():
        total.update(split["fates"])
    assert sum(total.values()) == len(outcomes.outcome), "a row has no receipt, or two"
    fates = {outcome: total[outcome] for outcome in OUTCOMES if outcome != UNSELECTED or total[outcome]}
    return {"rows": len(outcomes.outcome), "fates": fates, "splits": splits}


def _summary_of(
    outcomes: RowOutcomes, rows: np.ndarray, facts: IndexFacts | None, capacity: int | None
) -> SplitSummary:
    """Summarize one split. rows: its rows, bool [N]."""
    indexed = rows & outcomes.indexed
    tokens, supervised = int(outcomes.tokens[indexed].sum()), int(outcomes.supervised[indexed].sum())
    if facts is not None:
        assert facts.num_tokens == tokens, "the index and the receipts differ in tokens"
        assert facts.supervised_tokens == supervised, "index and receipts differ in targets"
    padding_share = None
    if facts is not None and capacity is not None:
        padding_share = round(1 - facts.num_tokens / (facts.num_samples * capacity), 6)
    return {
        "rows": int(rows.sum()),
        "fates": _counts(outcomes.outcome[rows]),
        "trained_rows": int(indexed.sum()),
        "documents": facts.num_documents if facts else 0,
        "samples": facts.num_samples if facts else 0,
        "longest_document": facts.longest_tokens if facts else 0,
        "tokens": tokens,
        "supervised_tokens": supervised,
        "duplicates": int((outcomes.duplicate_of[rows] >= 0).sum()),
        "lost_tokens": int(outcomes.lost_tokens[rows].sum()),
        "lost_supervised_tokens": int(outcomes.lost_supervised[rows].sum()),
        "length_percentiles": percentiles(outcomes.tokens[indexed]),
        "padding_share": padding_share,
    }


def percentiles(lengths: np.ndarray) -> dict[str, int]:
    """Return percentiles of the lengths and their maximum; empty if there are no rows."""
    if not len(lengths):
        return {}
    values = np.percentile(lengths, PERCENTILES, method="lower")
    return {f"p{p}": int(value) for p, value in zip(PERCENTILES, values, strict=True)} | {"max": int(lengths.max())}


def _counts(outcome: np.ndarray) -> dict[str, int]:
    counts = np.bincount(outcome, minlength=len(OUTCOMES))
    named = dict(zip(OUTCOMES, counts.tolist(), strict=True))
    return {name: count for name, count in named.items() if name != UNSELECTED or count}  # without data sets, none
