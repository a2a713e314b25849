"""`tunesmith track`: send a run to its experiment trackers."""

from typing import Annotated

import typer

from tunesmith.cli.arguments import Run


def track(
    run: Run,
    tracker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="tensorboard, mlflow, wandb or trackio. May be repeated. Default: those of the recipe.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Send to the trackers of a run what they have not received: metrics, configuration, report and export.

    A run sends them itself while it trains. This is for trackers that could not be reached, or that the recipe does not
    list; those get their default options.
    """
    from tunesmith.errors import InputError, RunFault
    from tunesmith.launcher.attempts import stored_plan
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.launcher.runs.tracking import track as send
    from tunesmith.tracking.trackers import options_of, require_installed

    run_dir = find_run(run)
    recipe = stored_plan(run_dir).recipe
    chosen = [options_of(recipe, name) for name in tracker] if tracker else recipe.tracking
    if not chosen:
        raise InputError(
            "the recipe of the run lists no trackers",
            where=str(run_dir.root),
            remedy="choose one, such as --tracker tensorboard",
        )
    require_installed(chosen)
    failed = []
    for options in chosen:
        typer.echo(f"{options.kind}: sending")
        if send(run_dir, options.kind):
            failed.append(options.kind)
        else:
            typer.echo(f"{options.kind}: complete")
    if failed:
        raise RunFault(
            f"not complete: {', '.join(failed)}",
            where=str(run_dir.root),
            remedy="see the errors above; the same command sends only what is missing",
        )
