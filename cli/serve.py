"""`tunesmith serve`: run a server with the OpenAI fine-tuning API."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.launcher.clusters import NAMES

if TYPE_CHECKING:
    from tunesmith.serving.settings import Settings, SettingsOverrides

NEEDED = ("alembic", "fastapi", "python_multipart", "sqlalchemy", "uvicorn", "httpx", "llguidance")
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="Settings of the server (YAML).", show_default=False)]
Home = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Data directory of the server. Default: ~/.tunesmith/server.", show_default=False),
]


def serve(
    config: Config = None,
    home: Home = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="Address to listen on; API keys are required beyond loopback. Default: 127.0.0.1.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Port to listen on. Default: 8100.", min=0, max=65535, show_default=False),
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="A base model that can be fine-tuned. May be repeated.", show_default=False
        ),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="|".join(NAMES), help="Where jobs run. Default: local.", show_default=False)
    ] = None,
    max_jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Maximum number of jobs that train at a time. Default: 1.", min=1, show_default=False
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="embedded|vllm", help="Inference engine. Default: embedded.", show_default=False),
    ] = None,
) -> None:
    """Serve the OpenAI fine-tuning API. Clients connect with `OpenAI(base_url=...)` of the `openai` package."""
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
    """Load the settings from file and command line. Raises InputError, also if packages of the server are missing."""
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
    """Parse NAME=PATH arguments into name to absolute path. Raises InputError for any other form."""
    from tunesmith.errors import InputError

    bases = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (equals and name and path):
            raise InputError(
                "a base model must be given as NAME=PATH",
                where=f"--base {argument}",
                remedy="for example --base smollm2=models/smollm2",
            )
        bases[name] = str(Path(path).expanduser().resolve())
    return bases
