"""`tunesmith export`: export a run's trained weights as a Hugging Face directory."""

import json
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.arguments import Json, Run


def export(
    run: Run,
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter and export the full model.")] = False,
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Output directory. Default: export/ of the run.", show_default=False),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Step of the checkpoint. Default: the one that the run exports.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a run's trained model and verify the export.

    Writes a standard Hugging Face directory. It is loaded with plain transformers and compared with the trained model
    before it is kept.
    """
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.report.gate import gate_measure
    from tunesmith.rundir.event_log import EventLog
    from tunesmith.rundir.events import ExportEvent
    from tunesmith.rundir.lock import run_lock

    run_dir = find_run(run)
    # export/ of the run is protected by the run's lock; another directory needs none.
    # Libraries may print on import; standard output is for the result only.
    with run_lock(run_dir) if to is None else nullcontext(), redirect_stdout(sys.stderr):
        from tunesmith.training.export.export import export_from_checkpoint

        result = export_from_checkpoint(run_dir, step=step, form="model" if merge else None, to=to)
        if to is None:
            log = EventLog(run_dir.events)
            log.write(ExportEvent(path=str(result.path), form=result.form, gate=result.gate))
            log.close()
    if as_json:
        typer.echo(json.dumps({"path": str(result.path), "form": result.form, "gate": result.gate}))
    else:
        typer.echo(f"{result.path} ({result.form})")
        typer.echo(f"read back and compared with the trained model: {gate_measure(result.gate)}")
