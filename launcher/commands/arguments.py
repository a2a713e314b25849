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
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, for scripts.")]
