"""`tunesmith prove`: the run's own evidence, checked."""

import json
from dataclasses import asdict

import typer

from tunesmith.launcher.commands.arguments import Json, Run

MARKS = {True: ("passed", typer.colors.GREEN), False: ("FAILED", typer.colors.RED), None: ("open", typer.colors.YELLOW)}


def prove(
    run: Run,
    as_json: Json = False,
) -> None:
    """Check a run's proofs.

    Verifies every hash, the ledger of rows and the recorded numbers. Ends with 1 where a proof fails.
    """
    from tunesmith.launcher.runs import find_run
    from tunesmith.report.prove import prove as prove_run

    proofs = prove_run(find_run(run))
    if as_json:
        typer.echo(json.dumps([asdict(proof) for proof in proofs], ensure_ascii=False, indent=2))
    else:
        for proof in proofs:
            word, colour = MARKS[proof.passed]
            typer.secho(f"{word:>7}  ", fg=colour, bold=proof.passed is False, nl=False)
            typer.echo(f"{proof.name}: {proof.evidence}")
    raise typer.Exit(1 if any(proof.passed is False for proof in proofs) else 0)
