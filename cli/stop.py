"""`tunesmith stop`: stop a run after saving its state, from any machine that can access its directory."""

from typing import Annotated

import typer

from tunesmith.cli.arguments import Run


def stop(
    run: Run,
    wait_s: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="Time to wait for the run to end.", min=0)
    ] = 120.0,
) -> None:
    """Stop a run after saving its state; `tunesmith resume` continues it.

    Exits with 0 once the run has ended, with 1 if it has not ended within the wait.
    """
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.launcher.runs.remote import stop_run

    typer.echo(stop_run(find_run(run), wait_s))
