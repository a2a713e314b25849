"""What a batch job does for one stage of a run: `python -m tunesmith.cli.batch_step RUN_DIR --stage STAGE`.

Started by slurm/job.sh in the batch step. A stage that has done its work leaves a result in the run directory: without
one the job fails, whatever the exit code says.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.cli.crash import describe_crash
from tunesmith.configs.load import load_recipe_text
from tunesmith.errors import ExitCode, InputError, RunFault, TunesmithError
from tunesmith.launcher.attempts import is_finished, patient_lock, stored_plan
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
from tunesmith.rundir.fence import newest_attempt
from tunesmith.rundir.job import STAGES, JobRecord, note_life, read_job, read_lives
from tunesmith.rundir.launch import Launch
from tunesmith.rundir.paths import RunDir, step_of
from tunesmith.rundir.status import read_status

Result = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tunesmith.cli.batch_step", description="One stage of a run, in a batch job."
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--fault", help="Only write down why the job fails.")
    arguments = parser.parse_args()
    run, stage = RunDir(arguments.run_dir), arguments.stage
    for each in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(each, _ask)
    number = os.environ.get("TUNESMITH_JOB_NUMBER", "")
    try:
        if arguments.fault is not None:
            raise RunFault(arguments.fault, where=f"job {number}: {run.logs}", remedy=_remedy(run, stage))
        record = read_job(run)
        if record is None:
            raise InputError("job.json is missing or damaged", where=str(run.job), remedy="submit the run again")
        begin_life(run, stage, number, int(os.environ.get("TUNESMITH_LIFE", "1")))
        code, result = _WORK[stage](run, record, _request(record))
        if result is not None:
            write_json(run.result(stage, number), {"stage": stage, "job": number, **result})
        return int(code)
    except _Asked:
        status = read_status(run.status)
        if status is not None and status.phase == "preparing":
            status.phase, status.exit_code = "preempted", int(ExitCode.PREEMPTED)
            status.write(run.status)
        return int(ExitCode.PREEMPTED)
    except TunesmithError as error:
        return _tell(run, stage, number, error)
    except Exception as error:
        return _tell(run, stage, number, RunFault(describe_crash(error), where=str(run.logs)))


class _Asked(BaseException):
    """A signal while no workers run that could be asked to save: nothing is lost."""


def _ask(number: int, frame: object) -> None:
    raise _Asked


def _tell(run: RunDir, stage: str, number: str, error: TunesmithError) -> int:
    print(f"error: {error}", flush=True)
    _note(run, stage, number, error)
    return int(error.exit_code)


def begin_life(run: RunDir, stage: str, number: str, life: int) -> None:
    """Write down that the job starts, and how far the run is.

    Raises RunFault where its last life brought it no further: it would go round in circles.
    """
    mark = _mark(run)
    lives = read_lives(run, number)
    note_life(
        run,
        job=number,
        stage=stage,
        life=life,
        nodes=os.environ.get("SLURM_JOB_NODELIST", ""),
        time=time.time(),
        **mark,
    )
    # Other stages save nothing on their way: their lives are bounded by max_lives alone.
    if stage == "train" and life > 1 and lives and {key: lives[-1].get(key) for key in mark} == mark:
        raise RunFault(
            f"life {life} of job {number} begins where life {lives[-1].get('life')} began: nothing was saved between",
            where=f"step {mark['step']}, nodes {lives[-1].get('nodes')}",
            remedy="see the logs of the life before; let it save more often (checkpoint.every_steps), or raise "
            "time_limit_minutes of the cluster file",
        )


def _mark(run: RunDir) -> dict[str, Any]:
    """How far a run is, as far as it would go on from there."""
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
    status, exports = read_status(run.status), read_record(run).exports
    if not is_finished(run) or status is None or not status.step or not run.export.is_dir():
        raise RunFault("training ended with 0, but there is no trained model", where=str(run.root))
    return code, {"step": status.step, "phase": status.phase, "export": exports[-1].path if exports else None}


def _evaluate(run: RunDir, record: JobRecord, request: Request) -> tuple[ExitCode, Result | None]:
    """The trained model against the base model, on rows that the run did not train."""
    from tunesmith.evaluation.standalone import evaluate

    base = stored_plan(run).model.directory
    found = evaluate(str(run.root), record.evaluate_data, baseline=base, progress=Progress().counting)
    comparison = asdict(found.comparison) if found.comparison else None
    return ExitCode.DONE, {"data": found.data, "metrics": asdict(found.metrics), "comparison": comparison}


def _export(run: RunDir, record: JobRecord, request: Request) -> tuple[ExitCode, Result | None]:
    """An adapter merged into the whole model beside the run's own export; any other model exported anew."""
    from tunesmith.training.export.export import export_from_checkpoint

    with patient_lock(run, print):
        merge = merges(request.recipe)
        to = run.root / "merged" if merge else None
        made = export_from_checkpoint(run, step=None, form="model" if merge else None, to=to)
        log = EventLog(run.events)
        if to is None:
            log.write(ExportEvent(path=str(made.path), form=made.form, gate=made.gate))
        log.close()
    return ExitCode.DONE, {"path": str(made.path), "form": made.form, "gate": made.gate}


_WORK: dict[str, Callable[[RunDir, JobRecord, Request], tuple[ExitCode, Result | None]]] = {
    "prepare": _prepare,
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
}


def _request(record: JobRecord) -> Request:
    """The recipe as it was submitted."""
    recipe = load_recipe_text(record.recipe_text, record.recipe_file, record.overrides)
    return Request(Path(record.recipe_file), record.recipe_text, tuple(record.overrides), recipe)


def _note(run: RunDir, stage: str, number: str, error: TunesmithError) -> None:
    """The run directory knows why; what comes after training changes nothing of the run's own end."""
    write_json(run.fault(stage, number), {"what": error.what, "where": error.where, "remedy": error.remedy})
    if stage in ("prepare", "train"):
        status = read_status(run.status)
        if status is None or status.phase != "failed":
            attempt = max(status.attempt if status else 0, newest_attempt(run))
            record_end(run, attempt, error, has_begun=False, replace=True)


def _remedy(run: RunDir, stage: str) -> str:
    return f"mend the cause, then submit it again: tunesmith {'resume' if stage == 'train' else 'train'} {run.root}"


if __name__ == "__main__":
    sys.exit(main())
