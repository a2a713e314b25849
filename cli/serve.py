"""`tunesmith serve`: the OpenAI fine-tuning API on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.launcher.clusters import NAMES

if TYPE_CHECKING:
    from tunesmith.serving.settings import Settings, SettingsOverrides

NEEDED = ("alembic", "fastapi", "python_multipart", "sqlalchemy", "uvicorn", "httpx", "llguidance")
Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The server's settings, a YAML file.", show_default=False)
]
Home = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Where the server keeps everything. Default: ~/.tunesmith/server.", show_default=False
    ),
]


def serve(
    config: Config = None,
    home: Home = None,
    host: Annotated[
        str | None,
        typer.Option(metavar="H", help="Beyond loopback it asks for API keys. Default: 127.0.0.1.", show_default=False),
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="P", help="Default: 8100.", min=0, max=65535, show_default=False)
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="A model that may be tuned, by name. May be repeated.", show_default=False
        ),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="|".join(NAMES), help="Where jobs run. Default: local.", show_default=False)
    ] = None,
    max_jobs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Jobs that train at once. Default: 1.", min=1, show_default=False),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="embedded|vllm", help="What answers chats. Default: embedded.", show_default=False),
    ] = None,
) -> None:
    """Serve the OpenAI fine-tuning API: `OpenAI(base_url=...)` of the unchanged client works on it."""
    overrides: SettingsOverrides = {
        "host": host,
        "port": port,
        "backend": backend,
        "max_jobs": max_jobs,
        "engine": engine,
        "bases": bases_of(base) if base else None,
    }
    settings = read_settings(config, home, overrides)
    from tunesmith.serving.process import serve as serve_until_stopped

    serve_until_stopped(settings, typer.echo)


def read_settings(config: Path | None, home: Path | None, overrides: "SettingsOverrides | None" = None) -> "Settings":
    """The settings of file and command line. Raises InputError, also where the server's packages are not installed."""
    from importlib.util import find_spec

    from tunesmith.errors import InputError

    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise InputError(
            f"the server needs packages that are not installed: {', '.join(missing)}",
            remedy="pip install 'tunesmith[serve]'",
        )
    from tunesmith.serving.settings import load_settings

    return load_settings(config, {**(overrides or {}), "home": home.expanduser().resolve() if home else None})


def bases_of(arguments: list[str]) -> dict[str, str]:
    """Raises InputError where an argument is not NAME=PATH."""
    from tunesmith.errors import InputError

    bases = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (equals and name and path):
            raise InputError(
                "a base is written NAME=PATH",
                where=f"--base {argument}",
                remedy="such as --base smollm2=models/smollm2",
            )
        bases[name] = str(Path(path).expanduser().resolve())
    return bases
