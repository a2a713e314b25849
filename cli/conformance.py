"""`tunesmith conformance`: what a server keeps of the OpenAI fine-tuning API."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.errors import InputError

if TYPE_CHECKING:
    from tunesmith.serving.conformance.bench import Bench
    from tunesmith.serving.conformance.check import Finding

MARKS = {
    "holds": typer.colors.GREEN,
    "broken": typer.colors.RED,
    "not supported": typer.colors.YELLOW,
    "left out": typer.colors.BRIGHT_BLACK,
}


def conformance(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server, such as http://127.0.0.1:8100/v1.")],
    key: Annotated[
        str, typer.Option(envvar="TUNESMITH_KEY", metavar="KEY", help="An API key of it.", show_envvar=True)
    ] = "none",
    base: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model to tune; default: the first that it lists.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what trains a model.")] = False,
    job: Annotated[
        str | None, typer.Option(metavar="ID", help="Look at this finished job of yours instead of training one.")
    ] = None,
    wait_s: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="How long one job may take.")] = 1800,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """Hold a server against the OpenAI fine-tuning API, with the `openai` package.

    Prints every line of the contract, and what was seen where it does not hold. Uploads small files and trains a few
    small jobs; removes what it made. Ends with 0 only if every line holds that was looked at.
    """
    try:
        from tunesmith.serving.conformance import suite
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise InputError("the `openai` package is not here", remedy="pip install 'tunesmith[conformance]'") from None

    bench = suite.open_bench(url, key, base, say=_progress, wait_s=wait_s, job=job)
    if not as_json:
        typer.echo(f"{bench.url}, tuning {bench.base}")
    found: list[Finding] = []
    try:
        for finding in suite.run(bench, quick=quick):
            found.append(finding)
            _show(finding, as_json)
    finally:
        _clean_up(bench)
    _tell_sum(found, as_json)
    raise typer.Exit(0 if all(each.outcome in ("holds", "left out") for each in found) else 1)


def _show(finding: "Finding", as_json: bool) -> None:
    _progress(None)
    if as_json:
        typer.echo(json.dumps(asdict(finding), ensure_ascii=False))
        return
    typer.secho(f"{finding.outcome:>13}  ", fg=MARKS[finding.outcome], bold=finding.outcome == "broken", nl=False)
    typer.echo(f"{finding.check}: {finding.line}")
    if finding.words and finding.outcome != "left out":
        typer.echo(f"{'':>15}{finding.words}")


def _tell_sum(found: "list[Finding]", as_json: bool) -> None:
    counts = {outcome: sum(each.outcome == outcome for each in found) for outcome in MARKS}
    if as_json:
        typer.echo(json.dumps({"counts": counts}))
    else:
        typer.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))


def _clean_up(bench: "Bench") -> None:
    _progress("removing what was made")
    left = bench.clean_up()
    _progress(None)
    for what in left:
        typer.echo(f"not removed: {what}", err=True)


def _progress(words: str | None) -> None:
    """The last line of a terminal; None takes it away. Where there is no terminal, only what is waited for is told."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K" + (words or "")[:100])
        sys.stderr.flush()
    elif words and words.startswith(("waiting", "no job")):
        typer.echo(words, err=True)
