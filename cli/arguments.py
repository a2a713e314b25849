"""Arguments shared by several commands."""

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.configs.tasks import listed, names_of
from tunesmith.launcher.clusters import NAMES

LANGUAGE_MODELING = names_of(lambda task: task.is_language_modeling)
"""The tasks that the rows of a data file without a recipe may be read as."""

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="Path of the recipe (YAML).", show_default=False)]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run directory, or the name of a run under runs/.", show_default=False)
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL",
        help="A run, a Hugging Face model or adapter directory, a GGUF file or a Hub ID.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a recipe key, such as --set optimization.epochs=2; the value is YAML. May be repeated. "
        "method.kind=... drops the keys of the other method.",
        show_default=False,
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="|".join(NAMES),
        help="Where the processes run: on this machine, on a Ray cluster, or as Slurm jobs. Default: the back end that "
        "the run used before, otherwise local.",
        show_default=False,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Address of an existing Ray cluster: host:port, auto (the cluster of this machine), or "
        "http://host:8265 to submit the run as a Ray job. Default: start Ray here and shut it down after the run.",
        show_default=False,
    ),
]
Detach = Annotated[
    bool,
    typer.Option(
        "--detach", help="Return once the run has started; it continues in the background (see status, logs)."
    ),
]
Nodes = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Number of nodes (resources.nodes).", show_default=False),
]
Site = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="FILE",
        help="Slurm: path of the cluster file. Default: ./cluster.yaml.",
        show_default=False,
    ),
]
LauncherKind = Annotated[
    str | None,
    typer.Option(
        "--launcher",
        metavar="ray|torchrun",
        help="Slurm: what starts the processes within the job. Default: ray.",
        show_default=False,
    ),
]
After = Annotated[
    list[str] | None,
    typer.Option(metavar="JOB", help="Slurm: start after this job has succeeded. May be repeated.", show_default=False),
]
Chain = Annotated[bool, typer.Option("--chain", help="Slurm: prepare, train, evaluate and export in separate jobs.")]
EvaluateOn = Annotated[
    list[str] | None,
    typer.Option(
        "--evaluate", metavar="FILE", help="Rows for the evaluation of --chain. May be repeated.", show_default=False
    ),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=[VALUE,...]",
        help="Slurm: one run per value, as one array job; several options give every combination.",
        show_default=False,
    ),
]
Parallel = Annotated[int, typer.Option(min=0, metavar="N", help="Runs of a sweep at a time; 0: no limit.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]


def require_language_modeling(task: str | None) -> None:
    """Raise InputError if `--task` is not a language-modeling task."""
    from tunesmith.errors import InputError

    if task is not None and task not in LANGUAGE_MODELING:
        names = listed(lambda known: known.is_language_modeling, joined_by="or")
        raise InputError(f"unknown task {task!r}", where="--task", remedy=f"use {names}")
