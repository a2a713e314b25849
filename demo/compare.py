"""What the demo's run changed: held-out loss and answers before and after, read from the run directory alone.

python demo/compare.py RUN
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import AnswersEvent, EvaluationEvent, Scores
from tunesmith.rundir.paths import RunDir

NUM_ANSWERS = 4


def main() -> None:
    run = RunDir(Path(sys.argv[1]))
    console = Console(width=None if sys.stdout.isatty() else 120)
    scores = {event.when: event.scores for event in read_events(run.events, EvaluationEvent)}
    answers = {event.when: event.items or [] for event in read_events(run.events, AnswersEvent)}
    if "before" not in scores or "after" not in scores:
        raise SystemExit(f"{run.root} was not evaluated before and after: did the run end?")
    console.print(score_table(scores["before"], scores["after"]))
    console.print(answer_table(answers.get("before", []), answers.get("after", [])))
    places = [
        ("the report", run.report, "curves, receipts, plan against measured, proofs; open it in a browser"),
        ("the tuned model", run.export, "plain Hugging Face form, loads without Tunesmith"),
        ("each row's fate", run.receipts, "kept, cut, refused or a duplicate, and why"),
    ]
    for name, path, words in places:
        console.print(f"{name:>16}: {path}  [dim]{words}[/dim]", soft_wrap=True, highlight=False)


def score_table(before: Scores, after: Scores) -> Table:
    table = Table(title=f"{after.num_examples} held-out questions, never trained", title_justify="left")
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("loss (nats per token)", f"{before.loss:.3f}", f"{after.loss:.3f}")
    table.add_row("perplexity", f"{before.perplexity:.1f}", f"{after.perplexity:.1f}")
    table.add_row("token accuracy", f"{before.token_accuracy:.0%}", f"{after.token_accuracy:.0%}")
    return table


def answer_table(before: list[dict], after: list[dict]) -> Table:
    table = Table(title="Some of them, as answered", title_justify="left", show_lines=True)
    for heading in ("question", "right answer", "before", "after"):
        table.add_column(heading, overflow="fold")
    replies = {item["row"]: item for item in after}
    for item in [item for item in before if item["row"] in replies][:NUM_ANSWERS]:
        cells = [item["prompt"], item["reference"], shown(item), shown(replies[item["row"]])]
        table.add_row(*map(escape, cells))
    return table


def shown(item: dict) -> str:
    """The answer on one line; an ellipsis where the model did not stop by itself."""
    text = " ".join(item["answer"].split())
    return text if item["stopped"] else f"{text} ..."


if __name__ == "__main__":
    main()
