"""`tunesmith data check` and `tunesmith data show`: the rows, before anything is trained on them."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.arguments import LANGUAGE_MODELING, Json, Overrides, Recipe, require_language_modeling

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.data.check import CheckSummary
    from tunesmith.data.show import ShownRow

RECIPE_SUFFIXES = {".yaml", ".yml"}
OPEN, CLOSE = "⟦", "⟧"
"""Around what is trained, where there are no colours. Two characters that hardly any text holds."""

data = typer.Typer(help="Look at the rows of a recipe or a file.", no_args_is_help=True, rich_markup_mode=None)


@data.command()
def check(
    source: Annotated[
        str, typer.Argument(metavar="RECIPE|FILE", help="A recipe, or a file of rows.", show_default=False)
    ],
    overrides: Overrides = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(LANGUAGE_MODELING), help="Of a bare file. Default: by its rows.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Refused rows that are shown at most.")] = 20,
    as_json: Json = False,
) -> None:
    """Check every row, and say what is wrong with which.

    Of a recipe as training would read it; of a bare FILE without a model. Ends with 2 where rows are refused (more than
    data.max_rejects of a recipe).
    """
    from tunesmith.data.check import check_files
    from tunesmith.errors import InputError

    require_language_modeling(task)
    if Path(source).suffix.lower() in RECIPE_SUFFIXES:
        summary, allowed = _check_recipe(Path(source), overrides or [], limit)
    elif overrides:
        raise InputError("a bare file has no keys to override", where="--set", remedy="name a recipe, or leave it out")
    else:
        summary, allowed = check_files([source], task, limit=limit), 0
    if as_json:
        typer.echo(json.dumps(summary.as_json(), ensure_ascii=False, indent=2))
    else:
        _show_summary(summary, allowed)
    raise typer.Exit(2 if summary.num_rejected > allowed or not summary.rows else 0)


@data.command()
def show(
    recipe: Recipe,
    overrides: Overrides = None,
    first: Annotated[int, typer.Option(min=0, help="The first row to show, counted from 0.")] = 0,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Rows to show.")] = 3,
    as_json: Json = False,
) -> None:
    """Show rows as the model will see them.

    The text of their tokens, with what is trained in colour; between ⟦ and ⟧ where there are no colours.
    """
    from tunesmith.data.show import show as rows_of
    from tunesmith.launcher.planning.plan_table import console_for
    from tunesmith.launcher.planning.prepare_run import find_tokenizer, read_request

    request = read_request(recipe, overrides or ())
    tokenizer = find_tokenizer(request.recipe, request.directory)
    rows = rows_of(request.recipe, tokenizer, recipe_dir=request.directory, first=first, limit=limit)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], ensure_ascii=False, indent=2))
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
    return summary, request.recipe.data.max_rejects


def _show_summary(summary: "CheckSummary", allowed: int) -> None:
    from tunesmith.launcher.planning.plan_table import console_for
    from tunesmith.report.wording import count, plural

    console = console_for()

    def line(name: str, words: str) -> None:
        console.print(f"{name:>12}: {words}", markup=False, soft_wrap=True)

    line("files", ", ".join(summary.files))
    line("task", summary.task)
    fates = [f"{count(number)} {fate}" for fate, number in summary.fates.items() if number]
    line("rows", f"{count(summary.rows)}" + (f": {', '.join(fates)}" if fates else ""))
    if summary.duplicates:
        line("duplicates", f"{plural(summary.duplicates, 'row')} equal to an earlier one")
    if summary.supervised_tokens is not None:
        line("tokens", f"{count(summary.total)}, {count(summary.supervised_tokens)} of them trained")
    lengths = ", ".join(f"{key} {count(value)}" for key, value in summary.length_percentiles.items())
    line("length", f"{summary.unit} a row: {lengths}" if lengths else "–")
    if summary.example is not None:
        example = json.dumps(summary.example, ensure_ascii=False)
        line("first row", example if len(example) <= 300 else example[:297] + "...")
    for reject in summary.rejects:
        console.print(f"{reject.source}:{reject.line}: {reject.reason}", style="red", markup=False, soft_wrap=True)
        console.print(f"    {reject.remedy}", style="dim", markup=False, soft_wrap=True)
    if more := summary.num_rejected - len(summary.rejects):
        console.print(f"... and {plural(more, 'refused row')} more (--limit shows more)", markup=False)
    if not summary.rows:
        console.print("there are no rows at all", style="red")
    elif summary.num_rejected:
        verdict = (
            f"{plural(summary.num_rejected, 'row')} cannot be used; {count(allowed)} are allowed (data.max_rejects)"
        )
        console.print(verdict, style="red" if summary.num_rejected > allowed else "yellow", markup=False)
    else:
        console.print("every row can be used", style="green")


def _show_row(row: "ShownRow", console: "Console") -> None:
    from rich.text import Text

    from tunesmith.report.wording import count

    head = f"row {row.row}, {row.source}:{row.line}: {row.fate}"
    if row.tokens:
        head += f", {count(row.tokens)} tokens, {count(row.supervised_tokens)} of them trained"
    console.print(head, style="bold", markup=False, soft_wrap=True)
    for words in (row.reason, row.remedy):
        if words:
            console.print(f"  {words}", style="yellow", markup=False, soft_wrap=True)
    shown = Text()
    for text, trained in row.segments:
        if console.is_terminal and not console.no_color:
            shown.append(text, style="bold green" if trained else "dim")
        else:
            shown.append(f"{OPEN}{text}{CLOSE}" if trained else text)
    if row.segments:
        console.print(shown, soft_wrap=True)
    console.print()
