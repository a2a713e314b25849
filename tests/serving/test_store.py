"""The store on both databases: processes that share it neither double nor lose anything."""

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tunesmith.serving.names import make_id
from tunesmith.serving.store.jobs import FINAL
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Event, Job, Permission, Table


@pytest.fixture
def url(new_database):
    return new_database()


@pytest.fixture
def store(url):
    made = Store(url)
    yield made
    made.close()


def a_job(**fields) -> Job:
    given = {"id": make_id("ftjob-"), "organization": "o", "created_at": int(time.time()), "model": "m", "base": "m"}
    given |= {"seed": 1, "method": {}, "hyperparameters": {}, "training_file": "file-1", "result_files": []}
    return Job(**{**given, "status": "queued", **fields})


def at_once(work, url, num=4):
    """What `work(url, number)` gives in as many processes, all of them begun together."""
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


def test_the_migrations_make_the_tables_of_the_code(store):
    with store.engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_processes_open_a_new_database_at_once(url):
    assert at_once(open_store, url) == [0, 0, 0, 0]


def test_no_job_is_claimed_twice(url, store):
    made = [store.jobs.create(a_job())[0].id for _ in range(30)]
    claimed = [id for mine in at_once(claim_all, url) for id in mine]
    assert sorted(claimed) == sorted(made)


def test_events_of_one_source_are_one_event_and_numbers_have_no_gaps(url, store):
    job, _ = store.jobs.create(a_job())
    assert sum(at_once(add_events, url)) == 50
    rows, after = [], None
    while True:
        found = store.events.list(job.id, after, limit=7)
        rows += found.rows
        after = rows[-1]
        if not found.has_more:
            break
    assert [row.number for row in rows] == list(range(50, 0, -1))
    assert {row.source for row in rows} == {f"step:{number}" for number in range(50)}


def test_a_claim_lapses_is_renewed_and_is_given_up(store):
    job, _ = store.jobs.create(a_job())
    assert store.jobs.claim_next("a", 0.3, 1).id == job.id
    assert store.jobs.claim_next("b", 60, 1) is None
    assert store.jobs.renew(job.id, "b", 60) is None
    time.sleep(0.35)
    assert store.jobs.claim_next("b", 60, 1).id == job.id
    assert store.jobs.renew(job.id, "a", 60) is None
    assert store.jobs.transition(job.id, ("queued",), "running", owner="a") is None
    store.jobs.release(job.id, "b")
    assert store.jobs.claim_next("a", 60, 1).id == job.id


def test_the_cap_holds_back_queued_jobs_only(store):
    first, second = (store.jobs.create(a_job())[0] for _ in range(2))
    fresh, _ = store.jobs.create(a_job(status="validating_files"))
    assert store.jobs.claim_next("a", 60, 1).id == fresh.id
    assert store.jobs.claim_next("a", 60, 1).id == first.id
    assert store.jobs.claim_next("a", 60, 1) is None
    store.jobs.transition(first.id, ("queued",), "running")
    assert store.jobs.claim_next("a", 60, 1) is None
    assert store.jobs.claim_next("a", 60, 2).id == second.id


def test_states_change_only_from_where_they_may(store):
    job, _ = store.jobs.create(a_job())
    assert store.jobs.transition(job.id, ("running",), "pausing") is None
    assert store.jobs.transition(job.id, ("queued",), "cancelled", finished_at=5).finished_at == 5
    assert store.jobs.transition(job.id, ("queued", "running"), "running") is None
    assert store.jobs.get(job.id).status in FINAL


def test_a_transaction_that_fails_leaves_nothing(store):
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


def test_an_idempotency_key_makes_one_job(store):
    first, is_new = store.jobs.create(a_job(idempotency="k"))
    again, is_new_again = store.jobs.create(a_job(idempotency="k"))
    assert (first.id, is_new, is_new_again) == (again.id, True, False)
    assert store.jobs.create(a_job(idempotency="k", organization="p"))[1]


def test_a_permission_that_two_give_at_once_is_one(store):
    together = threading.Barrier(4)

    def give(number):
        given = []
        for project in range(40):
            row = Permission(id=make_id("cp_"), organization="o", created_at=number)
            row.checkpoint, row.project_id = "ft:m:o::12345678:ckpt-step-1", f"proj_{project}"
            together.wait(30)
            given.append(store.permissions.add(row).id)
        return given

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(give, range(4))
    assert others == [first] * 3


def test_reading_waits_for_no_writers_however_many(store):
    locked, begun, may_end = threading.Event(), threading.Semaphore(0), threading.Event()

    def write(number):
        begun.release()
        with store.begin() as session:
            session.add(a_job())
            session.flush()
            if number == 0:
                locked.set()
                assert may_end.wait(60)

    with ThreadPoolExecutor(33) as pool:
        writing = [pool.submit(write, 0)]
        assert locked.wait(60)
        writing += [pool.submit(write, number) for number in range(1, 32)]
        for _ in writing:
            assert begun.acquire(timeout=60)
        try:
            assert pool.submit(store.keys.any_ever).result(20) is False
        finally:
            may_end.set()
        for written in writing:
            written.result(60)
