"""`tunesmith logs`: print the output of a run's processes."""

from typing import Annotated

import typer

from tunesmith.cli.arguments import Run


def logs(
    run: Run,
    rank: Annotated[int, typer.Option(help="Rank of the process.", min=0)] = 0,
    attempt: Annotated[int | None, typer.Option(help="Attempt of the run. Default: the latest.", min=1)] = None,
    launcher: Annotated[
        bool, typer.Option("--launcher", help="Show the log of the detached launcher or the batch script instead.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the run ends.")] = False,
) -> None:
    """Print the output of a process of a run. For the run's progress, see `status`."""
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.launcher.runs.remote import launcher_log, log_lines

    run_dir = find_run(run)
    path = launcher_log(run_dir) if launcher else None
    for text in log_lines(run_dir, path, rank=rank, attempt=attempt, follow=follow):
        typer.echo(text, nl=False)
