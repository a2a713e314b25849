"""What `train` and `resume` do with --on slurm: hand jobs over, say under which numbers, and return."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from tunesmith.launcher.planning.prepare_run import Request
    from tunesmith.launcher.slurm.submit import Submission
    from tunesmith.rundir.paths import RunDir


@dataclass(frozen=True)
class SlurmOptions:
    """As on the command line; None and empty: not given."""

    cluster: str | None = None
    launcher: str | None = None
    after: tuple[str, ...] = ()
    chain: bool = False
    evaluate: tuple[str, ...] = ()
    sweep: tuple[str, ...] = ()
    parallel: int = 0

    def require_slurm(self, backend: str) -> None:
        """Raises InputError where an option of Slurm's stands without it."""
        from tunesmith.errors import InputError

        given = {
            "--cluster": self.cluster,
            "--launcher": self.launcher,
            "--after": self.after,
            "--chain": self.chain,
            "--evaluate": self.evaluate,
            "--sweep": self.sweep,
            "--parallel": self.parallel,
        }
        names = [name for name, value in given.items() if value]
        if backend != "slurm" and names:
            raise InputError(f"{names[0]} is for Slurm", where=names[0], remedy="add --on slurm, or leave it out")

    def submission(self) -> "Submission":
        """Raises InputError where they do not go together, or the site's file is missing or wrong."""
        from tunesmith.configs.slurm_site import find_cluster
        from tunesmith.errors import InputError
        from tunesmith.launcher.slurm.submit import Submission

        if self.launcher not in (None, "ray", "torchrun"):
            raise InputError(f"--launcher takes ray or torchrun; given: {self.launcher}", where="--launcher")
        if self.chain and self.sweep:
            raise InputError("--chain and --sweep do not go together", remedy="submit the sweep, then what follows")
        if self.evaluate and not self.chain:
            raise InputError("--evaluate is a stage of a chain", where="--evaluate", remedy="add --chain")
        if bad := [job for job in self.after if not job.replace("_", "").isdigit()]:
            raise InputError(f"--after takes a job's number; given: {bad[0]}", where="--after")
        cluster, _ = find_cluster(self.cluster)
        return Submission(
            cluster,
            self.launcher or "ray",
            self.chain,
            self.evaluate,
            self.sweep,
            self.parallel,
            self.after,
        )


def submit(request: "Request", run: "RunDir", wanted: "Submission", *, dry_run: bool, as_json: bool) -> None:
    """Submit a run, a chain or a sweep and tell of it; dry_run: print the scripts instead."""
    from tunesmith.launcher.attempts import is_finished
    from tunesmith.launcher.runs.launch_checks import require_usable
    from tunesmith.launcher.slurm.submit import evaluate_rows, prepared_jobs, submit_run, sweep_script

    if wanted.sweep:
        if dry_run:
            typer.echo(sweep_script(request, run.root, wanted), nl=False)
        else:
            _submit_sweep(request, run, wanted, as_json)
        return
    require_usable(run)
    if run.exists and is_finished(run) and not dry_run:
        typer.echo(f"the run in {run.root} is finished: nothing is submitted")
        return
    if dry_run:
        scripts = [text for _, text in prepared_jobs(request, run, wanted)]
        typer.echo("\n".join(scripts), nl=False)
        return
    _tell(run, submit_run(request, run, wanted), as_json)
    if wanted.chain and not evaluate_rows(request, wanted) and not as_json:
        typer.echo("no stage evaluate: name rows with --evaluate FILE, or files in data.validation")


def submit_again(run: "RunDir", overrides: Sequence[str], *, as_json: bool) -> None:
    """Submit a run's training once more; it goes on from its newest checkpoint."""
    from tunesmith.launcher.attempts import is_finished
    from tunesmith.launcher.slurm.submit import resubmit

    if run.exists and is_finished(run):
        typer.echo(f"the run in {run.root} is finished: nothing is submitted")
        return
    _tell(run, resubmit(run, overrides), as_json)


def _tell(run: "RunDir", stages: dict[str, str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"run": str(run.root), "jobs": stages}))
        return
    for stage, number in stages.items():
        typer.echo(f"submitted: job {number} ({stage}), {run.jobs / f'{stage}.sbatch'}")
    typer.echo(f"  how it stands: tunesmith status {run.root} --follow")
    typer.echo(f"  its words:     tunesmith logs {run.root} --follow")
    typer.echo(f"  save and end:  tunesmith stop {run.root}")


def _submit_sweep(request: "Request", run: "RunDir", wanted: "Submission", as_json: bool) -> None:
    from tunesmith.launcher.slurm.submit import submit_sweep

    number, combinations = submit_sweep(request, run.root, wanted)
    folders = [str(run.root / f"{index:03d}") for index in range(len(combinations))]
    if as_json:
        listed = [{"run": path, "set": list(each)} for path, each in zip(folders, combinations, strict=True)]
        typer.echo(json.dumps({"job": number, "runs": listed}))
        return
    typer.echo(f"submitted: job {number}, {len(folders)} runs")
    for path, each in zip(folders, combinations, strict=True):
        typer.echo(f"  {path}: {', '.join(each)}")
    typer.echo(f"  how they stand: tunesmith runs {run.root}")
