"""Slurm as a cluster: a run is one batch job, a chain of dependent stages, or part of an array."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import InputError
from tunesmith.launcher.backends.cluster import (
    Cluster,
    ClusterJob,
    JobState,
    Submission,
    SubmitOptions,
    Submitted,
    hints,
)
from tunesmith.rundir.job import read_job
from tunesmith.rundir.launch import Launch
from tunesmith.rundir.paths import RunDir

if TYPE_CHECKING:
    from tunesmith.launcher.backends.base import Backend
    from tunesmith.launcher.slurm.client import SlurmState
    from tunesmith.launcher.slurm.submit import SlurmSubmission

LAUNCHERS = ("ray", "torchrun")
"""What can start the processes within a job; the first is the default."""


class SlurmCluster(Cluster):
    name = "slurm"
    title = "Slurm"
    options = SubmitOptions.names()
    site_file = "cluster.yaml"
    is_batch = True
    requeues = True

    def open(self, launch: Launch) -> "Backend":
        """Open the back end within an allocation."""
        from tunesmith.launcher.slurm.script import in_allocation

        return in_allocation()

    def takes_over(self, launch: Launch) -> bool:
        """Always True: the batch step of a job does not call it."""
        return True

    def check(self, submission: Submission) -> None:
        if submission.request is not None:
            slurm_submission(submission.options)

    def script(self, submission: Submission) -> str | None:
        from tunesmith.launcher.slurm.submit import prepared_jobs, sweep_script

        if submission.request is None:
            return None
        request, run, submission_options = submission.request, submission.run, slurm_submission(submission.options)
        if submission_options.sweep:
            return sweep_script(request, run.root, submission_options)
        return "\n".join(text for _, text in prepared_jobs(request, run, submission_options))

    def submit(self, submission: Submission) -> Submitted:
        from tunesmith.launcher.slurm.submit import evaluate_rows, resubmit, submit_run

        request, run = submission.request, submission.run
        if request is None:
            return self._submitted(run, resubmit(run, submission.overrides))
        submission_options = slurm_submission(submission.options)
        if submission_options.sweep:
            return self._submit_sweep(submission, submission_options)
        stages = submit_run(request, run, submission_options)
        if submission_options.chain and not evaluate_rows(request, submission_options):
            note = "stage evaluate is skipped: name rows with --evaluate FILE or files in data.validation"
            return self._submitted(run, stages, note)
        return self._submitted(run, stages)

    def _submitted(self, run: RunDir, stages: dict[str, str], *notes: str) -> Submitted:
        lines = [
            f"submitted: job {number} ({stage}), {run.jobs / f'{stage}.sbatch'}" for stage, number in stages.items()
        ]
        launch = Launch(self.name, job=",".join(stages.values()))
        launch.write(run.launch)
        result = {"run": str(run.root), "jobs": stages}
        return Submitted(launch, tuple(lines), (*hints(run), *notes), result)

    def _submit_sweep(self, submission: Submission, submission_options: "SlurmSubmission") -> Submitted:
        from tunesmith.launcher.slurm.submit import submit_sweep

        assert submission.request is not None
        root = submission.run.root
        number, combinations = submit_sweep(submission.request, root, submission_options)
        runs = {str(root / f"{index:03d}"): list(each) for index, each in enumerate(combinations)}
        for index, path in enumerate(runs):
            Launch(self.name, job=f"{number}_{index}").write(RunDir(Path(path)).launch)
        lines = [f"submitted: job {number}, {len(runs)} runs"]
        lines += [f"  {path}: {', '.join(each)}" for path, each in runs.items()]
        result = {"job": number, "runs": [{"run": path, "set": each} for path, each in runs.items()]}
        hint = f"  status: tunesmith runs {root}"
        return Submitted(Launch(self.name, job=number), tuple(lines), (hint,), result)

    def state(self, run: RunDir) -> list[ClusterJob]:
        from tunesmith.launcher.slurm.client import states

        record = read_job(run)
        if record is None:
            return []
        known = states(list(record.stages.values()))
        unknown = JobState.FORGOTTEN
        if len(known) < len(record.stages) and not self.is_reachable(""):
            unknown = JobState.UNREACHABLE
        return [_job(run, stage, number, known.get(number), unknown) for stage, number in record.stages.items()]

    def cancel(self, run: RunDir, jobs: Sequence[ClusterJob]) -> None:
        from tunesmith.launcher.slurm.client import cancel

        cancel([job.number for job in jobs])

    def request_stop(self, run: RunDir, job: ClusterJob) -> None:
        from tunesmith.launcher.slurm.client import signal_stop

        signal_stop(job.number)

    def cancel_hint(self, number: str) -> str:
        return f"scancel {number}"

    def logs(self, run: RunDir) -> Path:
        """Log of the latest start of a batch job."""
        starts = sorted(run.logs.glob("job-*-life-[0-9][0-9][0-9].log"), key=lambda path: path.stat().st_mtime)
        return starts[-1] if starts else run.launcher_log

    def is_reachable(self, address: str) -> bool:
        """True if Slurm is not installed: submitting reports that."""
        from tunesmith.launcher.slurm.client import is_unreachable

        return not is_unreachable()

    def arguments(self, address: str, site: str) -> list[str]:
        # One node per job: starting Ray would only take time.
        return ["--on", self.name, "--launcher", "torchrun", *(["--cluster", site] if site else [])]

    def check_site(self, path: str) -> None:
        from tunesmith.configs.slurm_site import find_site

        find_site(path)


def slurm_submission(options: SubmitOptions) -> "SlurmSubmission":
    """Convert and check options. Raises InputError if they conflict, or the cluster file is missing or invalid."""
    from tunesmith.configs.slurm_site import find_site
    from tunesmith.launcher.slurm.submit import SlurmSubmission

    if options.launcher is not None and options.launcher not in LAUNCHERS:
        raise InputError(f"--launcher takes {' or '.join(LAUNCHERS)}; got {options.launcher}", where="--launcher")
    if options.chain and options.sweep:
        raise InputError(
            "--chain and --sweep cannot be combined", remedy="submit the sweep first, then the other stages"
        )
    if options.evaluate and not options.chain:
        raise InputError("--evaluate requires --chain", where="--evaluate", remedy="add --chain")
    if bad := [job for job in options.after if not job.replace("_", "").isdigit()]:
        raise InputError(f"--after takes a job ID; got {bad[0]}", where="--after")
    site, _ = find_site(options.cluster)
    return SlurmSubmission(
        site,
        options.launcher or LAUNCHERS[0],
        options.chain,
        options.evaluate,
        options.sweep,
        options.parallel,
        options.after,
    )


def _job(run: RunDir, stage: str, number: str, slurm: "SlurmState | None", unknown: JobState) -> ClusterJob:
    fault, has_result = _fault(run, stage, number), run.result(stage, number).is_file()
    if slurm is None:
        return ClusterJob(stage, number, unknown, fault=fault, has_result=has_result)
    state = JobState.PENDING if slurm.state == "PENDING" else JobState.RUNNING if slurm.is_active else JobState.ENDED
    details = {"state": slurm.state, "reason": slurm.reason, "nodes": slurm.nodes}
    return ClusterJob(stage, number, state, str(slurm), slurm.state == "COMPLETED", fault, has_result, details)


def _fault(run: RunDir, stage: str, number: str) -> str | None:
    try:
        raw = json.loads((run.fault(stage, number)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return raw.get("what") if isinstance(raw, dict) else None
