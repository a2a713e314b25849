"""`tunesmith cluster init`: write a file that describes this Slurm cluster."""

from pathlib import Path
from typing import Annotated

import typer

cluster = typer.Typer(help="Describe a Slurm cluster.", no_args_is_help=True, rich_markup_mode=None)


@cluster.callback()
def _group() -> None:
    """Describe a Slurm cluster."""


@cluster.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path("cluster.yaml"),
    partition: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Partition to use. Default: the one with GPUs, or Slurm's default.", show_default=False
        ),
    ] = None,
) -> None:
    """Write a cluster file from the output of sinfo.

    Review it and fill in what sinfo does not report: account, modules or container, network interface.
    """
    from tunesmith.configs.slurm_site import load_site
    from tunesmith.errors import InputError
    from tunesmith.launcher.slurm.partitions import cluster_text, survey

    if file.exists():
        raise InputError("the file already exists", where=str(file), remedy="choose another name, or delete it")
    text = cluster_text(survey(), partition)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"the file cannot be written: {error.strerror}", where=str(file)) from error
    load_site(file)
    typer.echo(text, nl=False)
    typer.echo(f"\nWritten to {file}. Next: tunesmith train RECIPE --on slurm --cluster {file} --dry-run")
