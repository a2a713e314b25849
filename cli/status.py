"""`tunesmith status`: show the status of a run, once or continuously."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.arguments import Run
from tunesmith.cli.runs import show_runs

FOLLOW_S = 0.5


def status(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing progress until the run ends.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object; with --follow one event per line.")
    ] = False,
) -> None:
    """Show the status of a run.

    Prints phase, step and time left; for a failed run, the cause. For a directory of runs, such as that of a sweep, it
    prints one line per run.
    """
    from tunesmith.launcher.runs.find import find_folder, find_run
    from tunesmith.launcher.runs.outcome import as_object, show_status
    from tunesmith.launcher.terminal import console_for

    folder = None if follow else find_folder(run)
    if folder is not None:
        _show_folder(folder, as_json)
        return
    run_dir = find_run(run)
    if follow:
        _follow(run_dir, as_json)
    if as_json and not follow:
        typer.echo(json.dumps(as_object(run_dir), ensure_ascii=False, indent=2))
    elif not as_json:
        show_status(run_dir, console_for())


def _show_folder(folder: Path, as_json: bool) -> None:
    """Print the runs of a directory by name, and how many are in which phase."""
    from tunesmith.launcher.runs.find import list_runs

    rows = sorted(list_runs(folder), key=lambda row: row.name)
    phases = Counter(row.phase for row in rows)
    if as_json:
        runs = [row.as_json() for row in rows]
        typer.echo(json.dumps({"directory": str(folder), "phases": phases, "runs": runs}, ensure_ascii=False, indent=2))
        return
    typer.echo(f"{len(rows)} runs: {', '.join(f'{number} {phase}' for phase, number in phases.items())}")
    show_runs(rows)


def _follow(run, as_json: bool) -> None:
    """Print every new event until no process works on the run any more."""
    from tunesmith.launcher.attempts import stored_plan
    from tunesmith.launcher.progress import Progress
    from tunesmith.launcher.runs.cluster_jobs import is_active
    from tunesmith.rundir.event_log import EventFollower

    if as_json:
        follower = EventFollower(run.events, from_end=True)
        active = True
        while active:
            active = is_active(run)  # checked before reading, so that the last round reads the last events
            for event in follower.new():
                typer.echo(json.dumps(event.to_json(), ensure_ascii=False))
            time.sleep(FOLLOW_S if active else 0)
        return
    while not run.exists and is_active(run):
        time.sleep(FOLLOW_S)
    if not run.exists:
        return
    progress = Progress()
    with progress.following(run, stored_plan(run)):
        while is_active(run):
            progress.poll()
            time.sleep(FOLLOW_S)
