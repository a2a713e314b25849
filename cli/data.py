"""`tunesmith data check` and `tunesmith data show`: inspect rows before training."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.arguments import LANGUAGE_MODELING, Json, Overrides, Recipe, require_language_modeling

if TYPE_CHECKING:
    from tunesmith.data.check import CheckSummary
    from tunesmith.data.show import ShownRow
    from tunesmith.launcher.terminal import TextConsole

RECIPE_SUFFIXES = {".yaml", ".yml"}
OPEN, CLOSE = "⟦", "⟧"
"""Mark the trained spans in output without colors. Both characters are rare in text."""

data = typer.Typer(help="Check and show the rows of a recipe or a file.", no_args_is_help=True, rich_markup_mode=None)


@data.command()
def check(
    source: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe, or a data file.", show_default=False)],
    overrides: Overrides = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(LANGUAGE_MODELING),
            help="Task of a data file. Default: inferred from its rows.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rejected rows to show.")] = 20,
    as_json: Json = False,
) -> None:
    """Check every row and report the rejected ones.

    The rows of a RECIPE are read as for training, those of a FILE without a model. Exits with 2 if rows are rejected
    (for a recipe: more than data.max_rejects).
    """
    from tunesmith.data.check import check_files
    from tunesmith.errors import InputError

    require_language_modeling(task)
    if Path(source).suffix.lower() in RECIPE_SUFFIXES:
        summary, allowed = _check_recipe(Path(source), overrides or [], limit)
    elif overrides:
        raise InputError("a data file has no keys to override", where="--set", remedy="pass a recipe, or omit --set")
    else:
        summary, allowed = check_files([source], task, limit=limit), 0
    if as_json:
        typer.echo(json.dumps(summary.as_json(), ensure_ascii=False, indent=2, default=str))
    else:
        _show_summary(summary, allowed)
    raise typer.Exit(2 if summary.num_rejected > allowed or not summary.rows else 0)


@data.command()
def show(
    recipe: Recipe,
    overrides: Overrides = None,
    first: Annotated[int, typer.Option(min=0, help="Index of the first row to show, from 0.")] = 0,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Number of rows to show.")] = 3,
    as_json: Json = False,
) -> None:
    """Show rows as the model sees them.

    Prints the text of their tokens; tokens that count toward the loss are colored, or enclosed in ⟦ ⟧ without colors.
    """
    from tunesmith.data.show import show as rows_of
    from tunesmith.launcher.planning.prepare_run import find_tokenizer, read_request
    from tunesmith.launcher.terminal import console_for

    request = read_request(recipe, overrides or ())
    tokenizer = find_tokenizer(request.recipe, request.directory)
    rows = rows_of(request.recipe, tokenizer, recipe_dir=request.directory, first=first, limit=limit)
    if as_json:
        typer.echo(json.dumps([row.as_json() for row in rows], ensure_ascii=False, indent=2))
        return
    console = console_for()
    num_shown = 0
    for row in rows:
        _show_row(row, console)
        num_shown += 1
    if not num_shown:
        typer.echo(f"there is no row {first}", err=True)


def _check_recipe(path: Path, overrides: list[str], limit: int) -> "tuple[CheckSummary, int]":
    from tunesmith.data.cache import cache_root
    from tunesmith.data.check import check_recipe
    from tunesmith.launcher.planning.prepare_run import find_tokenizer, read_request
    from tunesmith.launcher.progress import Progress
    from tunesmith.modeling.base_model.positions import positions_in, positions_warning

    request = read_request(path, overrides)
    tokenizer = find_tokenizer(request.recipe, request.directory)
    progress = Progress(sys.stderr)
    try:
        summary = check_recipe(
            request.recipe,
            tokenizer,
            recipe_dir=request.directory,
            limit=limit,
            cache=cache_root(),
            progress=progress.preparing,
        )
    finally:
        progress.close()
    positions = positions_in(tokenizer.directory) if tokenizer.directory else None
    longest = summary.length_percentiles.get("max")
    if warning := positions_warning(request.recipe.data.max_seq_len, positions, longest):
        summary.warnings.append(warning)
    return summary, request.recipe.data.max_rejects


def _show_summary(summary: "CheckSummary", allowed: int) -> None:
    from tunesmith.launcher.terminal import console_for
    from tunesmith.report.wording import count, omissions, plural

    console = console_for()

    def line(name: str, text: str) -> None:
        console.print(f"{name:>12}: {text}", soft_wrap=True)

    line("files", ", ".join(summary.files))
    line("task", summary.task)
    outcomes = [f"{count(number)} {outcome}" for outcome, number in summary.outcomes.items() if number]
    line("rows", f"{count(summary.rows)}" + (f": {', '.join(outcomes)}" if outcomes else ""))
    if summary.duplicates:
        line("duplicates", f"{plural(summary.duplicates, 'row')} identical to an earlier row")
    if summary.supervised_tokens is not None:
        line("tokens", f"{count(summary.total)}, {count(summary.supervised_tokens)} of them supervised")
    for name, text in _notes(summary):
        line(name, text)
    lengths = ", ".join(f"{key} {count(value)}" for key, value in summary.length_percentiles.items())
    line("length", f"{summary.unit} per row: {lengths}" if lengths else "–")
    if summary.example is not None:
        example = json.dumps(summary.example, ensure_ascii=False, default=str)
        line("first row", example if len(example) <= 300 else example[:297] + "...")
    if summary.ignored_keys:
        line("ignored", f"keys that are not read: {', '.join(summary.ignored_keys)}")
    for warning in summary.warnings:
        console.print(f"{'warning':>12}: {warning}", style="yellow", soft_wrap=True)
    for reject in summary.rejects:
        console.print(f"{reject.source}:{reject.line}: {reject.reason}", style="red", soft_wrap=True)
        console.print(f"    {reject.remedy}", style="dim", soft_wrap=True)
    if summary.omitted:
        console.print(f"warning: the chat template omits {omissions(summary.omitted)}", style="yellow", soft_wrap=True)
    if more := summary.num_rejected - len(summary.rejects):
        console.print(f"... and {plural(more, 'more rejected row')} (--limit N to show them)")
    if not summary.rows:
        console.print("no rows found", style="red")
    elif summary.num_rejected:
        verdict = f"{plural(summary.num_rejected, 'row')} rejected; data.max_rejects allows {count(allowed)}"
        console.print(verdict, style="red" if summary.num_rejected > allowed else "yellow")
    else:
        console.print("all rows can be used", style="green")


def _notes(summary: "CheckSummary") -> Iterator[tuple[str, str]]:
    """Yield facts about data sets, special tokens and inserted text, each with its name."""
    from tunesmith.report.wording import count, plural

    for each in summary.datasets:
        held_out = f", {plural(each['validation_rows'], 'validation row')}" if each["validation_rows"] else ""
        tokens = f"{count(each['num_tokens'])} tokens, {count(each['supervised_tokens'])} of them supervised"
        yield "data set", f"{each['name']}: {plural(each['num_rows'], 'training row')} ({tokens}){held_out}"
    for text, number in summary.inserted.items():
        yield "inserted", f"{text!r}, by the chat template into the answers of {plural(number, 'row')}; not trained"
    if summary.special_token_rows:
        yield "special", f"{plural(summary.special_token_rows, 'row')} with special tokens in their content"


def _show_row(row: "ShownRow", console: "TextConsole") -> None:
    from rich.text import Text

    from tunesmith.launcher.terminal import printable
    from tunesmith.report.wording import count

    head = f"row {row.row}, {row.source}:{row.line}: {row.outcome}"
    if row.dataset is not None:
        head = f"row {row.row}, data set {row.dataset}, {row.source}:{row.line}: {row.outcome}"
    if row.tokens:
        head += f", {count(row.tokens)} tokens, {count(row.supervised_tokens)} of them supervised"
    console.print(head, style="bold", soft_wrap=True)
    for note in (row.reason, row.remedy):
        if note:
            console.print(f"  {note}", style="yellow", soft_wrap=True)
    for text in row.inserted:
        console.print(f"  the chat template inserts {text!r}, which is not trained", style="yellow", soft_wrap=True)
    for heading, segments in row.parts():
        shown = Text()
        for content, trained in segments:
            text = printable(content)
            if console.is_terminal and not console.no_color:
                shown.append(text, style="bold green" if trained else "dim")
            else:
                shown.append(f"{OPEN}{text}{CLOSE}" if trained else text)
        if heading:
            console.print(f"{heading}:", style="bold")
        if segments:
            console.print(shown, soft_wrap=True)
    if row.labels is not None:
        names = ", ".join(map(printable, row.labels)) or "none"
        console.print(f"label: {names}", style="bold", soft_wrap=True)
    console.print()
