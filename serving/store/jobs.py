"""Jobs in the store: created once, moved between states by compare-and-set, processed by one supervisor at a time."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import exists, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tunesmith.serving.store.tables import Job, JobLabel
from tunesmith.serving.store.transactions import Slice, Transactions, changed, lock, take

FINAL = ("succeeded", "failed", "cancelled")
STATES = ("validating_files", "queued", "running", "pausing", "paused", *FINAL)
OCCUPIED = ("running", "pausing")
"""States in which a job counts against `max_jobs`."""


class Jobs:
    def __init__(self, store: Transactions):
        self._store = store

    def create(self, job: Job, session: Session | None = None) -> tuple[Job, bool]:
        """Add a job; returns (job, True). If its organization used the same `idempotency` before: (that job, False)."""
        try:
            with self._store.begin(session) as tx, tx.begin_nested():
                if job.idempotency and (earlier := self._same(tx, job)):
                    return earlier, False
                tx.add(job)
                tx.flush()
                tx.add_all(JobLabel(job_id=job.id, key=key, value=value) for key, value in (job.labels or {}).items())
        except IntegrityError:
            with self._store.read(session) as tx:
                if earlier := self._same(tx, job):
                    return earlier, False
            raise
        return job, True

    def get(self, id: str, organization: str | None = None, session: Session | None = None) -> Job | None:
        """Return a job; None if it does not exist or belongs to another organization."""
        with self._store.read(session) as tx:
            query = select(Job).where(Job.id == id).execution_options(populate_existing=True)
            return tx.scalar(query if organization is None else query.where(Job.organization == organization))

    def list(
        self,
        organization: str | None,
        after: Job | None = None,
        limit: int = 20,
        *,
        labels: dict[str, str] | None = None,
        unlabelled: bool = False,
    ) -> Slice[Job]:
        """Jobs, newest first. labels: pairs that a job must all have. unlabelled: only jobs without metadata."""
        query = select(Job)
        if organization is not None:
            query = query.where(Job.organization == organization)
        for key, value in (labels or {}).items():
            pair = exists().where(JobLabel.job_id == Job.id, JobLabel.key == key, JobLabel.value == value)
            query = query.where(pair)
        if unlabelled:
            query = query.where(~exists().where(JobLabel.job_id == Job.id))
        with self._store.read() as tx:
            return take(tx, query, Job, after, limit, newest_first=True)

    def transition(
        self,
        id: str,
        from_states: Sequence[str],
        to_state: str,
        *,
        owner: str | None = None,
        session: Session | None = None,
        **fields: Any,
    ) -> Job | None:
        """Move a job to another state if it is in one of `from_states` (and `owner` still holds its claim).

        Returns the updated job, or None if it was in another state and nothing was changed.
        """
        return self._change(id, from_states, owner, session, {**fields, "status": to_state})

    def update(self, id: str, *, owner: str | None = None, session: Session | None = None, **fields: Any) -> Job | None:
        """Change fields but not the state. Returns None if the job does not exist or `owner` lost its claim."""
        return self._change(id, None, owner, session, fields)

    def claim_next(self, owner: str, lease_s: float, max_running: int) -> Job | None:
        """Claim an unclaimed, unsettled job for `owner`, for `lease_s` seconds.

        Jobs in progress come first (their supervisor exited). Queued jobs are claimed only while fewer than
        `max_running` occupy a slot: running, pausing, or queued and claimed by a supervisor that is starting them.
        Otherwise in order of creation.
        """
        now = time.time()
        free = or_(Job.claim_until.is_(None), Job.claim_until <= now)
        with self._store.begin() as tx:
            lock(tx, "claims")
            held = (Job.status == "queued") & (Job.claim_until > now)
            occupied = tx.scalar(select(func.count()).select_from(Job).where(or_(Job.status.in_(OCCUPIED), held)))
            query = select(Job).where(Job.settled.is_(False), free)
            if int(occupied or 0) >= max_running:
                query = query.where(Job.status != "queued")
            job = tx.scalar(query.order_by(Job.status == "queued", Job.created_at, Job.sequence).limit(1))
            if job is not None:
                job.claim_owner, job.claim_until = owner, now + lease_s
        return job

    def renew(self, id: str, owner: str, lease_s: float) -> Job | None:
        """Extend a claim; returns the current job. None if another owner holds it: stop working on it."""
        return self._change(id, None, owner, None, {"claim_until": time.time() + lease_s})

    def release(self, id: str, owner: str) -> None:
        """Give up a claim, so that another supervisor can take the job."""
        self._change(id, None, owner, None, {"claim_until": None, "claim_owner": None})

    def claimed(self) -> Sequence[Job]:
        """Unsettled jobs with a claim, including claims whose owner has exited."""
        with self._store.read() as tx:
            return tx.scalars(select(Job).where(Job.settled.is_(False), Job.claim_owner.is_not(None))).all()

    def count_by_state(self) -> dict[str, int]:
        """The number of jobs of all organizations in each state."""
        with self._store.read() as tx:
            counted = tx.execute(select(Job.status, func.count()).group_by(Job.status)).all()
        return {**dict.fromkeys(STATES, 0), **{str(state): int(number) for state, number in counted}}

    def naming_file(self, file_id: str, session: Session | None = None) -> Sequence[str]:
        """Ids of unfinished jobs that use this file."""
        with self._store.read(session) as tx:
            named = or_(Job.training_file == file_id, Job.validation_file == file_id)
            return tx.scalars(select(Job.id).where(named, Job.status.not_in(FINAL))).all()

    def stacked_on(self, model: str, session: Session | None = None) -> Sequence[str]:
        """Ids of unfinished jobs that continue from this tuned model or one of its checkpoints."""
        with self._store.read(session) as tx:
            named = or_(Job.stacked_on == model, Job.stacked_on.startswith(f"{model}:", autoescape=True))
            return tx.scalars(select(Job.id).where(named, Job.status.not_in(FINAL))).all()

    def _change(
        self,
        id: str,
        from_states: Sequence[str] | None,
        owner: str | None,
        session: Session | None,
        fields: Mapping[str, object],
    ) -> Job | None:
        change = update(Job).where(Job.id == id).execution_options(synchronize_session=False)
        if from_states is not None:
            change = change.where(Job.status.in_(from_states))
        if owner is not None:
            change = change.where(Job.claim_owner == owner)
        with self._store.begin(session) as tx:
            if changed(tx, change.values(**fields)) != 1:
                return None
            return tx.scalar(select(Job).where(Job.id == id).execution_options(populate_existing=True))

    def _same(self, tx: Session, job: Job) -> Job | None:
        same = select(Job).where(Job.organization == job.organization, Job.idempotency == job.idempotency)
        return tx.scalar(same)
