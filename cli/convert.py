"""`tunesmith convert`: turn weights in `.bin` files into safetensors."""

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.arguments import Json

_IN_WORDS = {
    "network": "no network",
    "programs": "no other programs",
    "writes": "no writes outside the target",
    "resources": "limits of memory, time and file size",
}


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A model directory with .bin weights.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The directory to create.")],
    as_json: Json = False,
) -> None:
    """Convert a model's .bin weights to safetensors, in a restricted process.

    Such files are pickles, which can contain code: only tensors are read. The result is compared bit by bit.
    """
    import json

    from tunesmith.modeling.base_model.pickle_files import convert_pickles
    from tunesmith.report.wording import plural

    result = convert_pickles(source, target)
    if as_json:
        typer.echo(json.dumps({"target": str(target), **result}))
        return
    typer.echo(f"{plural(result['num_tensors'], 'tensor')}, equal bit by bit, in {target}")
    if result["dropped"]:
        typer.echo(f"tied to the embedding, and not stored twice: {', '.join(result['dropped'])}")
    in_force = [words for key, words in _IN_WORDS.items() if result["restrictions"][key]]
    missing = [words for key, words in _IN_WORDS.items() if not result["restrictions"][key]]
    typer.echo(f"the process that read the files had: only tensors, {', '.join(in_force)}")
    if missing:
        typer.echo(f"this system does not support: {', '.join(missing)}")
