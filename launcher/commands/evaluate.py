"""`tunesmith evaluate`: a model's loss on any rows, alone or against a baseline."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.launcher.commands.arguments import Json, Target

if TYPE_CHECKING:
    from tunesmith.evaluation.standalone import StandaloneEvaluation


def evaluate(
    model: Target,
    data: Annotated[
        list[str],
        typer.Option(metavar="FILE", help="Rows to score: a file, a pattern, a directory. May be repeated."),
    ],
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN|MODEL", help="Score this as well, and compare.", show_default=False)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="chat|completion|text", help="Default: the run's, or by the rows.", show_default=False),
    ] = None,
    max_seq_len: Annotated[
        int | None, typer.Option(min=8, help="Default: the run's, or the model's context.", show_default=False)
    ] = None,
    max_rejects: Annotated[int, typer.Option(min=0, help="Refused rows that are tolerated.")] = 0,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the loss of every row here.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a run or a model on rows of yours.

    Loss, perplexity and token accuracy with their standard errors; against a baseline also the difference with its
    95 % interval, paired row by row.
    """
    from tunesmith.errors import InputError
    from tunesmith.launcher.progress import Progress
    from tunesmith.launcher.runs import find_target

    if task not in (None, "chat", "completion", "text"):
        raise InputError(f"unknown task {task!r}", where="--task", remedy="write chat, completion or text")
    model, baseline = find_target(model), find_target(baseline) if baseline is not None else None
    progress = Progress(sys.stderr)
    try:
        with redirect_stdout(sys.stderr):  # libraries may print as they are imported
            from tunesmith.evaluation.standalone import evaluate as score

            found = score(
                model,
                data,
                baseline=baseline,
                task=task,
                max_seq_len=max_seq_len,
                max_rejects=max_rejects,
                results=results,
                progress=progress.counting,
            )
    finally:
        progress.close()
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        _show(found)


def _show(found: "StandaloneEvaluation") -> None:
    from rich.table import Table

    from tunesmith.launcher.plan_table import console_for
    from tunesmith.report.wording import change, count, decimal, duration, percent, plural, significant

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column(plural(found.num_rows, "row"))
    columns = [("model", found.metrics)]
    if found.baseline_metrics is not None:
        columns.insert(0, ("baseline", found.baseline_metrics))
    for name, _ in columns:
        table.add_column(name, justify="right")

    def within(text: str, error: str) -> str:
        return f"{text} ± {error}" if error != "–" else text

    loss = [within(decimal(metrics.loss), decimal(metrics.loss_error)) for _, metrics in columns]
    table.add_row("loss (nats a token)", *loss)
    table.add_row("perplexity", *(significant(metrics.perplexity, 4) for _, metrics in columns))
    table.add_row("tokens foreseen", *(percent(metrics.token_accuracy) for _, metrics in columns))
    console = console_for()
    console.print(f"{found.model} on {', '.join(found.data)} ({found.task})", markup=False, soft_wrap=True)
    console.print(table)
    if found.comparison is not None:
        difference = found.comparison.loss
        interval = f" (95 % interval {decimal(difference.low)} to {decimal(difference.high)})"
        doubt = "" if difference.is_clear else "; it may be chance, since the interval includes zero"
        console.print(f"difference of the loss: {change(difference.value)}{interval}{doubt}", markup=False)
    told = f"{count(found.metrics.num_tokens)} tokens of {plural(found.metrics.num_examples, 'row')} scored"
    console.print(f"{told} in {duration(found.seconds)}", style="dim", markup=False)
