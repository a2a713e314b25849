"""/metrics: what it counts, and who may read it."""

import asyncio
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from tunesmith.inference.types import Chunk, Sampling, Target
from tunesmith.serving.app import create_app
from tunesmith.serving.engine.protocol import EngineUnavailable
from tunesmith.serving.errors import ApiError
from tunesmith.serving.metrics import Metrics
from tunesmith.serving.names import make_id
from tunesmith.serving.routes.generation import Inference, generate_all
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.keys import METRICS, SCOPES
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Job


@pytest.fixture
def server(tmp_path):
    settings = Settings(home=tmp_path, max_jobs=3)
    store = Store(settings.store_url)
    yield TestClient(create_app(settings, store), base_url="http://localhost"), store
    store.close()


def values_of(text: str) -> dict[tuple[str, ...], float]:
    """The samples by (name, values of the labels)."""
    families = text_string_to_metric_families(text)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def add_job(store: Store, status: str) -> None:
    job = Job(id=make_id("ftjob-"), organization="other", created_at=int(time.time()), model="m", base="m", seed=1)
    job.method, job.hyperparameters, job.training_file = {"type": "supervised"}, {}, "file-1"
    job.status, job.result_files, job.settled, job.details = status, [], False, {}
    store.jobs.create(job)


def test_requests_are_counted_by_route_and_status(server):
    client, _ = server
    for path in ("/v1/files", "/v1/files", "/v1/files/file-a", "/v1/files/file-b", "/nothing"):
        client.get(path)
    values = values_of(client.get("/metrics").text)
    requests = {key[1:]: value for key, value in values.items() if key[0] == "tunesmith_http_requests_total"}
    assert requests == {
        ("GET", "/v1/files", "200"): 2,
        ("GET", "/v1/files/{file_id}", "404"): 2,
        ("GET", "unmatched", "404"): 1,
    }
    assert values["tunesmith_http_request_duration_seconds_count", "/v1/files"] == 2


def test_jobs_are_those_of_the_store_in_every_state(server):
    client, store = server
    for status in ("queued", "queued", "running", "succeeded"):
        add_job(store, status)
    values = values_of(client.get("/metrics").text)
    jobs = {key[1]: value for key, value in values.items() if key[0] == "tunesmith_jobs"}
    assert jobs == {
        "validating_files": 0,
        "queued": 2,
        "running": 1,
        "pausing": 0,
        "paused": 0,
        "succeeded": 1,
        "failed": 0,
        "cancelled": 0,
    }
    assert values["tunesmith_job_places",] == 3
    assert values["tunesmith_engine_up",] == 0


def test_only_keys_with_the_scope_may_read_them(server):
    client, store = server
    assert client.get("/metrics", headers={"host": "elsewhere.example"}).status_code == 403
    usual, _ = store.keys.create("usual", "local")
    scraper, _ = store.keys.create("prometheus", "local", [METRICS])
    assert METRICS not in SCOPES
    statuses = {}
    for name, key in (("none", ""), ("usual", usual), ("scraper", scraper)):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        statuses[name] = client.get("/metrics", headers=headers).status_code
    assert statuses == {"none": 401, "usual": 403, "scraper": 200}
    assert client.get("/v1/files", headers={"authorization": f"Bearer {scraper}"}).status_code == 403


class _Engine:
    """An engine that streams three tokens and then fails if the prompt has one token."""

    is_running = True

    async def generate(self, target, prompt, sampling, caller=""):
        for number in range(1, 4):
            yield Chunk(text="a", completion_tokens=number)
        if len(prompt) == 1:
            raise EngineUnavailable("gone")


def test_tokens_are_counted_also_if_the_engine_fails(tmp_path):
    metrics, sampling = Metrics(), Sampling(max_new_tokens=3, temperature=1.0, top_p=1.0)
    inference = Inference(_Engine(), Target(tmp_path), "", 10.0, 1.0, metrics)  # pyright: ignore[reportArgumentType]

    async def generate(*prompts: list[int]) -> None:
        async for _ in generate_all(inference, [(prompt, sampling) for prompt in prompts]):
            pass

    asyncio.run(generate([1, 2], [1, 2, 3]))
    with pytest.raises(ApiError, match="gone"):
        asyncio.run(generate([1]))
    settings = Settings(home=tmp_path)
    store = Store(settings.store_url)
    values = values_of(metrics.text(store, settings, inference.engine).decode())
    store.close()
    assert values["tunesmith_generated_tokens_total",] == 9
    assert values["tunesmith_prompt_tokens_total",] == 6
    assert values["tunesmith_generations",] == 0
    assert values["tunesmith_engine_up",] == 1
