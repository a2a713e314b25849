"""One stage of a run in a batch job: `python -m tunesmith.cli.batch_step RUN_DIR --stage STAGE`.

slurm/job.sh starts it in the batch step. A stage that succeeded leaves a result in the run directory; without a result
the job fails, whatever the exit code.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.cli.crash import describe_crash
from tunesmith.configs.load import load_recipe_text
from tunesmith.errors import ExitCode, InputError, RunFault, TunesmithError
from tunesmith.launcher.attempts import is_finished, stored_plan, wait_for_lock
from tunesmith.launcher.planning.prepare_run import Request
from tunesmith.launcher.progress import Progress
from tunesmith.launcher.runs.start import prepare, train
from tunesmith.launcher.slurm.cluster import SlurmCluster
from tunesmith.launcher.slurm.submit import merges
from tunesmith.report.record import read_record
from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.event_log import EventLog, read_events
from tunesmith.rundir.events import EvaluationEvent, ExportEvent
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.fence import RunLost, newest_attempt
from tunesmith.rundir.job import STAGES, JobRecord, read_job, read_job_starts, record_job_start
from tunesmith.rundir.launch import Launch
from tunesmith.rundir.paths import RunDir, step_of
from tunesmith.rundir.status import read_status

Result = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tunesmith.cli.batch_step", description="Run one stage of a run in a batch job."
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--fault", help="Only record this reason for the job's failure.")
    arguments = parser.parse_args()
    run, stage = RunDir(arguments.run_dir), arguments.stage
    for each in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(each, _request_stop)
    number = os.environ.get("TUNESMITH_JOB_NUMBER", "")
    try:
        if arguments.fault is not None:
            raise RunFault(arguments.fault, where=f"job {number}: {run.logs}", remedy=_remedy(run, stage))
        record = read_job(run)
        if record is None:
            raise InputError("job.json is missing or damaged", where=str(run.job), remedy="submit the run again")
        record_start(run, stage, number, int(os.environ.get("TUNESMITH_LIFE", "1")))
        code, result = _STAGES[stage](run, record, _request(record))
        if result is not None:
            write_json(run.result(stage, number), {"stage": stage, "job": number, **result})
        return int(code)
    except _StopRequested:
        status = read_status(run.status)
        if status is not None and status.phase == "preparing":
            status.phase, status.exit_code = "preempted", int(ExitCode.PREEMPTED)
            status.write(run.status)
        return int(ExitCode.PREEMPTED)
    except TunesmithError as error:
        return _fail(run, stage, number, error)
    except Exception as error:
        return _fail(run, stage, number, RunFault(describe_crash(error), where=str(run.logs)))


class _StopRequested(BaseException):
    """A signal arrived while no workers were running, so there is no state to save."""


def _request_stop(number: int, frame: object) -> None:
    raise _StopRequested


def _fail(run: RunDir, stage: str, number: str, error: TunesmithError) -> int:
    print(f"error: {error}", flush=True)
    if not isinstance(error, RunLost):  # the directory is missing, or that of another run
        with suppress(OSError):  # the log of the job has the error in any case
            _record_failure(run, stage, number, error)
    return int(error.exit_code)


def record_start(run: RunDir, stage: str, number: str, start: int) -> None:
    """Record a start of the job and the run's progress at that time.

    Raises RunFault if the previous start of a training job made no progress: the job would loop forever.
    """
    progress = _saved_progress(run)
    earlier = read_job_starts(run, number)
    record_job_start(
        run,
        job=number,
        stage=stage,
        life=start,
        nodes=os.environ.get("SLURM_JOB_NODELIST", ""),
        time=time.time(),
        **progress,
    )
    # Other stages save no intermediate state: only max_lives limits how often they start.
    if stage == "train" and start > 1 and earlier and {key: earlier[-1].get(key) for key in progress} == progress:
        raise RunFault(
            f"job {number} made no progress: nothing was saved between start {earlier[-1].get('life')} and {start}",
            where=f"step {progress['step']}, nodes {earlier[-1].get('nodes')}",
            remedy="see the logs of the previous start; save more often (checkpoint.every_steps), or raise "
            "time_limit_minutes in the cluster file",
        )


def _saved_progress(run: RunDir) -> dict[str, Any]:
    """The progress from which the run would resume: prepared data, newest checkpoint, number of evaluations."""
    steps = [step for path in run.checkpoints.glob("step-*") if (step := step_of(path)) is not None]
    return {
        "prepared": run.exists,
        "step": max(steps, default=0),
        "evaluations": sum(1 for _ in read_events(run.events, EvaluationEvent)),
    }


def _prepare(run: RunDir, record: JobRecord, request: Request) -> tuple[ExitCode, Result | None]:
    progress = Progress()
    data = prepare(request, run, progress)
    if data is None:
        return ExitCode.PREEMPTED, None
    return ExitCode.DONE, {"rows": data.train.num_rows, "tokens": data.train.num_tokens, "index": data.train.index}


def _train(run: RunDir, record: JobRecord, request: Request) -> tuple[ExitCode, Result | None]:
    code = train(request, run, Progress(), Launch(SlurmCluster.name, job=",".join(record.stages.values())))
    if code != ExitCode.DONE:
        return code, None
    status, export = read_status(run.status), read_record(run).export_path
    if not is_finished(run) or status is None or not status.step or not run.export.is_dir():
        raise RunFault("training exited with 0 but left no trained model", where=str(run.root))
    return code, {"step": status.step, "phase": status.phase, "export": str(export) if export else None}


def _evaluate(run: RunDir, record: JobRecord, request: Request) -> tuple[ExitCode, Result | None]:
    """Compare the trained model with the base model on rows that the run did not train on."""
    from tunesmith.evaluation.standalone import evaluate

    base = stored_plan(run).model.directory
    evaluation = evaluate(str(run.root), record.evaluate_data, baseline=base, progress=Progress().counting)
    comparison = asdict(evaluation.comparison) if evaluation.comparison else None
    return ExitCode.DONE, {"data": evaluation.data, "metrics": asdict(evaluation.metrics), "comparison": comparison}


def _export(run: RunDir, record: JobRecord, request: Request) -> tuple[ExitCode, Result | None]:
    """Export an adapter merged into the base model, next to the run's export; export any other model again."""
    from tunesmith.training.export.export import export_from_checkpoint

    with wait_for_lock(run, print):
        merge = merges(request.recipe)
        to = run.root / "merged" if merge else None
        export = export_from_checkpoint(run, step=None, form="model" if merge else None, to=to)
        log = EventLog(run.events)
        if to is None:
            log.write(ExportEvent(path=str(export.path), form=export.form, gate=export.gate))
        log.close()
    return ExitCode.DONE, {"path": str(export.path), "form": export.form, "gate": export.gate}


_STAGES: dict[str, Callable[[RunDir, JobRecord, Request], tuple[ExitCode, Result | None]]] = {
    "prepare": _prepare,
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
}


def _request(record: JobRecord) -> Request:
    """The request as it was submitted."""
    recipe = load_recipe_text(record.recipe_text, record.recipe_file, record.overrides)
    return Request(Path(record.recipe_file), record.recipe_text, tuple(record.overrides), recipe)


def _record_failure(run: RunDir, stage: str, number: str, error: TunesmithError) -> None:
    """Record the cause in the run directory. A stage after training does not change the run's status."""
    write_json(run.fault(stage, number), {"what": error.what, "where": error.where, "remedy": error.remedy})
    if stage in ("prepare", "train"):
        status = read_status(run.status)
        if status is None or status.phase != "failed":
            attempt = max(status.attempt if status else 0, newest_attempt(run))
            record_end(run, attempt, error, has_begun=False, replace=True)


def _remedy(run: RunDir, stage: str) -> str:
    return f"fix the cause, then submit it again: tunesmith {'resume' if stage == 'train' else 'train'} {run.root}"


if __name__ == "__main__":
    sys.exit(main())
