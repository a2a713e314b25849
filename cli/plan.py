"""`tunesmith plan`: every choice with its reason, before anything is trained."""

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
    """Show what would be trained, and every reason.

    Prepares the data; loads no model and starts nothing. For another place than this machine: train --dry-run --on.
    """
    from tunesmith.launcher.backends.local import Local
    from tunesmith.launcher.planning.prepare_run import make_whole_plan, read_request
    from tunesmith.launcher.progress import Progress

    request = read_request(recipe, overrides or ())
    progress = Progress(sys.stderr)
    try:
        made = make_whole_plan(request, Local(), progress.preparing)
    finally:
        progress.close()
    print_plan(made, as_json)


def print_plan(plan: "Plan", as_json: bool) -> None:
    from tunesmith.launcher.planning.plan_table import console_for, show_plan

    if as_json:
        typer.echo(plan.model_dump_json(indent=2))
    else:
        show_plan(plan, console_for())
