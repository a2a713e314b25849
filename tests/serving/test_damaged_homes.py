"""A database that is locked, full or damaged: requests get an error to retry, jobs wait, the start names the fault."""

import sqlite3
from collections.abc import Iterator

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from tunesmith.errors import InputError
from tunesmith.serving.app import create_app
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.jobs.supervisor import MAX_ERRORS, ClaimedJob, Supervisor
from tunesmith.serving.settings import Settings
from tunesmith.serving.store import store as store_module
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Job

UPLOAD = {"bytes": 5, "filename": "a.jsonl", "mime_type": "text/plain", "purpose": "fine-tune"}
ERROR_KEYS = {"message", "type", "param", "code"}


@pytest.fixture
def configuration(tmp_path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def store(configuration, monkeypatch) -> Iterator[Store]:
    monkeypatch.setattr(store_module, "BUSY_S", 0.2)
    opened = Store(configuration.store_url)
    yield opened
    opened.close()


@pytest.fixture
def client(configuration, store) -> TestClient:
    return TestClient(create_app(configuration, store), base_url="http://localhost")


def locked(configuration: Settings) -> sqlite3.Connection:
    """Another program that holds the write lock; closing it releases the lock."""
    other = sqlite3.connect(configuration.home / "store.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}])
def test_a_locked_database_is_a_503_to_retry(configuration, client, headers):
    other = locked(configuration)
    response = client.post("/v1/uploads", json=UPLOAD, headers=headers)
    assert response.status_code == 503
    assert set(response.json()["error"]) == ERROR_KEYS
    assert response.json()["error"]["code"] == "storage_unavailable"
    assert float(response.headers["retry-after"]) > 0
    assert client.get("/v1/files").status_code == 200  # readers do not wait
    other.close()
    assert client.post("/v1/uploads", json=UPLOAD, headers=headers).status_code == 200


def test_a_full_database_is_named(store, client):
    def limit(connection, _):
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}")

    store.engine.dispose()
    event.listen(store.engine, "connect", limit)
    responses = [client.post("/v1/uploads", json={**UPLOAD, "mime_type": "t" * 250}) for _ in range(40)]
    full = responses[-1]
    assert full.status_code == 507, full.text
    assert set(full.json()["error"]) == ERROR_KEYS
    assert (full.json()["error"]["code"], "disk is full" in full.json()["error"]["message"]) == ("storage_full", True)


def test_a_job_outlasts_a_locked_database(configuration, store):
    facts = {"organization": "o", "model": "m", "base": "m", "seed": 1, "method": {"type": "supervised"}}
    facts |= {"hyperparameters": {}, "training_file": "file-1", "result_files": []}
    store.jobs.create(Job(id="ftjob-1", status="validating_files", created_at=1, **facts))
    supervisor = Supervisor(store, Blobs(configuration.blobs_url), configuration)
    supervisor.tick()
    (claimed,) = supervisor._claimed.values()
    supervisor._pool.shutdown(wait=True)
    store.jobs.update("ftjob-1", status="validating_files", error=None)
    other = locked(configuration)
    with pytest.raises(OperationalError) as raised:
        store.jobs.update("ftjob-1", seed=2)
    other.close()

    class Locked:
        def advance(self, _: Job) -> None:
            raise raised.value

    for _ in range(MAX_ERRORS + 1):  # the lock is released just before the job would be marked as failed
        claimed.stages = Locked()
        supervisor._advance(claimed)
    assert isinstance(claimed, ClaimedJob)
    job = store.jobs.get("ftjob-1")
    assert job is not None
    assert job.status == "validating_files"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"SQLite format 3\0" + b"\xff" * 8192, "database"), (b"no database at all" * 100, "not a database")],
)
def test_a_damaged_database_is_named_at_the_start(configuration, content, message):
    configuration.home.mkdir()
    (configuration.home / "store.sqlite3").write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        Store(configuration.store_url)
    assert "store.sqlite3" in str(raised.value)
    assert "backup" in str(raised.value)


def test_a_locked_database_is_named_at_the_start(configuration, store):
    other = locked(configuration)
    with pytest.raises(InputError, match="locked") as raised:
        Store(configuration.store_url)
    assert "stop the program" in str(raised.value)
    other.close()


def test_a_database_of_a_newer_version_is_named_at_the_start(configuration, store):
    with sqlite3.connect(configuration.home / "store.sqlite3") as newer:
        newer.execute("UPDATE alembic_version SET version_num = 'tables_of_next_year'")
    newer.close()
    with pytest.raises(InputError, match=r"newer version.*tables_of_next_year"):
        Store(configuration.store_url)
