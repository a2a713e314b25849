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
            metavar="DIR", help="Directory of the run. Default: runs/NAME, after the recipe.", show_default=False
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
            "--dry-run", help="Prepare the data and show the plan (Slurm: the batch script) without training."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe, from rows to exported model.

    Running the same command again resumes an interrupted run; a finished run is not trained again.
    """
    from tunesmith.launcher.backends.cluster import Submission, SubmitOptions
    from tunesmith.launcher.clusters import cluster_named, require_options
    from tunesmith.launcher.planning.prepare_run import read_request
    from tunesmith.launcher.progress import Progress
    from tunesmith.launcher.runs.find import default_run_dir
    from tunesmith.launcher.runs.remote import chosen_launch, submit_or_detach
    from tunesmith.launcher.runs.start import train as start_training
    from tunesmith.rundir.paths import RunDir, require_possible

    overrides = [*(overrides or ()), *([f"resources.nodes={nodes}"] if nodes else [])]
    request = read_request(recipe, overrides)
    run = RunDir(run_dir or default_run_dir(request.recipe.name))
    require_possible(run.root, "choose a shorter --run-dir")
    launch = chosen_launch(run, on, address)
    place = cluster_named(launch.backend)
    options = SubmitOptions(
        cluster, launcher, tuple(after or ()), chain, tuple(evaluate or ()), tuple(sweep or ()), parallel
    )
    require_options(place, options)
    settings = [part for override in overrides for part in ("--set", override)]
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
        if (code := submit_or_detach(submission, progress, detach=detach)) is None:
            code = start_training(request, run, progress, launch)
    finally:
        progress.close()
    _exit(run, int(code), as_json, has_ended=not detach)


def resume(
    run: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key of resources or parallelism: other processes or another sharding.",
            show_default=False,
        ),
    ] = None,
    on: On = None,
    address: Address = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Resume a run from its newest checkpoint.

    Damaged checkpoints are set aside. The results are bit-identical to those of an uninterrupted run.
    """
    from tunesmith.launcher.backends.cluster import Submission
    from tunesmith.launcher.clusters import cluster_named
    from tunesmith.launcher.progress import Progress
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.launcher.runs.remote import chosen_launch, submit_or_detach
    from tunesmith.launcher.runs.start import resume as resume_training

    run_dir = find_run(run)
    launch = chosen_launch(run_dir, on, address)
    place = cluster_named(launch.backend)
    settings = [part for override in overrides or () for part in ("--set", override)]
    command = ("resume", str(run_dir.root.resolve()), *settings)
    submission = Submission(run_dir, launch, command, overrides=tuple(overrides or ()))
    if place.is_batch and place.takes_over(launch):
        submit(place, submission, as_json=as_json)
        return
    progress = Progress(sys.stderr if as_json else sys.stdout)
    try:
        if (code := submit_or_detach(submission, progress, detach=detach)) is None:
            code = resume_training(run_dir, progress, launch, overrides or ())
    finally:
        progress.close()
    _exit(run_dir, int(code), as_json, has_ended=not detach)


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


def _exit(run, exit_code: int, as_json: bool, *, has_ended: bool = True) -> None:
    """Show the outcome of the run if it has ended, and exit with its code."""
    import json

    from tunesmith.launcher.runs.outcome import as_object, show_outcome
    from tunesmith.launcher.terminal import console_for

    if as_json:
        typer.echo(json.dumps({**as_object(run), "exit_code": exit_code}, ensure_ascii=False))
    elif exit_code == 0 and has_ended:
        show_outcome(run, console_for())
    raise typer.Exit(exit_code)
