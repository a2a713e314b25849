"""The middleware stack, from the outermost: metrics, audit log, authentication and rate limits, body limits,
idempotency."""

from fastapi import FastAPI

from tunesmith.serving.metrics import Metrics
from tunesmith.serving.middleware.audit import Audit, AuditLog
from tunesmith.serving.middleware.authentication import Authentication
from tunesmith.serving.middleware.body_limits import BodyLimits
from tunesmith.serving.middleware.count_requests import CountRequests
from tunesmith.serving.middleware.idempotency import Idempotency
from tunesmith.serving.middleware.rate_limits import RateLimits
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store


def install(app: FastAPI, settings: Settings, store: Store, metrics: Metrics) -> None:
    """Add the middleware to the app."""
    # the last one added is the outermost
    app.add_middleware(Idempotency, store=store)
    app.add_middleware(BodyLimits, limits=settings.limits)
    app.add_middleware(
        Authentication, settings=settings, store=store, rates=RateLimits(settings.limits.requests_per_minute)
    )
    app.add_middleware(Audit, log=AuditLog(settings.logs))
    app.add_middleware(CountRequests, metrics=metrics)
