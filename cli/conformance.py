"""`tunesmith conformance`: test a server for conformance with the OpenAI fine-tuning API."""

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
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Base URL of the server, such as http://127.0.0.1:8100/v1.")
    ],
    key: Annotated[
        str, typer.Option(envvar="TUNESMITH_KEY", metavar="KEY", help="API key of the server.", show_envvar=True)
    ] = "none",
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model to fine-tune. Default: the first that the server lists."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Skip the checks that train a model.")] = False,
    job: Annotated[
        str | None, typer.Option(metavar="ID", help="Check this finished job instead of training one.")
    ] = None,
    wait_s: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Time limit per job.")] = 1800,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Test a server for conformance with the OpenAI fine-tuning API.

    Uses the `openai` package: uploads small files, trains a few small models and removes what it created. Prints the
    result of every check, and for a failed one what was observed. Exits with 0 only if every check that ran passed.
    """
    try:
        from tunesmith.serving.conformance import suite
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise InputError(
            "the `openai` package is not installed", remedy="pip install 'tunesmith[conformance]'"
        ) from None

    bench = suite.open_bench(url, key, base, log=_progress, wait_s=wait_s, job=job)
    if not as_json:
        typer.echo(f"{bench.url}, tuning {bench.base}")
    findings: list[Finding] = []
    try:
        for finding in suite.run(bench, quick=quick):
            findings.append(finding)
            _show(finding, as_json)
    finally:
        _clean_up(bench)
    _show_totals(findings, as_json)
    raise typer.Exit(0 if all(each.outcome in ("holds", "left out") for each in findings) else 1)


def _show(finding: "Finding", as_json: bool) -> None:
    _progress(None)
    if as_json:
        typer.echo(json.dumps(asdict(finding), ensure_ascii=False))
        return
    typer.secho(f"{finding.outcome:>13}  ", fg=MARKS[finding.outcome], bold=finding.outcome == "broken", nl=False)
    typer.echo(f"{finding.check}: {finding.line}")
    if finding.words and finding.outcome != "left out":
        typer.echo(f"{'':>15}{finding.words}")


def _show_totals(findings: "list[Finding]", as_json: bool) -> None:
    counts = {outcome: sum(each.outcome == outcome for each in findings) for outcome in MARKS}
    if as_json:
        typer.echo(json.dumps({"counts": counts}))
    else:
        typer.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))


def _clean_up(bench: "Bench") -> None:
    _progress("removing what was created")
    remaining = bench.clean_up()
    _progress(None)
    for what in remaining:
        typer.echo(f"not removed: {what}", err=True)


def _progress(text: str | None) -> None:
    """Show a progress line on a terminal; None clears it. Without a terminal, print only what is waited for."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K" + (text or "")[:100])
        sys.stderr.flush()
    elif text and text.startswith(("waiting", "no job")):
        typer.echo(text, err=True)
