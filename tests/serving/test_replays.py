"""Requests that are sent twice, and others that meet at once: one deed, one answer, nothing half."""

import asyncio
import json
import threading
import time

import pytest
from starlette.testclient import TestClient

from tunesmith.serving.app import create_app
from tunesmith.serving.middleware import idempotency
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.jobs import Jobs
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Replay

ROWS = b'{"messages": []}\n' * 20


@pytest.fixture
def store(new_database):
    made = Store(new_database())
    yield made
    made.close()


@pytest.fixture
def client(tmp_path, store) -> TestClient:
    settings = Settings(home=tmp_path / "home", bases={"tiny": tmp_path})
    return TestClient(create_app(settings, store), base_url="http://localhost/v1")


def upload(client) -> str:
    sent = client.post("/files", files={"file": ("a.jsonl", ROWS)}, data={"purpose": "fine-tune"})
    return sent.json()["id"]


def create(client, file: str, key: str, **more):
    asked = {"model": "tiny", "training_file": file, **more}
    return client.post("/fine_tuning/jobs", json=asked, headers={"Idempotency-Key": key})


def test_a_slow_first_request_is_not_taken_for_a_dead_one(client, store, monkeypatch):
    monkeypatch.setattr(idempotency, "STALE_S", 2.0)
    begun, go_on, deeds = threading.Event(), threading.Event(), []

    @client.app.post("/v1/slow")
    def slow() -> dict[str, bool]:
        deeds.append(time.time())
        begun.set()
        assert go_on.wait(60)
        return {"done": True}

    def told_at() -> float:
        with store.read() as session:
            return session.query(Replay.created_at).scalar()

    headers = {"Idempotency-Key": "slow"}
    first = threading.Thread(target=client.post, args=("/slow",), kwargs={"headers": headers})
    first.start()
    assert begun.wait(60)
    deadline = time.monotonic() + 60
    while told_at() < deeds[0] + 2.5:  # beyond the time after which a process counts as dead
        assert time.monotonic() < deadline, "the first request does not say that it lives"
        time.sleep(0.05)
    assert client.post("/slow", headers=headers).status_code == 409
    go_on.set()
    first.join()
    assert client.post("/slow", headers=headers).json() == {"done": True}
    assert len(deeds) == 1


def test_an_answer_is_kept_and_audited_before_its_client_has_it(client, store, tmp_path):
    """A process that dies right after an answer has not forgotten it; a second request at once finds it."""
    kept = []

    async def receive():
        return {"type": "http.request", "body": json.dumps(asked).encode(), "more_body": False}

    async def send(message):
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            with store.read() as session:
                kept.append(session.query(Replay.status).scalar())
            (log,) = (tmp_path / "home" / "logs").iterdir()
            kept.append(log.read_text().count("/v1/uploads"))

    asked = {"bytes": 1, "filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"idempotency-key", b"k")]
    scope = {"type": "http", "method": "POST", "path": "/v1/uploads", "query_string": b"", "headers": headers}
    asyncio.run(client.app({**scope, "client": ("127.0.0.1", 1)}, receive, send))
    assert kept == [200, 1]


def test_a_key_of_long_ago_makes_no_old_job_of_a_new_request(client, store):
    file = upload(client)
    first = create(client, file, "nightly", suffix="monday").json()
    with store.begin() as session:
        session.query(Replay).update({"created_at": 0.0})  # a day and more ago
    second = create(client, file, "nightly", suffix="tuesday").json()
    assert (second["user_provided_suffix"], second["id"] != first["id"]) == ("tuesday", True)
    with store.begin() as session:  # the answer was lost with its process: the job was not
        session.query(Replay).delete()
    assert create(client, file, "nightly", suffix="tuesday").json()["id"] == second["id"]


def test_a_file_is_not_deleted_under_a_job_that_is_just_made(client, store, monkeypatch):
    """Whichever comes first, the other is told: never a job whose file is gone."""
    file, seen = upload(client), []
    naming_file, made = Jobs.naming_file, []

    def and_then_a_create(jobs, *arguments, **keywords):
        found = naming_file(jobs, *arguments, **keywords)
        if not seen:
            seen.append(found)
            other = threading.Thread(target=lambda: made.append(create(client, file, "k")))
            other.start()
            other.join(2)  # it is done now, or waits for this transaction to end
            made.append(other)
        return found

    monkeypatch.setattr(Jobs, "naming_file", and_then_a_create)
    deleted = client.delete(f"/files/{file}")
    next(thing for thing in made if isinstance(thing, threading.Thread)).join(60)
    job = next(thing for thing in made if not isinstance(thing, threading.Thread))
    assert (deleted.status_code, job.status_code) in [(200, 400), (400, 200)], (deleted.text, job.text)
