"""`tunesmith logs`: what the processes of a run printed."""

from typing import Annotated

import typer

from tunesmith.cli.arguments import Run


def logs(
    run: Run,
    rank: Annotated[int, typer.Option(help="Of which process.", min=0)] = 0,
    attempt: Annotated[int | None, typer.Option(help="Of which attempt; default: the newest.", min=1)] = None,
    launcher: Annotated[
        bool, typer.Option("--launcher", help="Of the launcher instead: a detached one, or a batch job's script.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing until the run ends.")] = False,
) -> None:
    """Print what a process of a run has printed; its progress is told by `status`."""
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.launcher.runs.remote import launcher_log, log_lines

    found = find_run(run)
    path = launcher_log(found) if launcher else None
    for text in log_lines(found, path, rank=rank, attempt=attempt, follow=follow):
        typer.echo(text, nl=False)
