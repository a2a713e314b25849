"""The page of a job that ended early states nothing that did not happen and promises nothing that will not."""

import pytest

from tests.event_lines import an_event
from tests.serving.page.seeds import put_events, put_job
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status

FAULT = {"code": "invalid_training_file", "message": "Example 3 has no messages", "param": "training_file"}
PROMISES = (" yet", "pending", "Evaluated before and after", "is saved", "Finished", "Try in playground", "left")


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_job_that_ended_before_training(page, site, status):
    error = FAULT if status == "failed" else None
    job = put_job(site.store, status=status, fine_tuned_model=None, error=error, validation_file="file-other")
    put_events(site.store, job, 0, ["Validating training file: file-none"])
    page.show(f"#/jobs/{job}")
    page.until(lambda: "The job has no checkpoints." in page.text("main"))
    text = page.text("main")
    for expected in ("ended before its first training step", "ended before it was evaluated", "ended before its rows"):
        assert expected in text
    assert not [promise for promise in PROMISES if promise in text]
    assert ("Example 3 has no messages (invalid_training_file)" in text) is (status == "failed")


def test_a_job_that_failed_during_training(page, site):
    job = put_job(site.store, status="failed", fine_tuned_model=None, error=FAULT, validation_file="file-other")
    put_events(site.store, job, 3, [])
    run = RunDir(site.api.home / "runs" / job)
    run.create()
    Status("failed", step=3, total_steps=40, exit_code=1).write(run.status)
    log = EventLog(run.events)
    scores = {"loss": 5.0, "perplexity": 99.0, "token_accuracy": 0.5, "num_examples": 5}
    log.write(an_event("evaluation", step=0, when="before", **scores))
    log.close()
    page.show(f"#/jobs/{job}")
    page.until(lambda: "3 of 40 steps" in page.text("main"))
    text = page.text("main")
    assert "evaluated before training; the job ended before the evaluation after training" in text
    assert not [promise for promise in PROMISES if promise in text]
