"""What every request passes before a route sees it, from outside to inside: the audit log, the caller's key and rate,
the body's limits, the memory for requests that are sent twice."""

from fastapi import FastAPI

from tunesmith.serving.gate.audit import Audit, AuditLog
from tunesmith.serving.gate.bodies import Bodies
from tunesmith.serving.gate.callers import Callers
from tunesmith.serving.gate.rates import Rates
from tunesmith.serving.gate.replay import Replays
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store


def install(app: FastAPI, settings: Settings, store: Store) -> None:
    # the last one added is the outermost
    app.add_middleware(Replays, store=store)
    app.add_middleware(Bodies, limits=settings.limits)
    app.add_middleware(Callers, settings=settings, store=store, rates=Rates(settings.limits.requests_per_minute))
    app.add_middleware(Audit, log=AuditLog(settings.logs))
