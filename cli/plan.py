"""`tunesmith plan`: show every choice with its reason, before training."""

import sys
from typing import TYPE_CHECKING

import typer

from tunesmith.cli.arguments import Json, Overrides, Recipe

if TYPE_CHECKING:
    from tunesmith.configs.plan import Plan


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Show the plan of a training run, with a reason for every choice.

    Prepares the data, but loads no model and starts nothing. To plan for another back end: train --dry-run --on.
    """
    from tunesmith.launcher.backends.local import Local
    from tunesmith.launcher.planning.prepare_run import make_whole_plan, read_request
    from tunesmith.launcher.progress import Progress

    request = read_request(recipe, overrides or ())
    progress = Progress(sys.stderr)
    try:
        result = make_whole_plan(request, Local(), progress.preparing)
    finally:
        progress.close()
    print_plan(result, as_json)


def print_plan(plan: "Plan", as_json: bool) -> None:
    from tunesmith.launcher.planning.plan_table import show_plan
    from tunesmith.launcher.terminal import console_for

    if as_json:
        typer.echo(plan.model_dump_json(indent=2))
    else:
        show_plan(plan, console_for())
