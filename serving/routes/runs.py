"""The run of a job, beyond the hosted API: status, row receipts, and evaluation before and after training.

The web page shows it; `tunesmith status` and `report` read the same files.
"""

from itertools import islice

from fastapi import APIRouter

from tunesmith.report.comparison import Difference, compare
from tunesmith.report.record import read_object, read_record
from tunesmith.report.wording import finite
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import EvaluationEvent, StepEvent
from tunesmith.rundir.json_lines import read_lines
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status
from tunesmith.serving.objects.job_run import (
    EvaluationDifference,
    JobRun,
    MeasuredDifference,
    RejectedRow,
    RunEvaluation,
    RunReceipts,
    RunStatus,
)
from tunesmith.serving.routes.context import CallerDep, ServerDep, or_404
from tunesmith.serving.routes.object_route import ObjectRoute

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"], route_class=ObjectRoute)
MAX_REJECTS = 50
MEASURED = ("step", "loss", "loss_error", "perplexity", "token_accuracy", "num_examples", "num_tokens")
SUMMED = ("rows", "fates", "tokens", "supervised_tokens", "duplicates", "lost_tokens", "length_percentiles")


@router.get("/jobs/{job_id}/run")
def get_run(job_id: str, server: ServerDep, caller: CallerDep) -> JobRun:
    """An extension of the API. `status`, `receipts` and `evaluation` are null until the run has written them."""
    job = server.store.jobs.get(job_id, caller.organization) if "\0" not in job_id else None
    message = f"Could not find fine tune: {job_id[:80]}"
    job = or_404(job, message, code="fine_tune_not_found", param="fine_tuning_job_id")
    run = RunDir(server.settings.runs / job.id)
    return {
        "object": "fine_tuning.job.run",
        "id": job.id,
        "status": _status(run),
        "receipts": _receipts(run),
        "evaluation": _evaluation(run),
    }


def _status(run: RunDir) -> RunStatus | None:
    if (status := read_status(run.status)) is None:
        return None
    return {
        "phase": status.phase,
        "step": status.step,
        "total_steps": status.total_steps,
        "attempt": status.attempt,
        "eta_s": status.eta_s,
        "started": status.started,
        "heartbeat": status.heartbeat,
    }


def _receipts(run: RunDir) -> RunReceipts | None:
    summary = read_object(run.receipts / "summary.json")
    if not summary:
        return None
    splits = {
        name: {key: split[key] for key in SUMMED if key in split} for name, split in summary.get("splits", {}).items()
    }
    rejects: list[RejectedRow] = [
        {
            "source": str(line.get("source") or ""),
            "line": str(line.get("line") or ""),
            "reason": str(line.get("reason") or ""),
            "remedy": str(line.get("remedy") or ""),
        }
        for line in islice(read_lines(run.rejects), MAX_REJECTS)
    ]
    return {
        "rows": summary.get("rows"),
        "fates": summary.get("fates"),
        "splits": splits,
        "near_duplicates": {
            key: value for key, value in (summary.get("near_duplicates") or {}).items() if key != "examples"
        },
        "deidentified": summary.get("deidentified"),
        "special_token_rows": summary.get("special_token_rows", 0),
        "rejects": rejects,
    }


def _evaluation(run: RunDir) -> RunEvaluation | None:
    """During training only the evaluation before it, which is at the start of the event log."""
    status = read_status(run.status)
    if status is None or status.phase not in ("done", "early_stopped"):
        before = _before_training(run)
        return {"before": before, "after": None, "difference": None} if before else None
    record = read_record(run)
    before, after = record.evaluation("before"), record.evaluated_last
    if before is None or after is None:
        return None
    compared = compare(record)
    difference: EvaluationDifference | None = None
    if compared is not None:
        difference = {
            "loss": _difference(compared.loss),
            "token_accuracy": _difference(compared.token_accuracy),
            "num_better": compared.num_better,
            "num_examples": len(compared.examples),
        }
    return {"before": _measured(before), "after": _measured(after), "difference": difference}


def _before_training(run: RunDir) -> dict[str, float] | None:
    for event in read_events(run.events, EvaluationEvent, StepEvent):
        if isinstance(event, StepEvent):
            return None
        if event.when == "before":
            return _measured(event)
    return None


def _difference(difference: Difference) -> MeasuredDifference:
    return {
        "value": finite(difference.value),
        "low": finite(difference.low),
        "high": finite(difference.high),
    }


def _measured(event: EvaluationEvent) -> dict[str, float]:
    """The numbers of an evaluation."""
    values = event.to_json()
    return {key: value for key in MEASURED if isinstance(value := values.get(key), (int, float))}
