"""With one injected fault at a time, exactly the right checks fail."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from running import Fault, Proxy, Request, Response, proxied, run_cli

from tunesmith.serving.conformance import suite
from tunesmith.serving.conformance.bench import FINAL, Bench
from tunesmith.serving.conformance.check import Finding
from tunesmith.serving.conformance.rows import chat_rows

JOB, JOBS = r"/v1/fine_tuning/jobs/[^/]+", "/v1/fine_tuning/jobs"
EVENTS, FILES, FILE, CHAT = f"{JOB}/events", "/v1/files", "/v1/files/[^/]+", "/v1/chat/completions"


def json_of(change: Callable[[Any], Any]) -> Callable[[Response], None]:
    """change: modifies the parsed response in place, or returns another. Errors are left unchanged."""

    def apply(response: Response) -> None:
        if response.status < 400:
            parsed = json.loads(response.body)
            replacement = change(parsed)
            response.body = json.dumps(parsed if replacement is None else replacement).encode()

    return apply


def errors_of(change: Callable[[Response], None]) -> Callable[[Response], None]:
    def apply(response: Response) -> None:
        if response.status >= 400:
            change(response)

    return apply


def framework_error(response: Response) -> None:
    response.status, response.body = 422, json.dumps({"detail": [{"loc": ["body"], "msg": "wrong"}]}).encode()


def bare_error(response: Response) -> None:
    response.body = json.dumps({"error": json.loads(response.body)["error"]["message"]}).encode()


def conflict(response: Response) -> None:
    response.status = 409


def without_chunk(is_dropped: Callable[[str], bool]) -> Callable[[Response], None]:
    def apply(response: Response) -> None:
        events = [event for event in response.body.decode().split("\n\n") if event]
        response.body = "".join(f"{event}\n\n" for event in events if not is_dropped(event)).encode()

    return apply


def is_usage(event: str) -> bool:
    return '"choices":[]' in event.replace(" ", "")


def is_done(event: str) -> bool:
    return event.strip() == "data: [DONE]"


def without(*names: str) -> Callable[[Request], None]:
    """Remove these parameters from the request body."""

    def apply(request: Request) -> None:
        body = json.loads(request.body)
        request.body = json.dumps({key: value for key, value in body.items() if key not in names}).encode()

    return apply


def without_header(name: str) -> Callable[[Request], None]:
    def apply(request: Request) -> None:
        request.headers.pop(name, None)

    return apply


def without_query(name: str) -> Callable[[Request], None]:
    def apply(request: Request) -> None:
        parts = [part for part in request.query.split(b"&") if not part.startswith(name.encode())]
        request.query = b"&".join(parts)

    return apply


def fake_success(body: dict[str, Any]) -> Callable[[Request], None]:
    def apply(request: Request) -> None:
        content = json.dumps({**body, "id": request.path.rsplit("/", 1)[-1]}).encode()
        request.response = Response(200, [(b"content-type", b"application/json")], content)

    return apply


def auto_again(job: dict[str, Any]) -> None:
    job["hyperparameters"] = dict.fromkeys(job["hyperparameters"], "auto")


def no_seed(job: dict[str, Any]) -> None:
    del job["seed"]


def off_by_one(job: dict[str, Any]) -> None:
    if job["error"]:
        job["error"]["message"] = job["error"]["message"].replace("Example 7", "Example 6")


def other_code(job: dict[str, Any]) -> None:
    if job["error"]:
        job["error"]["code"] = "bad_file"


def oldest_first(page: dict[str, Any]) -> None:
    page["data"].reverse()


def never_more(page: dict[str, Any]) -> None:
    page["has_more"] = False


def always_more(page: dict[str, Any]) -> None:
    page["has_more"] = True


def one_event_lost(page: dict[str, Any]) -> None:
    if len(page["data"]) == 7:
        del page["data"][3]


def text_time(file: dict[str, Any]) -> None:
    file["created_at"] = str(file["created_at"])


def slash_in_name(job: dict[str, Any]) -> None:
    if job["fine_tuned_model"]:
        job["fine_tuned_model"] = job["fine_tuned_model"].replace("--", "/")


def other_header(response: Response) -> None:
    response.body = response.body.replace(b"train_accuracy", b"train_mean_token_accuracy", 1)


def cut_short(response: Response) -> None:
    response.body = response.body[:-1]


def first_choice(response: dict[str, Any]) -> None:
    del response["choices"][1:]


def no_usage(response: dict[str, Any]) -> None:
    response["usage"] = None


FAULTS: dict[str, tuple[Fault, set[str], set[str]]] = {
    # description: (fault, checks that must fail, checks that must still hold)
    "default 422 of the framework": (
        Fault("POST", f"{JOBS}|{CHAT}", errors_of(framework_error)),
        {"errors: wrong types", "errors: missing", "errors: no JSON"},
        {"errors: unknown path", "errors: query"},
    ),
    "error is a string": (
        Fault("GET", "/v1/no/such/thing", errors_of(bare_error)),
        {"errors: unknown path"},
        {"errors: wrong method", "errors: query"},
    ),
    "409 instead of 400": (
        Fault("POST", f"{JOB}/(cancel|pause|resume)", errors_of(conflict)),
        {"jobs: final states", "jobs: failed"},
        {"jobs: cancel"},
    ),
    "events oldest first": (
        Fault("GET", EVENTS, json_of(oldest_first)),
        {"events: newest first", "events: pages"},
        {"events: object"},
    ),
    "has_more is never true": (
        Fault("GET", EVENTS, json_of(never_more)),
        {"events: pages"},
        {"events: newest first"},
    ),
    "has_more is always true": (Fault("GET", EVENTS, json_of(always_more)), {"events: pages"}, {"events: object"}),
    "after is ignored": (
        Fault("GET", EVENTS, request=without_query("after")),
        {"events: pages", "events: newest first"},
        {"checkpoints: object"},
    ),
    "an event is missing": (
        Fault("GET", EVENTS, json_of(one_event_lost)),
        {"events: pages"},
        {"events: object"},
    ),
    "limit is ignored": (
        Fault("GET", FILES, request=without_query("limit")),
        {"files: pages"},
        {"files: purpose"},
    ),
    "seed is missing": (
        Fault("POST", JOBS, json_of(no_seed)),
        {"create: job object", "create: seed"},
        {"create: suffix"},
    ),
    "auto is not replaced": (Fault("GET", JOB, json_of(auto_again)), {"create: auto"}, {"create: metadata"}),
    "wrong example number": (
        Fault("GET", JOB, json_of(off_by_one)),
        {"bad files: role", "bad files: weight"},
        {"bad files: nine examples"},
    ),
    "wrong error code for an invalid file": (
        Fault("GET", JOB, json_of(other_code)),
        {"bad files: nine examples", "bad files: wrong kind"},
        {"bad files: ten examples"},
    ),
    "the idempotency key is ignored": (
        Fault("POST", JOBS, request=without_header("idempotency-key")),
        {"jobs: idempotency"},
        {"jobs: cancel"},
    ),
    "times are strings": (Fault("POST", FILES, json_of(text_time)), {"files: object"}, {"files: content"}),
    "a file is truncated": (Fault("GET", f"{FILE}/content", cut_short), {"files: content"}, {"files: object"}),
    "a file is not deleted": (
        Fault("DELETE", FILE, request=fake_success({"object": "file", "deleted": True})),
        {"files: delete"},
        {"files: object"},
    ),
    "a slash in a model name": (
        Fault("GET", JOB, json_of(slash_in_name)),
        {"models: tuned name"},
        {"jobs: succeeded"},
    ),
    "wrong header of the result file": (
        Fault("GET", f"{FILE}/content", other_header),
        {"results: file"},
        {"checkpoints: object"},
    ),
    "no usage chunk": (
        Fault("POST", CHAT, without_chunk(is_usage)),
        {"streaming: usage"},
        {"streaming: chunks", "streaming: DONE"},
    ),
    "no DONE": (
        Fault("POST", CHAT, without_chunk(is_done)),
        {"streaming: DONE"},
        {"streaming: chunks", "streaming: usage"},
    ),
    "one choice of several": (Fault("POST", CHAT, json_of(first_choice)), {"chat: n"}, {"chat: object"}),
    "no usage": (Fault("POST", CHAT, json_of(no_usage)), {"chat: object", "chat: limits"}, {"chat: n"}),
    "stop is ignored": (Fault("POST", CHAT, request=without("stop")), {"chat: stop"}, {"chat: limits"}),
    "seed is ignored": (Fault("POST", CHAT, request=without("seed")), {"chat: seed"}, {"chat: greedy"}),
    "logit_bias is ignored": (
        Fault("POST", CHAT, request=without("logit_bias")),
        {"chat: logit_bias"},
        {"chat: greedy"},
    ),
    "logprobs are missing": (
        Fault("POST", CHAT, request=without("logprobs", "top_logprobs")),
        {"chat: logprobs"},
        {"chat: object"},
    ),
}


@pytest.fixture(scope="module")
def finished(address) -> str:
    """A succeeded job with a validation file."""
    bench = Bench(address, "none", "org/tiny")
    bench.begin_training()
    job = bench.wait_until_finished(bench.training_id)
    assert job.status == "succeeded", job.error
    return job.id


@pytest.fixture(scope="module")
def front(address) -> Iterator[tuple[Proxy, str]]:
    with proxied(address) as running:
        yield running


def run_checks(front: tuple[Proxy, str], finished: str, fault: Fault | None, names: set[str]) -> dict[str, Finding]:
    proxy, url = front
    proxy.fault = fault
    bench = Bench(url, "none", "org/tiny", job=finished)
    try:
        chosen = [check for check in suite.CHECKS if check.name in names]
        assert len(chosen) == len(names)
        return {finding.check: finding for finding in suite.run(bench, chosen)}
    finally:
        proxy.fault = None
        bench.clean_up()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_fails_exactly_the_right_checks(front, finished, name):
    fault, failing, others = FAULTS[name]
    findings = run_checks(front, finished, fault, failing | others)
    assert {name for name, finding in findings.items() if finding.outcome == "broken"} == failing
    assert {name for name, finding in findings.items() if finding.outcome == "holds"} == others
    assert all(findings[name].words for name in failing)


@pytest.mark.slow
def test_the_proxy_without_a_fault_changes_nothing(front, finished):
    names = {name for _, failing, _ in FAULTS.values() for name in failing}
    findings = run_checks(front, finished, None, names)
    assert {finding.check: finding.words for finding in findings.values() if finding.outcome != "holds"} == {}


@pytest.mark.slow
def test_an_unsupported_feature_is_reported_with_the_servers_message(front, finished):
    def lacks_dpo(request: Request) -> None:
        if b'"dpo"' in request.body:
            error = {"message": "No preferences here.", "type": "invalid_request_error", "param": None, "code": None}
            headers = [(b"content-type", b"application/json")]
            request.response = Response(400, headers, json.dumps({"error": error}).encode())

    findings = run_checks(front, finished, Fault("POST", JOBS, request=lacks_dpo), {"jobs: dpo", "jobs: cancel"})
    assert (findings["jobs: dpo"].outcome, findings["jobs: dpo"].words) == ("not supported", "No preferences here.")
    assert findings["jobs: cancel"].outcome == "holds"


@pytest.mark.slow
def test_a_given_job_is_checked_and_its_model_kept(front, finished):
    findings = run_checks(front, finished, None, {"models: tuned", "models: delete"})
    assert findings["models: tuned"].outcome == "holds"
    assert findings["models: delete"].outcome == "left out"
    assert Bench(front[1], "none", "org/tiny", job=finished).tuned()


def test_clean_up_removes_everything_that_was_created(front):
    bench = Bench(front[1], "none", "org/tiny")
    before = {file.id for file in bench.client.files.list()}
    job = bench.create_from_rows(chat_rows(12))
    bench.upload(bytes=10, filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    assert bench.clean_up() == []
    assert bench.retrieve(job.id).status in FINAL
    assert {file.id for file in bench.client.files.list()} == before


def test_a_rejected_key_is_reported(front):
    proxy, url = front

    def reject(request: Request) -> None:
        error = {"message": "no", "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
        headers = [(b"content-type", b"application/json")]
        request.response = Response(401, headers, json.dumps({"error": error}).encode())

    proxy.fault = Fault("GET", "/v1/models", request=reject)
    result = run_cli("conformance", url, "--key", "sk-wrong")
    proxy.fault = None
    assert result.returncode == 2
    assert "pass an API key of this server" in result.stderr
    assert "sk-wrong" not in result.stdout + result.stderr
