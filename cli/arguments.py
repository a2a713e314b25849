"""Arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.configs.tasks import listed, names_of
from tunesmith.launcher.clusters import NAMES

LANGUAGE_MODELING = names_of(lambda task: task.is_language_modeling)
"""The tasks that rows of a bare file may be read as."""

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's directory, or its name under runs/.", show_default=False)
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL",
        help="A run, a Hugging Face directory, an adapter's, a GGUF file or a hub id.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe, such as --set optimization.epochs=2; the value is YAML. May be repeated. "
        "method.kind=... leaves out the other method's keys.",
        show_default=False,
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="|".join(NAMES),
        help="Where the processes run: on this machine, placed by Ray, or as jobs of Slurm. Default: local, or "
        "where the run was before.",
        show_default=False,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Of a Ray cluster that is there: host:port, auto (the one that this machine belongs to), or "
        "http://host:8265 to hand the run over as a Ray job. Default: Ray is started here and ended with the run.",
        show_default=False,
    ),
]
Detach = Annotated[
    bool,
    typer.Option("--detach", help="Return once the run has begun; it goes on without a terminal (see status, logs)."),
]
Nodes = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Machines to spread over: resources.nodes.", show_default=False),
]
Site = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="FILE", help="Slurm: the site's file. Default: cluster.yaml here.", show_default=False
    ),
]
LauncherKind = Annotated[
    str | None,
    typer.Option(
        "--launcher",
        metavar="ray|torchrun",
        help="Slurm: what starts the processes inside the job. Default: ray.",
        show_default=False,
    ),
]
After = Annotated[
    list[str] | None,
    typer.Option(metavar="JOB", help="Slurm: begin when this job has ended well. May be repeated.", show_default=False),
]
Chain = Annotated[
    bool, typer.Option("--chain", help="Slurm: prepare, train, evaluate and export as jobs of their own.")
]
EvaluateOn = Annotated[
    list[str] | None,
    typer.Option(
        "--evaluate", metavar="FILE", help="Rows for --chain's evaluation. May be repeated.", show_default=False
    ),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=[VALUE,...]",
        help="Slurm: a run for each value, as one array job; several make every combination.",
        show_default=False,
    ),
]
Parallel = Annotated[int, typer.Option(min=0, metavar="N", help="Runs of a sweep at once; 0: as many as fit.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, for scripts.")]


def require_language_modeling(task: str | None) -> None:
    """InputError where `--task` names something else."""
    from tunesmith.errors import InputError

    if task is not None and task not in LANGUAGE_MODELING:
        names = listed(lambda known: known.is_language_modeling, joined_by="or")
        raise InputError(f"unknown task {task!r}", where="--task", remedy=f"write {names}")
