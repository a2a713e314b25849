"""`tunesmith import openai`: copy a user's files and jobs from the hosted API to a Tunesmith server."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.serve import Config, Home, read_settings
from tunesmith.errors import InputError

if TYPE_CHECKING:
    from tunesmith.serving.openai_import.copy import Destination, ImportSummary
    from tunesmith.serving.settings import Settings

import_app = typer.Typer(no_args_is_help=True, help="Import files and jobs from another service.")


@import_app.callback()
def _group() -> None:
    """Import files and jobs from another service."""


@import_app.command("openai")
def import_openai(
    base_url: Annotated[
        str, typer.Option(metavar="URL", help="Base URL of the hosted API.")
    ] = "https://api.openai.com/v1",
    key_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable with your key for the hosted API.")
    ] = "OPENAI_API_KEY",
    config: Config = None,
    home: Home = None,
    organization: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Owner of the imported objects. Default: the organization in the settings."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be copied.")] = False,
) -> None:
    """Copy fine-tuning files, results and the list of jobs from the hosted API.

    IDs are kept. Jobs are imported as history only; the fine-tuned models stay with the hosted API. The command can be
    repeated at any time: existing objects are not copied again. The key is sent to the hosted API and never stored.
    """
    key = os.environ.get(key_env, "")
    if not key:
        remedy = f"export {key_env}=..., or name another variable with --key-env"
        raise InputError(f"the environment variable {key_env} is not set", remedy=remedy)
    settings = read_settings(config, home, {"organization": organization})
    from tunesmith.serving.openai_import.copy import import_all
    from tunesmith.serving.openai_import.hosted_api import HostedApi

    remote = HostedApi(base_url, key)
    try:
        destination = _open(settings, dry_run)
        try:
            summary = import_all(remote, destination, typer.echo, dry_run=dry_run)
        finally:
            if destination.store is not None:
                destination.store.close()
    finally:
        remote.close()
    _show_summary(summary, settings.home, dry_run)
    raise typer.Exit(1 if summary.failed else 0)


def _open(settings: "Settings", dry_run: bool) -> "Destination":
    """Open the server's store. A dry run creates nothing, so it has no store if none exists."""
    from tunesmith.serving.files.blobs import Blobs
    from tunesmith.serving.openai_import.copy import Destination
    from tunesmith.serving.store.store import Store

    exists = settings.database_url is not None or (settings.home / "store.sqlite3").exists()
    store = Store(settings.store_url) if exists or not dry_run else None
    blobs = None if dry_run else Blobs(settings.blobs_url)
    return Destination(settings.home, settings.organization, store, blobs)


def _show_summary(summary: "ImportSummary", home: Path, dry_run: bool) -> None:
    for what in summary.skipped:
        typer.echo(f"skipped: {what}")
    for what in summary.failed:
        typer.secho(f"failed: {what}", fg=typer.colors.RED, err=True)
    verb = "would be copied" if dry_run else "copied"
    typer.echo(
        f"{verb} to {home}: {summary.files} files ({summary.bytes} bytes), {summary.jobs} jobs; "
        f"already present: {summary.known_files} files, {summary.known_jobs} jobs"
    )
