"""`tunesmith keys`: manage the API keys of the server."""

import json
from typing import Annotated

import typer

from tunesmith.cli.arguments import Json
from tunesmith.cli.serve import Config, Home, read_settings

keys = typer.Typer(help="Create, list and revoke API keys of the server.", no_args_is_help=True, rich_markup_mode=None)


@keys.callback()
def _group() -> None:
    """Create, list and revoke API keys of the server."""


@keys.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key: its user or purpose.")],
    organization: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Owner of the objects that the key creates. Default: the server's organization.",
            show_default=False,
        ),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE",
            help="Permission of the key: files:read, files:write, jobs:read, jobs:write, models:read, models:write, "
            "inference. May be repeated. Default: all of these. For /metrics: metrics.",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    home: Home = None,
) -> None:
    """Create a key and print it. It cannot be shown again: only its hash is stored.

    Once a key exists, the server requires one on the loopback interface too.
    """
    settings = read_settings(config, home)
    from tunesmith.errors import InputError
    from tunesmith.serving.names import is_organization
    from tunesmith.serving.store.keys import ALL_SCOPES, SCOPES
    from tunesmith.serving.store.store import Store

    owner = organization or settings.organization
    if not is_organization(owner):
        raise InputError(
            f"{owner!r} is not a valid organization name",
            where="--organization",
            remedy="use up to 63 letters, digits, `-` and `_`: it is part of model names",
        )
    if unknown := [name for name in scope or () if name not in ALL_SCOPES]:
        raise InputError(f"unknown scope {unknown[0]!r}", where="--scope", remedy=f"use {', '.join(ALL_SCOPES)}")
    secret, key = Store(settings.store_url).keys.create(name, owner, scope or SCOPES)
    typer.echo(f"{key.id}  {name}  organization {owner}  {' '.join(map(str, key.scopes))}", err=True)
    typer.echo(secret)


@keys.command("list")
def list_keys(config: Config = None, home: Home = None, as_json: Json = False) -> None:
    """List the keys, each with its last four characters."""
    settings = read_settings(config, home)
    from tunesmith.serving.store.store import Store

    rows = [
        {
            "id": key.id,
            "name": key.name,
            "organization": key.organization,
            "scopes": key.scopes,
            "ends_in": key.hint,
            "created_at": key.created_at,
            "revoked_at": key.revoked_at,
        }
        for key in Store(settings.store_url).keys.list()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        typer.echo("no keys; `tunesmith keys create NAME` creates one")
    for row in rows:
        state = "revoked" if row["revoked_at"] else "valid"
        scopes = " ".join(map(str, row["scopes"]))
        typer.echo(f"{row['id']}  {state:7}  ...{row['ends_in']}  {row['name']}  {row['organization']}  {scopes}")


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID|NAME", help="ID or name from `tunesmith keys list`.")],
    config: Config = None,
    home: Home = None,
) -> None:
    """Revoke a key immediately and permanently."""
    settings = read_settings(config, home)
    from tunesmith.errors import InputError
    from tunesmith.serving.store.store import Store

    if not (revoked := Store(settings.store_url).keys.revoke(key)):
        raise InputError("no valid key has this id or name", where=key, remedy="see `tunesmith keys list`")
    for row in revoked:
        typer.echo(f"revoked {row.id}  {row.name}")
