"""`tunesmith import openai` from a server with the hosted API's contract into the home of another server."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import APIStatusError, OpenAI
from running import Fault, Proxy, Request, Response, free_port, proxied, run_cli, serving

from tests.warm_processes.pool import python_path

KEY = "sk-secret-of-the-hosted-api-5d41402abc4b2a76"
FILES, CONTENT = "/v1/files", r"/v1/files/[^/]+/content"
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def front(hosted) -> Iterator[tuple[Proxy, str]]:
    with proxied(hosted.address) as running:
        yield running


def run_import(
    address: str, home: Path, *more: str, fault: str | None = None, key: str | None = KEY
) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": python_path(Path(__file__).resolve().parents[3])}
    env |= {"HOSTED_KEY": key} if key is not None else {}
    env |= {"TUNESMITH_FAULT": fault} if fault else {}
    arguments = ("import", "openai", "--base-url", address, "--key-env", "HOSTED_KEY", "--home", str(home))
    return run_cli(*arguments, *more, env=env)


def copied(result: subprocess.CompletedProcess) -> tuple[int, int, int, int]:
    """Numbers of files and jobs copied, and of files and jobs already present."""
    counts = re.search(
        r": (\d+) files \([\d,]+ bytes\), (\d+) jobs; already present: (\d+) files, (\d+) jobs", result.stdout
    )
    assert counts, result.stdout + result.stderr
    a, b, c, d = map(int, counts.groups())
    return a, b, c, d


def test_a_dry_run_lists_the_files_and_creates_nothing(hosted, tmp_path):
    result = run_import(hosted.address, tmp_path / "home", "--dry-run")
    assert (result.returncode, copied(result)) == (0, (5, 3, 0, 0)), result.stderr
    assert "train.jsonl" in result.stdout
    assert "notes.txt" not in result.stdout
    assert not (tmp_path / "home").exists()


@pytest.mark.slow
def test_an_import_killed_twice_completes_without_duplicates(hosted, front, tiny_llama, tmp_path):
    """Killed during a file, then during a job; list pages have two items each."""
    proxy, address = front
    downloaded: list[str] = []

    def limit_pages_and_record(request: Request) -> None:
        request.query = re.sub(rb"limit=\d+", b"limit=2", request.query)
        if request.path.endswith("/content"):
            downloaded.append(request.path.split("/")[3])

    proxy.fault = Fault("GET", ".*", request=limit_pages_and_record)
    home = tmp_path / "home"
    assert run_import(address, home, fault="import.piece:4=kill").returncode == -signal.SIGKILL
    first = list(downloaded)
    assert run_import(address, home, fault="import.job:2=kill").returncode == -signal.SIGKILL
    assert len(set(downloaded)) == 5
    assert sorted(downloaded) == sorted([*set(downloaded), first[-1]])  # only the interrupted file is downloaded again
    result = run_import(address, home)
    assert result.returncode == 0, result.stderr
    assert copied(result) == (0, 2, 5, 1)
    assert len(downloaded) == 6
    repeated = run_import(address, home)
    assert copied(repeated) == (0, 0, 5, 3)
    assert len(downloaded) == 6
    proxy.fault = None
    require_no_key(home, result.stdout + result.stderr + repeated.stdout + repeated.stderr)
    with serving(home, tiny_llama, tmp_path / "cache", name="own") as url:
        require_same(hosted, OpenAI(base_url=url, api_key="none", max_retries=0))
    require_no_key(home, "")


def require_no_key(home: Path, output: str) -> None:
    assert KEY not in output
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def require_same(hosted, client: OpenAI) -> None:
    """Require the same files with their bytes, jobs, and events in order."""
    hosted_files = {file.id: file for file in hosted.client.files.list() if file.purpose != "user_data"}
    imported_files = {file.id: file for file in client.files.list()}
    assert len(imported_files) == 5
    assert {id: file.to_dict() for id, file in imported_files.items()} == {
        id: file.to_dict() for id, file in hosted_files.items()
    }
    for id in imported_files:
        assert client.files.content(id).read() == hosted.client.files.content(id).read()
    assert [job.id for job in client.fine_tuning.jobs.list()] == [
        job.id for job in hosted.client.fine_tuning.jobs.list()
    ]
    for job in hosted.client.fine_tuning.jobs.list():
        require_same_job(hosted.client, client, job.id)
    tuned = client.fine_tuning.jobs.retrieve(hosted.tuned_job)
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "night"})] == [tuned.id]
    require_history(client, tuned.fine_tuned_model, client.fine_tuning.jobs.checkpoints.list(tuned.id).data)


def require_same_job(source: OpenAI, target: OpenAI, id: str) -> None:
    job, origin = target.fine_tuning.jobs.retrieve(id), source.fine_tuning.jobs.retrieve(id)
    imported, expected = job.to_dict(), origin.to_dict()
    labels = imported.pop("metadata")
    host = labels.pop("imported_from")
    assert host.startswith("127.0.0.1:")
    assert labels == (expected.pop("metadata") or {})
    assert imported.pop("organization_id")
    expected.pop("organization_id")
    assert imported == expected
    events = [(e.message, e.created_at, e.level, e.type, e.data) for e in target.fine_tuning.jobs.list_events(id)]
    assert f"Imported from {host}" in events[0][0]
    assert events[1:] == [
        (e.message, e.created_at, e.level, e.type, e.data) for e in source.fine_tuning.jobs.list_events(id)
    ]
    assert [c.to_dict() for c in target.fine_tuning.jobs.checkpoints.list(id)] == [
        c.to_dict() for c in source.fine_tuning.jobs.checkpoints.list(id)
    ]


def require_history(client: OpenAI, name: str | None, checkpoints: list) -> None:
    """Fine-tuned model names are known; completions and jobs with them return an explanatory error."""
    assert name is not None
    assert len(checkpoints) == 2
    assert "imported as history" in (client.models.retrieve(name).to_dict()["parent"] or "")  # type: ignore[operator]
    for model in (name, checkpoints[0].fine_tuned_model_checkpoint):
        with pytest.raises(APIStatusError) as rejected:
            client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}])
        assert rejected.value.status_code == 404
        assert "imported as history without weights" in rejected.value.message
    file = client.files.list().data[0].id
    with pytest.raises(APIStatusError) as rejected:
        client.fine_tuning.jobs.create(model=name, training_file=file)
    assert rejected.value.status_code == 400
    assert client.models.delete(name).deleted
    assert name not in {model.id for model in client.models.list()}


def test_a_truncated_download_is_discarded_and_repeated_by_the_next_import(front, tmp_path):
    proxy, address = front

    def cut_short(response: Response) -> None:
        response.body = response.body[:-5]

    proxy.fault = Fault("GET", CONTENT, cut_short)
    result = run_import(address, tmp_path)
    proxy.fault = None
    assert result.returncode == 1
    assert copied(result)[0] == 0
    assert result.stderr.count("failed: file-") == 5
    assert not [path for path in (tmp_path / "files").iterdir() if path.is_file()]
    after = run_import(address, tmp_path)
    assert (after.returncode, copied(after)) == (0, (5, 0, 0, 3)), after.stderr


def test_a_running_job_is_imported_after_it_has_finished(front, tmp_path):
    proxy, address = front

    def first_runs(response: Response) -> None:
        page = json.loads(response.body)
        page["data"][0]["status"] = "running"
        response.body = json.dumps(page).encode()

    proxy.fault = Fault("GET", JOBS, first_runs)
    result = run_import(address, tmp_path)
    proxy.fault = None
    assert (result.returncode, copied(result)) == (0, (5, 2, 0, 0)), result.stderr
    assert "is running on the hosted API: run the import again" in result.stdout
    assert copied(run_import(address, tmp_path)) == (0, 1, 5, 2)


def test_the_error_for_a_rejected_key_contains_no_part_of_it(front, tmp_path):
    proxy, address = front

    def reject(response: Response) -> None:
        response.status = 401
        message = f"Incorrect API key provided: {KEY[:8]}***{KEY[-4:]}."
        response.body = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": None}}).encode()

    proxy.fault = Fault("GET", FILES, reject)
    result = run_import(address, tmp_path)
    proxy.fault = None
    assert result.returncode == 2
    assert "rejected the key" in result.stderr
    assert KEY[-4:] not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_requests_to_a_busy_api_are_retried(front, tmp_path):
    proxy, address = front
    left = [429, 503]

    def busy(request: Request) -> None:
        if left:
            request.response = Response(left.pop(0), [(b"content-type", b"application/json")], b"{}")

    proxy.fault = Fault("GET", FILES, request=busy)
    result = run_import(address, tmp_path, "--dry-run")
    proxy.fault = None
    assert (result.returncode, left) == (0, []), result.stderr


@pytest.mark.parametrize(
    ("address", "key", "message"),
    [
        ("http://api.example.com/v1", KEY, "unencrypted"),
        ("ftp://127.0.0.1/v1", KEY, "is not an API URL"),
        ("https://api.example.com/v1", None, "HOSTED_KEY"),
        ("https://api.example.com/v1", "sk-a\nInjected: header", "invalid characters"),
    ],
)
def test_invalid_input_is_reported_before_any_request(address, key, message, tmp_path):
    result = run_import(address, tmp_path, key=key)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unreachable_api_raises_a_run_fault(tmp_path, monkeypatch):
    from tunesmith.errors import RunFault
    from tunesmith.serving.openai_import import hosted_api

    monkeypatch.setattr(hosted_api.time, "sleep", lambda _: None)
    with pytest.raises(RunFault, match="no response"):
        list(hosted_api.HostedApi(f"http://127.0.0.1:{free_port()}/v1", KEY).files())
