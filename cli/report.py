"""`tunesmith report`: the page of a run."""

import json

import typer

from tunesmith.cli.arguments import Json, Run


def report(
    run: Run,
    as_json: Json = False,
) -> None:
    """Write a run's report.html anew.

    One page that needs no network: curves, receipts, plan against measured, before and after, proofs.
    """
    from tunesmith.errors import RunFault
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.report.page import write_report

    found = find_run(run)
    try:
        path = write_report(found)
    except OSError as error:
        raise RunFault(
            f"the report cannot be written: {error.strerror}",
            where=str(found.report),
            remedy="free the disk, or its rights",
        ) from error
    typer.echo(json.dumps({"report": str(path)}) if as_json else str(path))
