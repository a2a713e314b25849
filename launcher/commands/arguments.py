"""Arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

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
        metavar="local|ray",
        help="Where the processes run: on this machine, or placed by Ray. Default: local, or where the run was before.",
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
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, for scripts.")]
