"""`tunesmith import openai` from a server that speaks the contract, into the home of another one."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import APIStatusError, OpenAI
from running import Answer, Fault, Proxy, Request, free_port, proxied, run_cli, serving

KEY = "sk-secret-of-the-hosted-api-5d41402abc4b2a76"
FILES, CONTENT = "/v1/files", r"/v1/files/[^/]+/content"
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def front(hosted) -> Iterator[tuple[Proxy, str]]:
    with proxied(hosted.address) as running:
        yield running


def bring(
    address: str, home: Path, *more: str, fault: str | None = None, key: str | None = KEY
) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    env |= {"HOSTED_KEY": key} if key is not None else {}
    env |= {"TUNESMITH_FAULT": fault} if fault else {}
    arguments = ("import", "openai", "--base-url", address, "--key-env", "HOSTED_KEY", "--home", str(home))
    return run_cli(*arguments, *more, env=env)


def copied(result: subprocess.CompletedProcess) -> tuple[int, int, int, int]:
    """Files and jobs that were copied, files and jobs that were here."""
    found = re.search(
        r": (\d+) files \(\d+ bytes\), (\d+) jobs; already present: (\d+) files, (\d+) jobs", result.stdout
    )
    assert found, result.stdout + result.stderr
    a, b, c, d = map(int, found.groups())
    return a, b, c, d


def test_a_dry_run_tells_and_makes_nothing(hosted, tmp_path):
    result = bring(hosted.address, tmp_path / "home", "--dry-run")
    assert (result.returncode, copied(result)) == (0, (5, 3, 0, 0)), result.stderr
    assert "train.jsonl" in result.stdout
    assert "notes.txt" not in result.stdout
    assert not (tmp_path / "home").exists()


@pytest.mark.slow
def test_killed_twice_and_run_again_everything_is_there_once(hosted, front, tiny_llama, tmp_path):
    """Killed in the middle of a file, then in the middle of a job; pages hold two things each."""
    proxy, address = front
    fetched: list[str] = []

    def small_pages_and_a_note(request: Request) -> None:
        request.query = re.sub(rb"limit=\d+", b"limit=2", request.query)
        if request.path.endswith("/content"):
            fetched.append(request.path.split("/")[3])

    proxy.fault = Fault("GET", ".*", request=small_pages_and_a_note)
    home = tmp_path / "home"
    assert bring(address, home, fault="import.piece:4=kill").returncode == -signal.SIGKILL
    first = list(fetched)
    assert bring(address, home, fault="import.job:2=kill").returncode == -signal.SIGKILL
    assert len(set(fetched)) == 5
    assert sorted(fetched) == sorted([*set(fetched), first[-1]])  # the file that was cut off is fetched anew, no other
    result = bring(address, home)
    assert result.returncode == 0, result.stderr
    assert copied(result) == (0, 2, 5, 1)
    assert len(fetched) == 6
    again = bring(address, home)
    assert copied(again) == (0, 0, 5, 3)
    assert len(fetched) == 6
    proxy.fault = None
    require_no_key(home, result.stdout + result.stderr + again.stdout + again.stderr)
    with serving(home, tiny_llama, tmp_path / "cache", name="own") as url:
        require_same(hosted, OpenAI(base_url=url, api_key="none", max_retries=0))
    require_no_key(home, "")


def require_no_key(home: Path, told: str) -> None:
    assert KEY not in told
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def require_same(hosted, client: OpenAI) -> None:
    """Files with their bytes, jobs with what the hosted API tells of them, events in their order."""
    theirs = {file.id: file for file in hosted.client.files.list() if file.purpose != "user_data"}
    ours = {file.id: file for file in client.files.list()}
    assert len(ours) == 5
    assert {id: file.to_dict() for id, file in ours.items()} == {id: file.to_dict() for id, file in theirs.items()}
    for id in ours:
        assert client.files.content(id).read() == hosted.client.files.content(id).read()
    assert [job.id for job in client.fine_tuning.jobs.list()] == [
        job.id for job in hosted.client.fine_tuning.jobs.list()
    ]
    for job in hosted.client.fine_tuning.jobs.list():
        require_same_job(hosted.client, client, job.id)
    tuned = client.fine_tuning.jobs.retrieve(hosted.tuned_job)
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "night"})] == [tuned.id]
    require_history(client, tuned.fine_tuned_model, client.fine_tuning.jobs.checkpoints.list(tuned.id).data)


def require_same_job(theirs: OpenAI, ours: OpenAI, id: str) -> None:
    job, origin = ours.fine_tuning.jobs.retrieve(id), theirs.fine_tuning.jobs.retrieve(id)
    told, expected = job.to_dict(), origin.to_dict()
    labels = told.pop("metadata")
    mark = labels.pop("imported_from")
    assert mark.startswith("127.0.0.1:")
    assert labels == (expected.pop("metadata") or {})
    assert told.pop("organization_id")
    expected.pop("organization_id")
    assert told == expected
    events = [(e.message, e.created_at, e.level, e.type, e.data) for e in ours.fine_tuning.jobs.list_events(id)]
    assert f"Imported from {mark}" in events[0][0]
    assert events[1:] == [
        (e.message, e.created_at, e.level, e.type, e.data) for e in theirs.fine_tuning.jobs.list_events(id)
    ]
    assert [c.to_dict() for c in ours.fine_tuning.jobs.checkpoints.list(id)] == [
        c.to_dict() for c in theirs.fine_tuning.jobs.checkpoints.list(id)
    ]


def require_history(client: OpenAI, name: str | None, checkpoints: list) -> None:
    """The tuned names are known, and whoever asks for an answer or a job over one is told why there is none."""
    assert name is not None
    assert len(checkpoints) == 2
    assert "imported as history" in (client.models.retrieve(name).to_dict()["parent"] or "")  # type: ignore[operator]
    for model in (name, checkpoints[0].fine_tuned_model_checkpoint):
        with pytest.raises(APIStatusError) as refused:
            client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Are you there?"}])
        assert refused.value.status_code == 404
        assert "imported as history: its weights stay there" in refused.value.message
    file = client.files.list().data[0].id
    with pytest.raises(APIStatusError) as refused:
        client.fine_tuning.jobs.create(model=name, training_file=file)
    assert refused.value.status_code == 400
    assert client.models.delete(name).deleted
    assert name not in {model.id for model in client.models.list()}


def test_a_file_that_comes_short_is_not_kept_and_the_next_run_brings_it(front, tmp_path):
    proxy, address = front

    def cut_short(answer: Answer) -> None:
        answer.body = answer.body[:-5]

    proxy.fault = Fault("GET", CONTENT, cut_short)
    result = bring(address, tmp_path)
    proxy.fault = None
    assert result.returncode == 1
    assert copied(result)[0] == 0
    assert result.stderr.count("failed: file-") == 5
    assert not [path for path in (tmp_path / "files").iterdir() if path.is_file()]
    after = bring(address, tmp_path)
    assert (after.returncode, copied(after)) == (0, (5, 0, 0, 3)), after.stderr


def test_what_still_runs_there_stays_until_it_has_ended(front, tmp_path):
    proxy, address = front

    def first_runs(answer: Answer) -> None:
        page = json.loads(answer.body)
        page["data"][0]["status"] = "running"
        answer.body = json.dumps(page).encode()

    proxy.fault = Fault("GET", JOBS, first_runs)
    result = bring(address, tmp_path)
    proxy.fault = None
    assert (result.returncode, copied(result)) == (0, (5, 2, 0, 0)), result.stderr
    assert "is running there: run this again" in result.stdout
    assert copied(bring(address, tmp_path)) == (0, 1, 5, 2)


def test_a_refused_key_is_told_without_a_part_of_it(front, tmp_path):
    proxy, address = front

    def refuse(answer: Answer) -> None:
        answer.status = 401
        told = f"Incorrect API key provided: {KEY[:8]}***{KEY[-4:]}."
        answer.body = json.dumps({"error": {"message": told, "type": "x", "param": None, "code": None}}).encode()

    proxy.fault = Fault("GET", FILES, refuse)
    result = bring(address, tmp_path)
    proxy.fault = None
    assert result.returncode == 2
    assert "refuses the key" in result.stderr
    assert KEY[-4:] not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_a_busy_api_is_asked_again(front, tmp_path):
    proxy, address = front
    left = [429, 503]

    def busy(request: Request) -> None:
        if left:
            request.answered = Answer(left.pop(0), [(b"content-type", b"application/json")], b"{}")

    proxy.fault = Fault("GET", FILES, request=busy)
    result = bring(address, tmp_path, "--dry-run")
    proxy.fault = None
    assert (result.returncode, left) == (0, []), result.stderr


@pytest.mark.parametrize(
    ("address", "key", "words"),
    [
        ("http://api.example.com/v1", KEY, "unencrypted"),
        ("ftp://127.0.0.1/v1", KEY, "is no address"),
        ("https://api.example.com/v1", None, "HOSTED_KEY"),
        ("https://api.example.com/v1", "sk-a\nInjected: header", "no API key has"),
    ],
)
def test_bad_input_is_told_before_anything_is_sent(address, key, words, tmp_path):
    result = bring(address, tmp_path, key=key)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_where_nobody_answers_the_command_can_be_run_again(tmp_path, monkeypatch):
    from tunesmith.errors import RunFault
    from tunesmith.serving.openai_import import hosted_api

    monkeypatch.setattr(hosted_api.time, "sleep", lambda _: None)
    with pytest.raises(RunFault, match="no answer"):
        list(hosted_api.Remote(f"http://127.0.0.1:{free_port()}/v1", KEY).files())
