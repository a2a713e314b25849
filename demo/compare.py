"""Shows what `tunesmith evaluate RUN --baseline MODEL --out RESULTS` measured: base against tuned, then examples.

python demo/compare.py RESULTS HELD_OUT.jsonl
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

METRICS = {
    "exact_match": "record exactly right",
    "exact_match_normalised": "right but for case and punctuation",
    "valid_schema": "JSON that follows the schema",
    "loss": "loss (nats per token)",
    "perplexity": "perplexity",
}
SHARES = frozenset(("exact_match", "exact_match_normalised", "valid_schema"))
NUM_RIGHT, NUM_WRONG = 2, 1
"""Examples: stories that the tuned model gets right, and that it gets wrong."""


class Example(NamedTuple):
    story: str
    reference: str
    base: str
    tuned: str


def main() -> None:
    results, data = map(Path, sys.argv[1:])
    console = Console(width=None if sys.stdout.isatty() else 120)
    candidates = json.loads((results / "summary.json").read_text(encoding="utf-8"))["candidates"]
    examples = read_examples(results, data)
    console.print(metric_table(candidates, len(examples)))
    console.print(example_table(examples))


def metric_table(candidates: dict[str, Any], num_rows: int) -> Table:
    """candidates: model and baseline of summary.json, each with `metrics` by name."""
    table = Table(
        title=f"{num_rows} held-out stories, companies not in training", title_justify="left", box=box.HORIZONTALS
    )
    for heading in ("", "base", "tuned"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, label in METRICS.items():
        values = [candidates[role]["metrics"][name]["value"] for role in ("baseline", "model")]
        table.add_row(label, *(shown(name, value, num_rows) for value in values))
    return table


def shown(name: str, value: float, num_rows: int) -> str:
    """A share of rows as a count, any other number as it is."""
    return f"{value * num_rows:.0f} of {num_rows}" if name in SHARES else f"{value:.3f}"


def read_examples(results: Path, data: Path) -> list[Example]:
    """The rows of the data with both answers. `id` of a result is the row's position."""
    rows = [row["messages"] for row in read_lines(data)]
    base = {one["id"]: one["output"] for one in read_lines(results / "baseline.jsonl")}
    tuned = {one["id"]: one["output"] for one in read_lines(results / "results.jsonl")}
    return [Example(row[1]["content"], row[2]["content"], base[id], tuned[id]) for id, row in enumerate(rows)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def example_table(examples: list[Example]) -> Table:
    """Stories that the tuned model gets right, evenly spread over them, then the first that it gets wrong."""
    table = Table(title="Examples", title_justify="left", show_lines=True, box=box.HORIZONTALS)
    for heading, ratio in (("story", 4), ("base", 3), ("tuned", 3)):
        table.add_column(heading, overflow="fold", ratio=ratio)
    right = [one for one in examples if one.tuned == one.reference]
    wrong = [one for one in examples if one.tuned != one.reference]
    spread = right[:: max(1, len(right) // NUM_RIGHT)][:NUM_RIGHT]
    for one in (*spread, *wrong[:NUM_WRONG]):
        table.add_row(Text(one.story), marked(one.base, one.reference), marked(one.tuned, one.reference))
    return table


def marked(answer: str, reference: str) -> Text:
    """The answer on one line; a wrong record with what is right."""
    mark = ("right  ", "bold green") if answer == reference else ("wrong  ", "bold red")
    text = Text.assemble(mark, " ".join(answer.split()))
    if answer != reference and answer.startswith("{"):
        text.append(f" instead of {reference}", "dim")
    return text


if __name__ == "__main__":
    main()
