"""`tunesmith runs`: list the runs of a directory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.arguments import Json

if TYPE_CHECKING:
    from tunesmith.launcher.runs.find import RunRow


def runs(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Directory with runs. Default: ./runs.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    from tunesmith.launcher.runs.find import list_runs, runs_folder

    rows = list_runs(folder)
    if as_json:
        typer.echo(json.dumps([row.as_json() for row in rows], indent=2))
        return
    if not rows:
        typer.echo(f"no runs in {folder or runs_folder()}; `tunesmith train RECIPE` starts one")
        return
    show_runs(rows)


def show_runs(rows: "Sequence[RunRow]") -> None:
    """Print the runs as a table."""
    from rich.table import Table

    from tunesmith.launcher.terminal import console_for
    from tunesmith.report.wording import decimal, moment

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("run", "phase", "step", "loss", "started", "directory"):
        table.add_column(heading, justify="right" if heading in ("step", "loss") else "left", overflow="fold")
    for row in rows:
        steps = f"{row.step}/{row.total_steps}" if row.total_steps else "–"
        table.add_row(row.name, row.phase, steps, decimal(row.loss), moment(row.started), row.path)
    console_for().print(table)
