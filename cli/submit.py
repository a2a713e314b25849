"""Submission to a batch system, for `train` and `resume`: submit the jobs, print their IDs and return."""

import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from tunesmith.launcher.backends.cluster import Cluster, Submission


def show_script(cluster: "Cluster", submission: "Submission") -> bool:
    """Print the script that would be submitted. False if the cluster has none."""
    from tunesmith.launcher.runs.launch_checks import require_usable

    cluster.check(submission)
    if not submission.options.sweep:
        require_usable(submission.run)
    if (text := cluster.script(submission)) is None:
        return False
    typer.echo(text, nl=False)
    return True


def submit(cluster: "Cluster", submission: "Submission", *, as_json: bool) -> None:
    """Submit a run, a chain or a sweep, or a run's training again, and print what was submitted."""
    from tunesmith.launcher.attempts import is_finished
    from tunesmith.launcher.runs.launch_checks import require_usable

    run = submission.run
    cluster.check(submission)
    if not submission.options.sweep:
        if submission.request is not None:
            require_usable(run)
        if run.exists and is_finished(run):
            typer.echo(f"the run in {run.root} is already finished; nothing to submit")
            return
    submitted = cluster.submit(submission)
    if as_json:
        typer.echo(json.dumps(dict(submitted.result)))
        return
    for line in (*submitted.lines, *submitted.hints):
        typer.echo(line)
