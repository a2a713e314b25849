"""`tunesmith doctor`: examine this machine."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.arguments import Json

if TYPE_CHECKING:
    from tunesmith.launcher.doctor.finding import Result
    from tunesmith.launcher.doctor.hosts import Hosts

COLORS = {"error": "red", "warning": "yellow", "note": "blue"}


def doctor(
    path: Annotated[Path, typer.Option(metavar="DIRECTORY", help="Directory in which runs will be written.")] = Path(
        "runs"
    ),
    port: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=65535, metavar="PORT", help="A port that must be free. May be repeated.", show_default=False
        ),
    ] = None,
    address: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address of a Ray cluster. Default: RAY_ADDRESS.", show_default=False)
    ] = "",
    hosts: Annotated[
        str,
        typer.Option(
            metavar="HOST,HOST",
            help="Also examine these hosts (by ssh) and a collective between them. Default: the nodes of this Slurm "
            "allocation, if there are several.",
            show_default=False,
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Examine this machine: versions, GPUs, network, disk, limits, clock, Ray and Slurm; and several hosts.

    Every finding states what was seen, why it matters and what to do. Exit code 1 if there is an error; 0 if there are
    only warnings and notes.
    """
    from tunesmith.errors import ExitCode
    from tunesmith.launcher.doctor.checks import Subject, run_checks
    from tunesmith.launcher.doctor.finding import has_errors
    from tunesmith.launcher.doctor.nodes import check_nodes

    chosen = _hosts(hosts)
    results = list(run_checks(Subject(path, tuple(port or ()), address)))
    if chosen is not None:
        results += check_nodes(chosen, path)
    if as_json:
        typer.echo(json.dumps(as_document(results), indent=2))
    else:
        _show(results)
    if has_errors(results):
        raise typer.Exit(int(ExitCode.FAULT))


def _hosts(text: str) -> "Hosts | None":
    """The hosts of the option, or the nodes of this allocation. Raises InputError for an invalid name."""
    from tunesmith.errors import InputError
    from tunesmith.launcher.doctor.hosts import Hosts
    from tunesmith.launcher.slurm.torchrun import node_names

    names = tuple(name.strip() for name in text.split(",")) if text else ()
    if any(not name or name.startswith("-") or len(name.split()) != 1 for name in names):
        raise InputError(f"not a list of hosts: {text!r}", where="--hosts", remedy="write --hosts node1,node2")
    if names:
        return Hosts(names)
    nodes = node_names(os.environ["SLURM_JOB_NODELIST"]) if os.environ.get("SLURM_JOB_NODELIST") else ()
    return Hosts(tuple(nodes), in_allocation=True) if len(nodes) > 1 else None


def as_document(results: "list[Result]") -> dict[str, object]:
    """The output of --json, described in docs/doctor.md."""
    from dataclasses import asdict

    counts = {name: sum(f.severity == name for r in results for f in r.findings) for name in COLORS}
    return {
        "version": 1,
        "counts": counts,
        "checks": [{"check": result.check, "seen": result.seen} for result in results],
        "findings": [asdict(finding) for result in results for finding in result.findings],
    }


def _show(results: "list[Result]") -> None:
    from rich.table import Table

    from tunesmith.launcher.terminal import console_for

    console = console_for()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("check", "result", "seen"):
        table.add_column(column)
    for result in results:
        worst = next((name for name in COLORS if any(f.severity == name for f in result.findings)), "ok")
        table.add_row(result.check, worst, result.seen)
    console.print(table)
    for finding in (finding for result in results for finding in result.findings):
        console.print(f"\n{finding.severity}: {finding.what}", style=COLORS[finding.severity])
        console.print(f"  why: {finding.why}\n  what to do: {finding.what_to_do}")
