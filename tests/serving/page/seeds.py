"""Store rows for jobs and events, so that lists can be tested without training."""

import json
import time
from pathlib import Path

from tests.event_lines import an_event
from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status
from tunesmith.serving.names import make_id
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Event, Job


def put_job(store: Store, **fields) -> str:
    """Store a finished job; `fields` overrides the defaults. Returns its id."""
    values = {
        "id": make_id("ftjob-"),
        "organization": "local",
        "created_at": int(time.time()),
        "finished_at": int(time.time()) + 61,
        "model": "tiny",
        "base": "tiny",
        "seed": 1,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
        "hyperparameters": {"n_epochs": 1},
        "training_file": "file-none",
        "status": "succeeded",
        "fine_tuned_model": "ft:tiny:local::seeded",
        "result_files": [],
        "settled": True,
        **fields,
    }
    job, _ = store.jobs.create(Job(**values))
    return job.id


def put_events(store: Store, job_id: str, steps: int, messages: list[str]) -> None:
    """Store metrics events for that many steps, followed by messages."""
    now = int(time.time())
    events = []
    for step in range(1, steps + 1):
        data = {"step": step, "total_steps": steps, "train_loss": 5 - step / steps, "train_mean_token_accuracy": 0.5}
        events.append(
            Event(source=f"step:{step}", type="metrics", level="info", message=f"Step {step}/{steps}", data=data)
        )
    for number, message in enumerate(messages):
        events.append(Event(source=f"text:{number}", type="message", level="warn", message=message, data={}))
    for event in events:
        event.created_at = now
    store.events.append_all(job_id, events)


def put_run(folder: Path) -> None:
    """Write the run directory of a run of 40 steps: status, receipts, evaluations before and after training."""
    run = RunDir(folder)
    run.create()
    Status("done", step=40, total_steps=40, exit_code=0).write(run.status)
    outcomes = {"kept": 48, "truncated": 1, "masked": 0, "dropped": 0, "rejected": 1, "duplicate": 0}
    split = {
        "rows": 50,
        "fates": outcomes,
        "tokens": 5_000,
        "supervised_tokens": 3_000,
        "duplicates": 1,
        "lost_tokens": 9,
    }
    summary = {"rows": 100, "fates": outcomes, "splits": {"train": split, "validation": split}}
    write_json(run.receipts / "summary.json", {**summary, "near_duplicates": {"train": 2, "across": 1}})
    reject = {"row": 3, "source": "training.jsonl", "line": 4, "reason": "empty", "remedy": "remove it", "text": ""}
    run.rejects.write_text(json.dumps(reject) + "\n", encoding="utf-8")
    log = EventLog(run.events)
    for when, step, loss in (("before", 0, 5.0), ("after", 40, 4.0)):
        scores = [{"id": row, "loss": loss + row / 9, "num_tokens": 9, "num_correct": step // 9} for row in range(5)]
        run.evaluation(step).write_text("".join(json.dumps(one) + "\n" for one in scores), encoding="utf-8")
        log.write(
            an_event("evaluation", step=step, when=when, loss=loss, perplexity=99.0, token_accuracy=0.5, num_examples=5)
        )
    log.write(an_event("end", outcome="done", step=40, exit_code=0, seconds=1.0))
    log.close()
