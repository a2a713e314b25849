"""Events of a job: numbered without gaps, one per source, however often that source is read."""

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
        """Add an event. Returns None if its source has one already or the job does not exist."""
        event = Event(job_id=job_id, source=source, message=message, level=level, type=type, data=dict(data or {}))
        event.created_at = int(time.time() if created_at is None else created_at)
        return event if self.append_all(job_id, [event], session) else None

    def append_all(self, job_id: str, events: Iterable[Event], session: Session | None = None) -> int:
        """Add the events whose source is new, in this order, in one transaction. Returns their number. Assigns ids and
        numbers."""
        with self._store.begin(session) as tx:
            # The job's row is locked while events are added, so that numbers follow the order of commits.
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
        """Whether the job has an event of type `metrics`."""
        with self._store.read() as tx:
            query = select(Event.id).where(Event.job_id == job_id, Event.type == "metrics").limit(1)
            return tx.scalar(query) is not None

    def list(
        self, job_id: str, after: Event | None = None, limit: int = 20, *, newest_first: bool = True
    ) -> Slice[Event]:
        """Events in the order of their numbers, which never changes, starting after `after`."""
        query = select(Event).where(Event.job_id == job_id)
        if after is not None:
            query = query.where(Event.number < after.number if newest_first else Event.number > after.number)
        query = query.order_by(Event.number.desc() if newest_first else Event.number.asc())
        with self._store.read() as tx:
            rows = list(tx.scalars(query.limit(limit + 1)))
        return Slice(rows[:limit], len(rows) > limit)
