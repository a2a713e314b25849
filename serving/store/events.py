"""A job's events: numbered without gaps, each made of its source once, however often that is read."""

import time
from collections.abc import Iterable, Mapping

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tunesmith.serving.names import make_id
from tunesmith.serving.store.tables import Event, Job
from tunesmith.serving.store.transactions import Slice, Transactions


class Events:
    def __init__(self, store: Transactions):
        self._store = store

    def append(
        self,
        job_id: str,
        source: str,
        message: str,
        *,
        level: str = "info",
        type: str = "message",
        data: Mapping[str, float] | None = None,
        created_at: float | None = None,
        session: Session | None = None,
    ) -> Event | None:
        """Add an event; None where there is one of this source already, or the job is gone."""
        event = Event(job_id=job_id, source=source, message=message, level=level, type=type, data=dict(data or {}))
        event.created_at = int(time.time() if created_at is None else created_at)
        return event if self.append_all(job_id, [event], session) else None

    def append_all(self, job_id: str, events: Iterable[Event], session: Session | None = None) -> int:
        """Add those whose source is new, in this order, in one transaction. Returns how many. Ids and numbers are
        given here."""
        with self._store.begin(session) as tx:
            # Whoever adds to a job's events holds the job's row: numbers are given in the order of the commits.
            if tx.scalar(select(Job.id).where(Job.id == job_id).with_for_update()) is None:
                return 0
            new = {event.source: event for event in reversed(list(events))}
            ordered = list(reversed(new.values()))
            known = set(tx.scalars(select(Event.source).where(Event.job_id == job_id, Event.source.in_(list(new)))))
            last = tx.scalar(select(func.max(Event.number)).where(Event.job_id == job_id)) or 0
            added = [event for event in ordered if event.source not in known]
            for number, event in enumerate(added, last + 1):
                event.id, event.job_id, event.number = make_id("ftevent-"), job_id, number
            tx.add_all(added)
        return len(added)

    def get(self, id: str, job_id: str) -> Event | None:
        with self._store.read() as tx:
            return tx.scalar(select(Event).where(Event.id == id, Event.job_id == job_id))

    def any_metrics(self, job_id: str) -> bool:
        """Whether a step of the job was told of."""
        with self._store.read() as tx:
            found = select(Event.id).where(Event.job_id == job_id, Event.type == "metrics").limit(1)
            return tx.scalar(found) is not None

    def list(
        self, job_id: str, after: Event | None = None, limit: int = 20, *, newest_first: bool = True
    ) -> Slice[Event]:
        """In the order of their numbers, which never changes; behind `after`."""
        query = select(Event).where(Event.job_id == job_id)
        if after is not None:
            behind = Event.number < after.number if newest_first else Event.number > after.number
            query = query.where(behind)
        query = query.order_by(Event.number.desc() if newest_first else Event.number.asc())
        with self._store.read() as tx:
            rows = list(tx.scalars(query.limit(limit + 1)))
        return Slice(rows[:limit], len(rows) > limit)
