"""`tunesmith keys`: who may use the server."""

import json
from typing import Annotated

import typer

from tunesmith.cli.arguments import Json
from tunesmith.cli.serve import Config, Home, read_settings

keys = typer.Typer(help="Make, list and revoke the server's API keys.", no_args_is_help=True, rich_markup_mode=None)


@keys.callback()
def _group() -> None:
    """Make, list and revoke the server's API keys."""


@keys.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is, or what for.")],
    organization: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Owns what the key makes. Default: the server's own organization.", show_default=False
        ),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE",
            help="What the key may do: files:read, files:write, jobs:read, jobs:write, models:read, models:write, "
            "inference. May be repeated. Default: everything.",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    home: Home = None,
) -> None:
    """Make a key and show it. It is shown this once: only its hash is kept.

    Once there is a key, the server asks for one on loopback too.
    """
    settings = read_settings(config, home)
    from tunesmith.errors import InputError
    from tunesmith.serving.names import is_organization
    from tunesmith.serving.store.keys import SCOPES
    from tunesmith.serving.store.store import Store

    owner = organization or settings.organization
    if not is_organization(owner):
        raise InputError(
            f"{owner!r} cannot be an organization",
            remedy="use up to 63 letters, digits, `-` and `_`: it stands in names",
        )
    if unknown := [word for word in scope or () if word not in SCOPES]:
        raise InputError(f"there is no scope {unknown[0]!r}", where="--scope", remedy=f"they are {', '.join(SCOPES)}")
    secret, key = Store(settings.store_url).keys.create(name, owner, scope or SCOPES)
    typer.echo(f"{key.id}  {name}  organization {owner}  {' '.join(map(str, key.scopes))}", err=True)
    typer.echo(secret)


@keys.command("list")
def list_keys(config: Config = None, home: Home = None, as_json: Json = False) -> None:
    """List the keys; of each only its last four characters are known."""
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
        typer.echo("no keys; `tunesmith keys create NAME` makes one")
    for row in rows:
        state = "revoked" if row["revoked_at"] else "valid"
        scopes = " ".join(map(str, row["scopes"]))
        typer.echo(f"{row['id']}  {state:7}  ...{row['ends_in']}  {row['name']}  {row['organization']}  {scopes}")


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID|NAME", help="As `tunesmith keys list` shows it.")],
    config: Config = None,
    home: Home = None,
) -> None:
    """Revoke a key, at once and for good."""
    settings = read_settings(config, home)
    from tunesmith.errors import InputError
    from tunesmith.serving.store.store import Store

    if not (gone := Store(settings.store_url).keys.revoke(key)):
        raise InputError("no valid key has this id or name", where=key, remedy="`tunesmith keys list` shows them")
    for row in gone:
        typer.echo(f"revoked {row.id}  {row.name}")
