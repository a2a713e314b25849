"""`tunesmith export`: a run's trained weights as a plain Hugging Face directory."""

import json
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.arguments import Json, Run


def export(
    run: Run,
    merge: Annotated[bool, typer.Option("--merge", help="The whole model, with an adapter merged into it.")] = False,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to. Default: export/ of the run.", show_default=False)
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Of which checkpoint. Default: the one that the run exports.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a run's trained model, and check the export.

    A plain Hugging Face directory: read back with plain transformers and compared with the trained model before it
    stands.
    """
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.report.gate import gate_measure
    from tunesmith.rundir.event_log import EventLog
    from tunesmith.rundir.events import ExportEvent
    from tunesmith.rundir.lock import run_lock

    found = find_run(run)
    # The run's own export belongs to whoever works on the run; another place is nobody's.
    # Libraries may print as they are imported: standard output is for the result alone.
    with run_lock(found) if to is None else nullcontext(), redirect_stdout(sys.stderr):
        from tunesmith.training.export.export import export_from_checkpoint

        made = export_from_checkpoint(found, step=step, form="model" if merge else None, to=to)
        if to is None:
            log = EventLog(found.events)
            log.write(ExportEvent(path=str(made.path), form=made.form, gate=made.gate))
            log.close()
    if as_json:
        typer.echo(json.dumps({"path": str(made.path), "form": made.form, "gate": made.gate}))
    else:
        typer.echo(f"{made.path} ({made.form})")
        typer.echo(f"read back and compared with the trained model: {gate_measure(made.gate)}")
