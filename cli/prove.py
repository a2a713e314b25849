"""`tunesmith prove`: verify the recorded evidence of a run."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.arguments import Json, Run

if TYPE_CHECKING:
    from tunesmith.report.proofs.proof import Proof

MARKS = {True: ("passed", typer.colors.GREEN), False: ("FAILED", typer.colors.RED), None: ("open", typer.colors.YELLOW)}


def prove(
    run: Run,
    replay: Annotated[int, typer.Option(min=0, metavar="N", help="Steps to replay from a checkpoint; 0: none.")] = 2,
    as_json: Json = False,
) -> None:
    """Verify the recorded evidence of a run.

    Checks every hash, the ledger of rows and the recorded numbers, and replays a few training steps from a checkpoint,
    which must reproduce the recorded losses. Exits with 1 if a check fails.
    """
    from tunesmith.launcher.progress import Progress
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.launcher.runs.replay import replay as replay_steps
    from tunesmith.report.prove import prove as prove_run

    run_dir = find_run(run)
    proofs = prove_run(run_dir)
    if not as_json:
        for proof in proofs:
            _show(proof)
    if replay and run_dir.exists:
        proofs.append(replay_steps(run_dir, replay, Progress(sys.stderr).print))
        if not as_json:
            _show(proofs[-1])
    if as_json:
        typer.echo(json.dumps([asdict(proof) for proof in proofs], ensure_ascii=False, indent=2))
    raise typer.Exit(1 if any(proof.passed is False for proof in proofs) else 0)


def _show(proof: "Proof") -> None:
    word, colour = MARKS[proof.passed]
    typer.secho(f"{word:>7}  ", fg=colour, bold=proof.passed is False, nl=False)
    typer.echo(f"{proof.name}: {proof.evidence}")
