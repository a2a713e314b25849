"""The command line. Imports nothing heavy: each command imports what it needs when it is called."""

import io
import sys
import warnings
from typing import Annotated

import typer

from tunesmith import __version__
from tunesmith.cli.chat import chat
from tunesmith.cli.cluster import cluster
from tunesmith.cli.conformance import conformance
from tunesmith.cli.convert import convert
from tunesmith.cli.data import data
from tunesmith.cli.doctor import doctor
from tunesmith.cli.evaluate import evaluate
from tunesmith.cli.export import export
from tunesmith.cli.import_openai import import_app
from tunesmith.cli.keys import keys
from tunesmith.cli.logs import logs
from tunesmith.cli.migrate import migrate
from tunesmith.cli.plan import plan
from tunesmith.cli.prove import prove
from tunesmith.cli.report import report
from tunesmith.cli.runs import runs
from tunesmith.cli.serve import serve
from tunesmith.cli.status import status
from tunesmith.cli.stop import stop
from tunesmith.cli.track import track
from tunesmith.cli.train import resume, train
from tunesmith.cli.tune import tune
from tunesmith.errors import ExitCode, TunesmithError

app = typer.Typer(
    name="tunesmith",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 success, 1 failure, 2 invalid input, 75 preempted: state saved, run the command again.",
)
app.command()(train)
app.command()(resume)
app.command()(tune)
app.command()(plan)
app.command()(doctor)
app.add_typer(data, name="data")
app.add_typer(cluster, name="cluster")
app.command()(evaluate)
app.command()(export)
app.command()(chat)
app.command()(serve)
app.add_typer(keys, name="keys")
app.command()(runs)
app.command()(status)
app.command()(logs)
app.command()(stop)
app.command()(report)
app.command()(prove)
app.command()(track)
app.command()(conformance)
app.add_typer(import_app, name="import")
app.command()(migrate)
app.command()(convert)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"tunesmith {__version__}")
        raise typer.Exit()


@app.callback()
def tunesmith(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune LLaMA-class models from one recipe, with proof of what every run did."""


def main() -> None:
    """Run the console script and exit with its code. Errors are printed without a traceback."""
    code = int(ExitCode.DONE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character must not fail
            stream.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:  # warnings of libraries are for developers, not for users of a command
        warnings.simplefilter("ignore")
    try:
        app()
    except TunesmithError as error:
        code = int(error.exit_code)
        _print_error(str(error))
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        from tunesmith.cli.crash import describe_crash

        code = int(ExitCode.FAULT)
        _print_error(describe_crash(error))
    sys.exit(code)


def _print_error(message: str) -> None:
    typer.secho("error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    typer.echo(message, err=True)


if __name__ == "__main__":
    main()
