"""`tunesmith tune`: search the hyperparameters of a recipe."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.arguments import Address, Json, LauncherKind, Nodes, On, Overrides, Recipe, Site


def tune(
    recipe: Recipe,
    space: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The search space. Default: tune.yaml next to the recipe.", show_default=False
        ),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Directory of the study. Default: runs/NAME-tune, after the recipe.", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
    on: On = None,
    address: Address = None,
    nodes: Nodes = None,
    cluster: Site = None,
    launcher: LauncherKind = None,
    as_json: Json = False,
) -> None:
    """Search the hyperparameters of a recipe, such as its learning rate, with Optuna.

    Every trial is a run in the directory of the study; bad ones are stopped early. Running the same command again
    continues the study, also after it was killed. At the end the best recipe is written to best.yaml.
    """
    import json

    from tunesmith.launcher.progress import Progress
    from tunesmith.launcher.terminal import console_for
    from tunesmith.launcher.tune.open_study import SearchArguments, open_search
    from tunesmith.launcher.tune.summary import as_object, show_results, summary_of
    from tunesmith.launcher.tune.tuner import Tuner

    overrides = [*(overrides or ()), *([f"resources.nodes={nodes}"] if nodes else [])]
    arguments = SearchArguments(recipe, space, study, tuple(overrides), on, address, cluster, launcher)
    progress = Progress(sys.stderr if as_json else sys.stdout)
    with open_search(arguments, progress.print) as (search, trials):
        code = Tuner(search, trials, progress).run()
        summary = summary_of(search, trials)
    if as_json:
        typer.echo(json.dumps({**as_object(search, summary), "exit_code": int(code)}, ensure_ascii=False))
    else:
        show_results(search, summary, console_for())
    raise typer.Exit(int(code))
