"""`tunesmith stop`: ask a run to save and end, from anywhere that sees its directory."""

from typing import Annotated

import typer

from tunesmith.cli.arguments import Run


def stop(
    run: Run,
    wait_s: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="How long to wait for the state to be saved.", min=0)
    ] = 120.0,
) -> None:
    """Let a run save its state and end; `tunesmith resume` goes on from there.

    Ends with 0 once the run has ended, with 1 where it has not within the wait.
    """
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.launcher.runs.remote import stop_run

    typer.echo(stop_run(find_run(run), wait_s))
