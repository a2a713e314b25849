"""kill -9 at every fault point of a job: the job recovers, and no event is lost or duplicated."""

import os
import signal
import subprocess
import sys
import time

import pytest
from openai import BadRequestError, OpenAI
from sqlalchemy import update

from tests.serving.jobs.service import Service
from tests.waiting import wait_for
from tunesmith.rundir.status import read_status
from tunesmith.serving.settings import Webhook
from tunesmith.serving.store.tables import File

FIVE_EPOCHS = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5, "batch_size": 1}}}
"""300 steps of the rows of `chat_rows`, with a checkpoint after each epoch."""
SECRET = "a secret of sixteen characters"
FAULT_POINTS = [
    *("job.copied", "job.validated", "job.queued", "job.placed", "job.launch", "job.launched"),
    *("job.relay", "job.checkpoint", "job.result", "job.publish", "job.published", "job.settle", "job.delivered"),
]


@pytest.fixture
def service(tmp_path, tiny_llama, receiver):
    hooks = (Webhook(url=f"http://127.0.0.1:{receiver.server_port}/hook", secret=SECRET),)
    service = Service(tmp_path / "server", tiny_llama, hooks=hooks)
    service.start_server()
    yield service
    service.close()


def test_a_job_survives_a_supervisor_killed_at_every_fault_point(service, chat_rows, receiver):
    """One job, processed by a sequence of supervisors, each killed at the next fault point."""
    job_id = service.create(service.upload(chat_rows[:24]), seed=5).id
    for point in FAULT_POINTS:
        process = service.start_supervisor(TUNESMITH_FAULT=f"{point}=kill")
        wait_for(lambda process=process: process.poll() is not None)
        assert process.returncode == -9, (point, service.log("supervisor")[-3000:])
    service.start_supervisor()
    job = service.succeeded(job_id)
    wait_for(lambda: service.store.jobs.get(job_id).settled)

    events = service.store.events.list(job_id, limit=500, newest_first=False).rows
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    sources = [event.source for event in events]
    assert [source for source in sources if source != "checkpoint:6"] == [
        *("created", "validating", "receipts:train", "validated", "started"),
        *(f"step:{n}" for n in range(1, 13)),
        *("checkpoint:12", "model", "succeeded"),
    ]
    # A checkpoint is written while training continues, so the event of its commit may follow those of later steps.
    assert sources.index("step:6") < sources.index("checkpoint:6") < sources.index("checkpoint:12")
    assert sources.count("checkpoint:6") == 1
    assert [model.id for model in service.client.models.list() if model.id.startswith("ft:")] == [job.fine_tuned_model]
    results = [file.id for file in service.client.files.list() if file.purpose == "fine-tune-results"]
    assert results == job.result_files
    assert service.run(job_id).events.read_text().count('"kind":"start"') == 1  # the run was not affected
    assert len(receiver.received) == 1  # the delivery was recorded: not sent again
    event = OpenAI(api_key="none").webhooks.unwrap(*receiver.received[0], secret=SECRET)
    assert (event.type, event.data.id) == ("fine_tuning.job.succeeded", job_id)


@pytest.mark.rerun(reason="it measures the seconds until a job is picked up, less those of the imports")
def test_a_run_survives_server_and_supervisor_and_is_picked_up_within_seconds(service, chat_rows, tmp_path):
    (holds := tmp_path / "holds").mkdir()
    fault = {"TUNESMITH_FAULT": "step.forward:60=hang,step.forward:250=hang", "TUNESMITH_FAULT_UNTIL": str(holds)}
    service.start_supervisor(**fault)
    job_id = service.create(service.upload(chat_rows), seed=5, method=FIVE_EPOCHS).id
    run = service.run(job_id)
    wait_for(lambda: len([e for e in service.events(job_id) if e.type == "metrics"]) > 20)
    service.kill("server")
    service.kill("supervisor")
    (holds / "step.forward:60").touch()
    wait_for((holds / "step.forward:250.reached").exists)  # the run does not need them
    known = service.store.events.list(job_id, limit=1).rows[0].number
    service.start_server()
    started_at = time.monotonic()
    subprocess.run([sys.executable, "-P", "-m", "tunesmith.serving.jobs.supervisor", "-h"], check=True)
    imports_s, started_at = time.monotonic() - started_at, time.monotonic()
    service.start_supervisor()
    wait_for(lambda: service.store.events.list(job_id, limit=1).rows[0].number > known, every_s=0.02)
    took_s = time.monotonic() - started_at - imports_s  # imports take arbitrarily long on a busy machine
    (holds / "step.forward:250").touch()
    service.succeeded(job_id)
    steps = [event.data["step"] for event in service.events(job_id, limit=100) if event.type == "metrics"]
    assert steps == list(range(1, 301))
    assert run.events.read_text().count('"kind":"start"') == 1
    assert took_s < 5, f"picked up after {took_s:.1f} s"


def test_a_run_with_killed_processes_is_restarted(service, chat_rows, tmp_path):
    """After launcher and worker are killed, the supervisor restarts the run from its newest checkpoint."""
    release = tmp_path / "release"
    service.start_supervisor(TUNESMITH_FAULT="step.forward:200=hang", TUNESMITH_FAULT_UNTIL=str(release))
    job_id = service.create(service.upload(chat_rows), seed=5, method=FIVE_EPOCHS).id
    run = service.run(job_id)
    wait_for(lambda: len(service.store.checkpoints.list(job_id).rows) >= 2)
    for pid in (int(run.lock.read_text()), read_status(run.status).pid):
        os.kill(pid, signal.SIGKILL)
    release.touch()
    service.succeeded(job_id)
    events = service.events(job_id, limit=100)
    assert [event.data["step"] for event in events if event.type == "metrics"] == list(range(1, 301))
    assert any(event.message.startswith("Training resumed from step") for event in events)


def test_a_checkpoint_has_its_event_after_a_worker_is_killed_between_commit_and_event(service, chat_rows):
    """It is killed at its second commit, the last checkpoint, and resumed by its launcher only to export the model."""
    service.start_supervisor(TUNESMITH_FAULT="commit.done:2=kill")
    job = service.succeeded(service.create(service.upload(chat_rows[:24]), seed=5).id)
    assert service.run(job.id).events.read_text().count('"kind":"checkpoint"') == 1
    messages = [event.message for event in service.events(job.id, limit=100)]
    for step in (6, 12):
        assert messages.count(f"Checkpoint created at step {step}: {job.fine_tuned_model}:ckpt-step-{step}") == 1
    listed = service.client.fine_tuning.jobs.checkpoints.list(job.id)
    assert [checkpoint.step_number for checkpoint in listed] == [12, 6]


def test_two_supervisors_do_not_start_a_job_twice(service, chat_rows):
    first = service.start_supervisor()
    service.start_supervisor()
    job_id = service.create(service.upload(chat_rows[:10])).id
    service.succeeded(job_id)
    assert service.run(job_id).events.read_text().count('"kind":"start"') == 1
    events = service.store.events.list(job_id, limit=100).rows
    assert len({event.source for event in events}) == len(events) == events[0].number
    first.terminate()
    assert first.wait(300) == 0


def test_deleting_a_file_fails_only_jobs_that_have_not_copied_it(service, chat_rows):
    """The API does not delete a file that an unfinished job needs, but it may still get lost with its disk."""
    lost_file, kept_file = service.upload(chat_rows[:10]), service.upload(chat_rows[:10])
    lost, kept = service.create(lost_file).id, service.create(kept_file).id
    with pytest.raises(BadRequestError):
        service.client.files.delete(lost_file)
    service.store.files.delete(lost_file)
    with service.store.begin() as session:  # expires while the job waits: the content is kept
        session.execute(update(File).where(File.id == kept_file).values(expires_at=1))
    process = service.start_supervisor(TUNESMITH_FAULT="job.placed=kill")
    wait_for(lambda: process.poll() is not None)
    service.store.files.delete(kept_file)
    service.start_supervisor()
    job = service.finished(lost)
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    service.succeeded(kept)
