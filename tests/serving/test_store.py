"""The store on both databases: concurrent processes neither duplicate nor lose anything."""

import multiprocessing
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tests.waiting import wait_for
from tunesmith.serving.names import make_id
from tunesmith.serving.store.jobs import FINAL
from tunesmith.serving.store.migrate import MIGRATIONS, NEWEST
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Event, Job, Permission, Table


@pytest.fixture
def url(new_database):
    return new_database()


@pytest.fixture
def store(url):
    store = Store(url)
    yield store
    store.close()


def a_job(**fields) -> Job:
    defaults = {"id": make_id("ftjob-"), "organization": "o", "created_at": int(time.time()), "model": "m", "base": "m"}
    defaults |= {"seed": 1, "method": {}, "hyperparameters": {}, "training_file": "file-1", "result_files": []}
    return Job(**{**defaults, "status": "queued", **fields})


def at_once(work, url, num=4):
    """Results of `work(url, number)` in `num` concurrent processes."""
    with multiprocessing.get_context("spawn").Pool(num) as pool:
        return pool.starmap(work, [(url, number) for number in range(num)])


def open_store(url, _):
    store = Store(url)
    with store.read() as session:
        count = session.query(Job).count()
    store.close()
    return count


def claim_all(url, number):
    store, mine = Store(url), []
    while (job := store.jobs.claim_next(f"owner{number}", 60, 1000)) is not None:
        mine.append(job.id)
    store.close()
    return mine


def add_events(url, _):
    store = Store(url)
    with store.read() as session:
        job_id = session.query(Job.id).scalar()
    added = 0
    for number in range(25):
        events = [
            Event(source=f"step:{number * 2 + n}", message="m", level="info", type="message", data={}, created_at=1)
            for n in range(2)
        ]
        added += store.events.append_all(job_id, events)
    store.close()
    return added


def test_newest_revision_is_known_without_alembic(store):
    """Only the first process of a database loads the migrations."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [NEWEST]
    code = "import sys; from tunesmith.serving.store.store import Store; Store(sys.argv[1]); print(*sys.modules)"
    command = [sys.executable, "-c", code, store.url]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "sqlalchemy" in loaded
    assert "alembic" not in loaded


def test_migrations_match_the_tables(store):
    with store.engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_processes_can_create_the_database_concurrently(url):
    assert at_once(open_store, url) == [0, 0, 0, 0]


def test_no_job_is_claimed_twice(url, store):
    created = [store.jobs.create(a_job())[0].id for _ in range(30)]
    claimed = [id for mine in at_once(claim_all, url) for id in mine]
    assert sorted(claimed) == sorted(created)


def test_events_are_unique_and_numbered_without_gaps(url, store):
    job, _ = store.jobs.create(a_job())
    assert sum(at_once(add_events, url)) == 50
    rows, after = [], None
    while True:
        page = store.events.list(job.id, after, limit=7)
        rows += page.rows
        after = rows[-1]
        if not page.has_more:
            break
    assert [row.number for row in rows] == list(range(50, 0, -1))
    assert {row.source for row in rows} == {f"step:{number}" for number in range(50)}


def test_claims_expire_and_can_be_renewed_and_released(store):
    job, _ = store.jobs.create(a_job())
    assert store.jobs.claim_next("a", 60, 1).id == job.id
    assert store.jobs.claim_next("b", 60, 1) is None
    assert store.jobs.renew(job.id, "b", 60) is None
    assert store.jobs.renew(job.id, "a", 0.3) is not None
    assert wait_for(lambda: store.jobs.claim_next("b", 60, 1)).id == job.id
    assert store.jobs.renew(job.id, "a", 60) is None
    assert store.jobs.transition(job.id, ("queued",), "running", owner="a") is None
    store.jobs.release(job.id, "b")
    assert store.jobs.claim_next("a", 60, 1).id == job.id


def test_max_running_limits_only_queued_jobs(store):
    first, second = (store.jobs.create(a_job())[0] for _ in range(2))
    fresh, _ = store.jobs.create(a_job(status="validating_files"))
    assert store.jobs.claim_next("a", 60, 1).id == fresh.id
    assert store.jobs.claim_next("a", 60, 1).id == first.id
    assert store.jobs.claim_next("a", 60, 1) is None
    store.jobs.transition(first.id, ("queued",), "running")
    assert store.jobs.claim_next("a", 60, 1) is None
    assert store.jobs.claim_next("a", 60, 2).id == second.id


def test_transitions_require_an_expected_state(store):
    job, _ = store.jobs.create(a_job())
    assert store.jobs.transition(job.id, ("running",), "pausing") is None
    assert store.jobs.transition(job.id, ("queued",), "cancelled", finished_at=5).finished_at == 5
    assert store.jobs.transition(job.id, ("queued", "running"), "running") is None
    assert store.jobs.get(job.id).status in FINAL


def test_a_failed_transaction_is_rolled_back(store):
    job, _ = store.jobs.create(a_job())

    def fail():
        with store.begin() as session:
            store.jobs.transition(job.id, ("queued",), "running", session=session)
            store.events.append(job.id, "run", "it runs", session=session)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.jobs.get(job.id).status == "queued"
    assert store.events.list(job.id).rows == []


def test_jobs_are_found_by_metadata(store):
    odd = "a\"b.c'$["
    one = store.jobs.create(a_job(labels={"team": "x", odd: "1"}))[0]
    two = store.jobs.create(a_job(labels={"team": "x"}))[0]
    bare = store.jobs.create(a_job())[0]
    assert [job.id for job in store.jobs.list("o", labels={"team": "x"}).rows] == [two.id, one.id]
    assert [job.id for job in store.jobs.list("o", labels={"team": "x", odd: "1"}).rows] == [one.id]
    assert [job.id for job in store.jobs.list("o", unlabelled=True).rows] == [bare.id]
    assert store.jobs.list("p").rows == []


def test_an_idempotency_key_creates_one_job(store):
    first, is_new = store.jobs.create(a_job(idempotency="k"))
    again, is_new_again = store.jobs.create(a_job(idempotency="k"))
    assert (first.id, is_new, is_new_again) == (again.id, True, False)
    assert store.jobs.create(a_job(idempotency="k", organization="p"))[1]


def test_concurrent_permissions_are_not_duplicated(store):
    together = threading.Barrier(4)

    def add(number):
        ids = []
        for project in range(40):
            row = Permission(id=make_id("cp_"), organization="o", created_at=number)
            row.checkpoint, row.project_id = "ft:m:o::12345678:ckpt-step-1", f"proj_{project}"
            together.wait(300)
            ids.append(store.permissions.add(row).id)
        return ids

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(add, range(4))
    assert others == [first] * 3


def test_readers_do_not_wait_for_writers(store):
    locked, started, may_end = threading.Event(), threading.Semaphore(0), threading.Event()

    def write(number):
        started.release()
        with store.begin() as session:
            session.add(a_job())
            session.flush()
            if number == 0:
                locked.set()
                assert may_end.wait(300)

    with ThreadPoolExecutor(33) as pool:
        writing = [pool.submit(write, 0)]
        assert locked.wait(300)
        writing += [pool.submit(write, number) for number in range(1, 32)]
        for _ in writing:
            assert started.acquire(timeout=300)
        try:
            assert pool.submit(store.keys.any_ever).result(20) is False
        finally:
            may_end.set()
        for written in writing:
            written.result(60)
