"""`tunesmith import openai`: a user's files and jobs of the hosted API, copied into a server's home."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.serve import Config, Home, read_settings
from tunesmith.errors import InputError

if TYPE_CHECKING:
    from tunesmith.serving.openai_import.copy import Destination, ImportSummary
    from tunesmith.serving.settings import Settings

import_app = typer.Typer(no_args_is_help=True, help="Copy what you have elsewhere into a server's home.")


@import_app.callback()
def _group() -> None:
    """Copy what you have elsewhere into a server's home."""


@import_app.command("openai")
def import_openai(
    base_url: Annotated[str, typer.Option(metavar="URL", help="The hosted API.")] = "https://api.openai.com/v1",
    key_env: Annotated[
        str, typer.Option(metavar="NAME", help="The environment variable that holds your key of it.")
    ] = "OPENAI_API_KEY",
    config: Config = None,
    home: Home = None,
    organization: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose it will be here; default: the settings' own.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be copied.")] = False,
) -> None:
    """Copy fine-tuning files, results and the list of jobs from the hosted API.

    Ids stay what they are. Jobs come as history: the models that were tuned there stay there. Run it again at any time:
    what is here is not copied again. The key is sent to the hosted API and kept nowhere.
    """
    key = os.environ.get(key_env, "")
    if not key:
        remedy = f"export {key_env}=...; another variable: --key-env NAME"
        raise InputError(f"the environment variable {key_env} holds no key", remedy=remedy)
    settings = read_settings(config, home, {"organization": organization})
    from tunesmith.serving.openai_import.copy import bring
    from tunesmith.serving.openai_import.hosted_api import Remote

    remote = Remote(base_url, key)
    try:
        opened = _open(settings, dry_run)
        try:
            summary = bring(remote, opened, typer.echo, dry_run=dry_run)
        finally:
            if opened.store is not None:
                opened.store.close()
    finally:
        remote.close()
    _tell(summary, settings.home, dry_run)
    raise typer.Exit(1 if summary.failed else 0)


def _open(settings: "Settings", dry_run: bool) -> "Destination":
    """A dry run makes nothing: where there is no store yet, there is nothing in it."""
    from tunesmith.serving.files.blobs import Blobs
    from tunesmith.serving.openai_import.copy import Destination
    from tunesmith.serving.store.store import Store

    is_there = settings.database_url is not None or (settings.home / "store.sqlite3").exists()
    store = Store(settings.store_url) if is_there or not dry_run else None
    blobs = None if dry_run else Blobs(settings.blobs_url)
    return Destination(settings.home, settings.organization, store, blobs)


def _tell(summary: "ImportSummary", home: Path, dry_run: bool) -> None:
    for what in summary.skipped:
        typer.echo(f"stays: {what}")
    for what in summary.failed:
        typer.secho(f"failed: {what}", fg=typer.colors.RED, err=True)
    verb = "would be copied" if dry_run else "copied"
    typer.echo(
        f"{verb} to {home}: {summary.files} files ({summary.bytes} bytes), {summary.jobs} jobs; "
        f"here already: {summary.known_files} files, {summary.known_jobs} jobs"
    )
