"""`tunesmith status`: how a run stands, once or as it goes."""

import json
import time
from typing import Annotated

import typer

from tunesmith.cli.arguments import Run

FOLLOW_S = 0.5


def status(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on telling until the run ends.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object; with --follow one event a line.")
    ] = False,
) -> None:
    """Tell how a run stands.

    Phase, step, time left; the cause where it did not end well.
    """
    from tunesmith.launcher.planning.plan_table import console_for
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.launcher.runs.outcome import as_object, show_standing

    found = find_run(run)
    if follow:
        _follow(found, as_json)
    if as_json and not follow:
        typer.echo(json.dumps(as_object(found), ensure_ascii=False, indent=2))
    elif not as_json:
        show_standing(found, console_for())


def _follow(run, as_json: bool) -> None:
    """Tell of every event from now on, until no process works on the run."""
    from tunesmith.launcher.attempts import stored_plan
    from tunesmith.launcher.progress import Progress
    from tunesmith.launcher.runs.cluster_jobs import is_at_work
    from tunesmith.rundir.event_log import EventFollower

    def runs_on() -> bool:
        return is_at_work(run)

    if as_json:
        follower = EventFollower(run.events, from_end=True)
        alive = True
        while alive:
            alive = runs_on()  # asked before reading: what comes in between is read in the next round
            for event in follower.new():
                typer.echo(json.dumps(event.to_json(), ensure_ascii=False))
            time.sleep(FOLLOW_S if alive else 0)
        return
    while not run.exists and runs_on():
        time.sleep(FOLLOW_S)
    if not run.exists:
        return
    progress = Progress()
    with progress.following(run, stored_plan(run)):
        while runs_on():
            progress.poll()
            time.sleep(FOLLOW_S)
