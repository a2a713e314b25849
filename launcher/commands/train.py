"""`tunesmith train` and `tunesmith resume`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.launcher.commands.arguments import Json, Overrides, Recipe, Run


def train(
    recipe: Recipe,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the run lives. Default: runs/NAME, by the recipe's name.", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Prepare the data and show the plan; train nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe, from rows to exported model.

    The same command again goes on where the run was left; a finished run is not trained again.
    """
    from tunesmith.launcher.commands.plan import print_plan
    from tunesmith.launcher.preflight import require_disk, require_usable
    from tunesmith.launcher.prepare import make_whole_plan, read_request
    from tunesmith.launcher.progress import Progress
    from tunesmith.launcher.runs import default_run_dir
    from tunesmith.launcher.start import train as start_training
    from tunesmith.rundir.paths import RunDir

    request = read_request(recipe, overrides or ())
    run = RunDir(run_dir or default_run_dir(request.recipe.name))
    progress = Progress(sys.stderr if as_json else sys.stdout)
    try:
        if dry_run:
            require_usable(run)
            plan = make_whole_plan(request, progress.preparing)
            require_disk(plan, run.root)
            progress.close()
            print_plan(plan, as_json)
            return
        code = start_training(request, run, progress)
    finally:
        progress.close()
    _end(run, int(code), as_json)


def resume(
    run: Run,
    as_json: Json = False,
) -> None:
    """Go on with a run from its newest checkpoint.

    Damaged checkpoints are set aside. What follows is bit for bit what it had been without the interruption.
    """
    from tunesmith.launcher.progress import Progress
    from tunesmith.launcher.runs import find_run
    from tunesmith.launcher.start import resume as start_again

    found = find_run(run)
    progress = Progress(sys.stderr if as_json else sys.stdout)
    try:
        code = start_again(found, progress)
    finally:
        progress.close()
    _end(found, int(code), as_json)


def _end(run, exit_code: int, as_json: bool) -> None:
    """Show what the run brought, and end with its exit code."""
    import json

    from tunesmith.launcher.outcome import as_object, show_outcome
    from tunesmith.launcher.plan_table import console_for

    if as_json:
        typer.echo(json.dumps({**as_object(run), "exit_code": exit_code}, ensure_ascii=False))
    elif exit_code == 0:
        show_outcome(run, console_for())
    raise typer.Exit(exit_code)
