"""`tunesmith plan`: show every choice with its reason, before training."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.arguments import Json, Overrides, Recipe

if TYPE_CHECKING:
    from tunesmith.configs.plan import Plan


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="[NODESx]GPUSxKIND",
            help="Plan for GPUs that are elsewhere: 8xH100, 2x8x80GB, RTX4090. Default: this machine.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Compare memory and time of ZeRO stages, checkpointing, offloading and methods."
        ),
    ] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Train two steps of the longest batch here, and compare memory and time with the plan."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the plan of a training run, with a reason for every choice.

    Prepares the data; loads the model only with --probe. To plan for another back end: train --dry-run --on.
    """
    from tunesmith.launcher.backends.local import Local
    from tunesmith.launcher.hardware import measure_products
    from tunesmith.launcher.planning.machines import parse_machines
    from tunesmith.launcher.planning.prepare_run import facts_of, plan_of, planner_of, read_request
    from tunesmith.launcher.planning.probe import probe_lines, run_probe
    from tunesmith.launcher.planning.strategies import compare as compare_strategies
    from tunesmith.launcher.progress import Progress

    _require_compatible(gpus, compare=compare, probe=probe)
    request = read_request(recipe, overrides or ())
    place = parse_machines(gpus) if gpus else Local()
    progress = Progress(sys.stderr)
    try:
        model, data = facts_of(request, Local(), progress.preparing)
        if gpus is None:
            measure_products()
        outcomes = compare_strategies(request.recipe, planner_of(request, model, data, place)) if compare else []
        result = None if compare else plan_of(request, model, data, place)
        measured = run_probe(result) if probe and result is not None else None
    finally:
        progress.close()
    if result is None:
        _print_strategies(request.recipe, outcomes, as_json)
    elif measured is not None and as_json:
        typer.echo(json.dumps({"plan": result.model_dump(mode="json"), "probe": asdict(measured)}, indent=2))
    else:
        print_plan(result, as_json)
        if measured is not None:
            typer.echo("\n" + "\n".join(probe_lines(result, measured)))


def _require_compatible(gpus: str | None, *, compare: bool, probe: bool) -> None:
    from tunesmith.errors import InputError

    if probe and (gpus or compare):
        raise InputError(
            "a probe runs the plan of this machine, and cannot be combined with other machines or a comparison",
            where="--probe",
            remedy="omit --gpus" if gpus else "omit --compare",
        )


def _print_strategies(recipe, outcomes, as_json: bool) -> None:
    from tunesmith.launcher.planning.strategies import fastest
    from tunesmith.launcher.planning.strategy_table import as_object, show_strategies
    from tunesmith.launcher.terminal import console_for

    if as_json:
        best = fastest(outcomes)
        typer.echo(json.dumps([as_object(one, best) for one in outcomes], indent=2))
    else:
        show_strategies(recipe, outcomes, console_for())


def print_plan(plan: "Plan", as_json: bool) -> None:
    from tunesmith.launcher.measured_runs import earlier_runs_like
    from tunesmith.launcher.planning.plan_table import show_plan
    from tunesmith.launcher.terminal import console_for

    if as_json:
        typer.echo(plan.model_dump_json(indent=2))
    else:
        show_plan(plan, console_for(), earlier_runs_like(plan))
