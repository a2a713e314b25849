"""Several API processes and supervisors on one store, SQLite and PostgreSQL: no duplicates, and recovery from kills."""

import threading
from collections.abc import Iterator

import pytest

from tests.serving.jobs.service import Service
from tests.waiting import wait_for
from tunesmith.rundir.status import read_status

LONG = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 1}}}


@pytest.fixture(scope="module")
def services(new_database, tiny_llama, tmp_path_factory) -> Iterator[tuple[Service, Service]]:
    """Two servers, each with an API process and a supervisor, that share a home and a database."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.getbasetemp() / "tunesmith-cache"))
    home, url = tmp_path_factory.mktemp("server"), new_database()
    first, second = (Service(home, tiny_llama, database_url=url) for _ in range(2))
    yield first.start(), second.start()
    second.cancel_all()
    for each in (first, second):
        each.close()
    patch.undo()


def test_one_idempotency_key_creates_one_job_on_all_servers(services, chat_rows):
    """Sent concurrently to both servers, all requests return the same job, and it is trained once."""
    file = services[0].upload(chat_rows[:24])
    headers, barrier, job_ids = {"Idempotency-Key": "the same everywhere"}, threading.Barrier(8), []

    def send(service: Service) -> None:
        client = service.client.with_options(max_retries=8)
        barrier.wait()
        hyperparameters = {"n_epochs": 2, "batch_size": 4}
        job = client.fine_tuning.jobs.create(
            model="tiny", training_file=file, seed=5, hyperparameters=hyperparameters, extra_headers=headers
        )
        job_ids.append(job.id)

    senders = [threading.Thread(target=send, args=[services[number % 2]]) for number in range(8)]
    for each in senders:
        each.start()
    for each in senders:
        each.join()
    assert len(job_ids) == 8
    assert len(set(job_ids)) == 1
    (job_id,) = set(job_ids)
    assert [job.id for job in services[1].client.fine_tuning.jobs.list()] == [job_id]
    job = services[1].succeeded(job_id)
    assert services[0].run(job_id).events.read_text().count('"kind":"start"') == 1
    events = services[0].store.events.list(job_id, limit=100).rows
    assert len({event.source for event in events}) == len(events) == events[0].number
    assert [event.data["step"] for event in events[::-1] if event.type == "metrics"] == list(range(1, 13))
    assert [point.step_number for point in services[0].client.fine_tuning.jobs.checkpoints.list(job_id)] == [12, 6]
    assert services[0].client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model


def newest_step(service: Service, job_id: str) -> int:
    """The highest step among the last events of a job; 0 if there is none."""
    events = service.events(job_id, limit=100)
    return max((event.data["step"] for event in events if event.type == "metrics"), default=0)


def test_jobs_survive_killing_all_servers(services, many_chat_rows):
    """The second job waits for the slot of the first, also under the restarted supervisors."""
    file = services[0].upload(many_chat_rows)
    jobs = services[0].client.fine_tuning.jobs
    first = services[0].create(file, method=LONG).id
    second = services[1].create(file, method=LONG).id
    run = services[0].run(first)
    wait_for(lambda: (status := read_status(run.status)) and status.step > 5)
    wait_for(lambda: services[1].status(second) == "queued")
    for service in services:
        for name in ("server", "supervisor"):
            service.kill(name)
    before = read_status(run.status).step
    wait_for(lambda: read_status(run.status).step > before)
    for service in services:
        service.start()
    wait_for(lambda: newest_step(services[1], first) > before)
    assert jobs.cancel(first).status == "cancelled"
    wait_for(lambda: services[0].store.jobs.get(first).settled)
    wait_for(lambda: services[0].status(second) == "running")
    assert jobs.cancel(second).status == "cancelled"
    wait_for(lambda: services[0].store.jobs.get(second).settled)
    assert run.events.read_text().count('"kind":"start"') == 1
    events = services[0].store.events
    rows = events.list(first, limit=10_000, newest_first=False).rows
    assert [event.number for event in rows] == list(range(1, len(rows) + 1))
    steps = [event.data["step"] for event in rows if event.type == "metrics"]
    assert steps == list(range(1, len(steps) + 1))
    cancelled = next(event for event in rows if event.source == "cancelled")
    started = next(event for event in events.list(second, limit=100).rows if event.source == "started")
    assert started.created_at >= cancelled.created_at  # max_jobs is 1
