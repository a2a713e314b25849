"""Repeated and concurrent requests: processed once, with one response."""

import asyncio
import json
import threading
import time

import pytest
from starlette.testclient import TestClient

from tests.waiting import LIMIT_S
from tunesmith.serving.app import create_app
from tunesmith.serving.middleware import idempotency
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.jobs import Jobs
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Replay

ROWS = b'{"messages": []}\n' * 20


@pytest.fixture
def store(new_database):
    store = Store(new_database())
    yield store
    store.close()


@pytest.fixture
def client(tmp_path, store) -> TestClient:
    settings = Settings(home=tmp_path / "home", bases={"tiny": tmp_path})
    return TestClient(create_app(settings, store), base_url="http://localhost/v1")


def upload(client) -> str:
    sent = client.post("/files", files={"file": ("a.jsonl", ROWS)}, data={"purpose": "fine-tune"})
    return sent.json()["id"]


def create(client, file: str, key: str, **more):
    body = {"model": "tiny", "training_file": file, **more}
    return client.post("/fine_tuning/jobs", json=body, headers={"Idempotency-Key": key})


def test_a_slow_request_keeps_its_idempotency_key(client, store, monkeypatch):
    monkeypatch.setattr(idempotency, "STALE_S", 2.0)
    started, may_finish, calls = threading.Event(), threading.Event(), []

    @client.app.post("/v1/slow")
    def slow() -> dict[str, bool]:
        calls.append(time.time())
        started.set()
        assert may_finish.wait(300)
        return {"done": True}

    def renewed_at() -> float:
        with store.read() as session:
            return session.query(Replay.created_at).scalar()

    headers = {"Idempotency-Key": "slow"}
    first = threading.Thread(target=client.post, args=("/slow",), kwargs={"headers": headers})
    first.start()
    assert started.wait(300)
    deadline = time.monotonic() + LIMIT_S
    while renewed_at() < calls[0] + 2.5:  # longer than STALE_S
        assert time.monotonic() < deadline, "the first request does not renew its key"
        time.sleep(0.05)
    assert client.post("/slow", headers=headers).status_code == 409
    may_finish.set()
    first.join()
    assert client.post("/slow", headers=headers).json() == {"done": True}
    assert len(calls) == 1


def test_a_response_is_stored_and_audited_before_it_is_sent(client, store, tmp_path):
    """If the process exits right after sending a response, a repeated request still gets it."""
    stored = []

    async def receive():
        return {"type": "http.request", "body": json.dumps(request).encode(), "more_body": False}

    async def send(message):
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            with store.read() as session:
                stored.append(session.query(Replay.status).scalar())
            (log,) = (tmp_path / "home" / "logs").iterdir()
            stored.append(log.read_text().count("/v1/uploads"))

    request = {"bytes": 1, "filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"idempotency-key", b"k")]
    scope = {"type": "http", "method": "POST", "path": "/v1/uploads", "query_string": b"", "headers": headers}
    asyncio.run(client.app({**scope, "client": ("127.0.0.1", 1)}, receive, send))
    assert stored == [200, 1]


def test_an_expired_key_creates_a_new_job(client, store):
    file = upload(client)
    first = create(client, file, "nightly", suffix="monday").json()
    with store.begin() as session:
        session.query(Replay).update({"created_at": 0.0})  # more than a day ago
    second = create(client, file, "nightly", suffix="tuesday").json()
    assert (second["user_provided_suffix"], second["id"] != first["id"]) == ("tuesday", True)
    with store.begin() as session:  # the response was lost, but the job was created
        session.query(Replay).delete()
    assert create(client, file, "nightly", suffix="tuesday").json()["id"] == second["id"]


def test_a_file_is_not_deleted_while_a_job_is_created_with_it(client, store, monkeypatch):
    """One of the two requests fails: there is never a job without its file."""
    file, calls = upload(client), []
    naming_file, results = Jobs.naming_file, []

    def followed_by_create(jobs, *arguments, **keywords):
        ids = naming_file(jobs, *arguments, **keywords)
        if not calls:
            calls.append(ids)
            other = threading.Thread(target=lambda: results.append(create(client, file, "k")))
            other.start()
            other.join(2)  # it has finished, or waits for this transaction to end
            results.append(other)
        return ids

    monkeypatch.setattr(Jobs, "naming_file", followed_by_create)
    deleted = client.delete(f"/files/{file}")
    next(thing for thing in results if isinstance(thing, threading.Thread)).join(60)
    job = next(thing for thing in results if not isinstance(thing, threading.Thread))
    assert (deleted.status_code, job.status_code) in [(200, 400), (400, 200)], (deleted.text, job.text)
