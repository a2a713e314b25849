"""What the server measures about itself, for Prometheus: requests, generations, jobs and the inference engine."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tunesmith import __version__
from tunesmith.serving.engine.protocol import Engine
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store

SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The registry of one server. Requests and tokens are those of this process since its start; jobs are those of the
    store, which several servers may share."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("tunesmith_http_requests", "Requests that were answered.", labels, registry=registry)
        self._seconds = Histogram(
            *("tunesmith_http_request_duration_seconds", "Time until the complete response.", ("route",)),
            buckets=SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "tunesmith_prompt_tokens", "Tokens of prompts that were generated from.", registry=registry
        )
        self.generated_tokens = Counter("tunesmith_generated_tokens", "Tokens that were generated.", registry=registry)
        self.generations = Gauge(
            "tunesmith_generations", "Generations in progress or in the engine's queue.", registry=registry
        )
        self._places = Gauge(
            "tunesmith_generation_places", "Generations that run at once; more are queued.", registry=registry
        )
        self._jobs = Gauge("tunesmith_jobs", "Fine-tuning jobs by status.", ("status",), registry=registry)
        self._job_places = Gauge("tunesmith_job_places", "Jobs that train at once; more are queued.", registry=registry)
        self._engine = Gauge(
            "tunesmith_engine_up", "Whether a process of the inference engine runs.", registry=registry
        )
        build = Gauge("tunesmith_build_info", "The version of the server.", ("version",), registry=registry)
        build.labels(__version__).set(1)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. route: its path with placeholders, so that the number of series is bounded."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self, store: Store, settings: Settings, engine: Engine | None) -> bytes:
        """All values in the text format of Prometheus. Reads the jobs from the store."""
        for status, number in store.jobs.count_by_state().items():
            self._jobs.labels(status).set(number)
        self._job_places.set(settings.max_jobs)
        self._places.set(settings.limits.max_concurrent_generations)
        self._engine.set(engine is not None and engine.is_running)
        return generate_latest(self._registry)
