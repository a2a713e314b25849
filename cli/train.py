"""`tunesmith train` and `tunesmith resume`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.arguments import (
    Address,
    After,
    Chain,
    Detach,
    EvaluateOn,
    Json,
    LauncherKind,
    Nodes,
    On,
    Overrides,
    Parallel,
    Recipe,
    Run,
    Site,
    Sweep,
)
from tunesmith.cli.submit import show_script, submit


def train(
    recipe: Recipe,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the run lives. Default: runs/NAME, by the recipe's name.", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
    on: On = None,
    address: Address = None,
    nodes: Nodes = None,
    cluster: Site = None,
    launcher: LauncherKind = None,
    after: After = None,
    chain: Chain = False,
    evaluate: EvaluateOn = None,
    sweep: Sweep = None,
    parallel: Parallel = 0,
    detach: Detach = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Prepare the data and show the plan, for Slurm the batch script; train nothing."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe, from rows to exported model.

    The same command again goes on where the run was left; a finished run is not trained again.
    """
    from tunesmith.launcher.backends.cluster import Submission, SubmitOptions
    from tunesmith.launcher.clusters import cluster_named, require_options
    from tunesmith.launcher.planning.prepare_run import read_request
    from tunesmith.launcher.progress import Progress
    from tunesmith.launcher.runs.find import default_run_dir
    from tunesmith.launcher.runs.remote import chosen_launch, hand_over
    from tunesmith.launcher.runs.start import train as start_training
    from tunesmith.rundir.paths import RunDir

    overrides = [*(overrides or ()), *([f"resources.nodes={nodes}"] if nodes else [])]
    request = read_request(recipe, overrides)
    run = RunDir(run_dir or default_run_dir(request.recipe.name))
    launch = chosen_launch(run, on, address)
    place = cluster_named(launch.backend)
    options = SubmitOptions(
        cluster, launcher, tuple(after or ()), chain, tuple(evaluate or ()), tuple(sweep or ()), parallel
    )
    require_options(place, options)
    settings = [word for override in overrides for word in ("--set", override)]
    command = ("train", str(request.file.resolve()), "--run-dir", str(run.root.resolve()), *settings)
    submission = Submission(run, launch, command, request, options=options)
    if place.is_batch and place.takes_over(launch):
        if not dry_run:
            submit(place, submission, as_json=as_json)
            return
        if show_script(place, submission):
            return
    progress = Progress(sys.stderr if as_json else sys.stdout)
    try:
        if dry_run:
            _show_plan(request, run, launch, progress, as_json)
            return
        if (code := hand_over(submission, progress, detach=detach)) is None:
            code = start_training(request, run, progress, launch)
    finally:
        progress.close()
    _end(run, int(code), as_json, told=not detach)


def resume(
    run: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Go on with other processes or another division: a key of resources or parallelism.",
            show_default=False,
        ),
    ] = None,
    on: On = None,
    address: Address = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Go on with a run from its newest checkpoint.

    Damaged checkpoints are set aside. What follows is bit for bit what it had been without the interruption.
    """
    from tunesmith.launcher.backends.cluster import Submission
    from tunesmith.launcher.clusters import cluster_named
    from tunesmith.launcher.progress import Progress
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.launcher.runs.remote import chosen_launch, hand_over
    from tunesmith.launcher.runs.start import resume as start_again

    found = find_run(run)
    launch = chosen_launch(found, on, address)
    place = cluster_named(launch.backend)
    settings = [word for override in overrides or () for word in ("--set", override)]
    command = ("resume", str(found.root.resolve()), *settings)
    submission = Submission(found, launch, command, overrides=tuple(overrides or ()))
    if place.is_batch and place.takes_over(launch):
        submit(place, submission, as_json=as_json)
        return
    progress = Progress(sys.stderr if as_json else sys.stdout)
    try:
        if (code := hand_over(submission, progress, detach=detach)) is None:
            code = start_again(found, progress, launch, overrides or ())
    finally:
        progress.close()
    _end(found, int(code), as_json, told=not detach)


def _show_plan(request, run, launch, progress, as_json: bool) -> None:
    from tunesmith.cli.plan import print_plan
    from tunesmith.launcher.clusters import open_backend
    from tunesmith.launcher.planning.prepare_run import make_whole_plan
    from tunesmith.launcher.runs.launch_checks import require_disk, require_usable

    require_usable(run)
    with open_backend(launch) as backend:
        plan = make_whole_plan(request, backend, progress.preparing)
    require_disk(plan, run.root)
    progress.close()
    print_plan(plan, as_json)


def _end(run, exit_code: int, as_json: bool, *, told: bool = True) -> None:
    """Show what the run brought, and end with its exit code. told: whether it has come to its end."""
    import json

    from tunesmith.launcher.planning.plan_table import console_for
    from tunesmith.launcher.runs.outcome import as_object, show_outcome

    if as_json:
        typer.echo(json.dumps({**as_object(run), "exit_code": exit_code}, ensure_ascii=False))
    elif exit_code == 0 and told:
        show_outcome(run, console_for())
    raise typer.Exit(exit_code)
