"""`tunesmith report`: write the HTML report of a run."""

import json

import typer

from tunesmith.cli.arguments import Json, Run


def report(
    run: Run,
    as_json: Json = False,
) -> None:
    """Regenerate the HTML report of a run (report.html).

    A single file that works offline: loss curves, row outcomes, plan and measurements, before and after, proofs.
    """
    from tunesmith.errors import RunFault
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.os_errors import remedy_for
    from tunesmith.report.page import write_report

    run_dir = find_run(run)
    try:
        path = write_report(run_dir)
    except OSError as error:
        raise RunFault(
            f"the report cannot be written: {error.strerror}",
            where=str(run_dir.report),
            remedy=remedy_for(error, "check free space and permissions"),
        ) from error
    typer.echo(json.dumps({"report": str(path)}) if as_json else str(path))
