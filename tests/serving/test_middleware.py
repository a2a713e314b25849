"""Keys, scopes, rate limits, error format, idempotent requests."""

import asyncio
import json
import os
import socket
import subprocess
import threading
import time

import httpx
import openai
import pytest
from api_process import COMMAND, Api
from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.waiting import LIMIT_S
from tunesmith.errors import InputError
from tunesmith.serving.app import create_app
from tunesmith.serving.process import listen
from tunesmith.serving.settings import Settings, load_settings
from tunesmith.serving.store.store import Store

ROWS = b'{"messages": []}\n' * 20
ERROR_KEYS = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A server with keys, and with a webhook secret in its settings."""
    hook = {"url": "http://127.0.0.1:9/hook", "secret": "whsec_c2VjcmV0IHRoYXQgbm9ib2R5IHNlZXM="}
    api = Api(tmp_path_factory.mktemp("keyed"), webhooks=[hook])
    keys = {
        "all": api.keys("create", "all"),
        "reader": api.keys("create", "reader", "--scope", "files:read"),
        "other": api.keys("create", "other", "--organization", "other"),
        "revoked": api.keys("create", "revoked"),
    }
    api.start()
    yield api, keys
    api.stop()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/nothing", None, 404),
        ("PUT", "/v1/files", None, 405),
        ("POST", "/v1/uploads", b"{}", 400),
        ("POST", "/v1/uploads", b"{", 400),
        ("POST", "/v1/uploads", b"[]", 400),
        ("POST", "/v1/uploads", b'{"bytes": 1e999}', 400),
        (
            "POST",
            "/v1/uploads",
            b'{"bytes": 9223372036854775808, "filename": "a", "mime_type": "b", "purpose": "c"}',
            400,
        ),
        (
            "POST",
            "/v1/uploads",
            b'{"bytes": 1, "filename": "\\u0000", "mime_type": "\\ud800", "purpose": "user_data"}',
            400,
        ),
        ("GET", "/v1/files?limit=many", None, 400),
        ("GET", "/v1/files?order=up", None, 400),
        ("GET", "/v1/files?after=%00", None, 400),
        ("POST", "/healthz", b" " * 5000, 413),
        ("POST", "/v1/files", b"no form", 400),
        ("POST", "/v1/uploads", b" " * ((1 << 16) + 1), 413),
        ("GET", "/v1/fine_tuning/jobs/ftjob-x", None, 404),
        ("GET", "/v1/fine_tuning/jobs?" + "&".join(f"metadata[k{n}]=v" for n in range(1500)), None, 400),
    ],
)
def test_every_error_has_the_api_format(api, method, path, body, status):
    headers = {"Content-Type": "application/json"}
    response = httpx.request(method, f"{api.url[:-3]}{path}", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == ERROR_KEYS
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "application/x+json"])
@pytest.mark.parametrize(
    "body", [b'{"bytes": 1e999}', b'{"filename": "\\ud800"}', b'{"filename": "\\u0000"}', b"[[]," + b"[]," * 300_000]
)
def test_json_that_cannot_be_stored_is_rejected(tmp_path, kind, body):
    settings = Settings(home=tmp_path)
    app = TestClient(create_app(settings, Store(settings.store_url)), base_url="http://localhost")
    response = app.post("/v1/uploads", content=body, headers={"Content-Type": kind})
    assert response.status_code == 400
    assert any(word in response.text for word in ("not finite", "lone surrogate", "lists and objects"))


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"model": "m", "prompt": 5}, "prompt"),
        ("completions", {"model": "m", "prompt": [[1], [-1]]}, "prompt"),
        ("completions", {"model": "m", "prompt": "a", "stop": ["a", ""]}, "stop"),
        ("chat/completions", {"model": "m"}, "messages"),
        ("chat/completions", {"model": "m", "messages": [{}, 5]}, "messages[1]"),
        (
            "chat/completions",
            {"model": "m", "messages": [{}], "stream_options": {"include_usage": 5}},
            "stream_options.include_usage",
        ),
        (
            "uploads",
            {"bytes": 1, "filename": "a", "mime_type": "b", "purpose": "c", "expires_after": {}},
            "expires_after.anchor",
        ),
    ],
)
def test_errors_name_the_parameter_as_sent(tmp_path, path, body, param):
    settings = Settings(home=tmp_path)
    app = TestClient(create_app(settings, Store(settings.store_url)), base_url="http://localhost")
    response = app.post(f"/v1/{path}", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_internal_errors_do_not_expose_a_traceback(tmp_path, caplog):
    settings = Settings(home=tmp_path)
    app: FastAPI = create_app(settings, Store(settings.store_url))

    @app.get("/v1/broken")
    def broken():
        raise RuntimeError("inner secret")

    response = TestClient(app, base_url="http://localhost").get("/v1/broken")
    assert response.status_code == 500
    assert set(response.json()["error"]) == ERROR_KEYS
    assert "secret" not in response.text
    error_id = response.json()["error"]["message"].split()[-1].rstrip(".")
    assert error_id in caplog.text
    assert "inner secret" in caplog.text


def test_a_slow_body_times_out(api):
    head = f"POST /v1/uploads HTTP/1.1\r\nHost: 127.0.0.1:{api.port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", api.port), LIMIT_S) as connection:
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n".encode())
        started_at = time.monotonic()
        for _ in range(4):  # the timeout is for the whole body: occasional bytes do not extend it
            connection.sendall(b" ")
            time.sleep(0.3)
        assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]
    assert 1.0 < time.monotonic() - started_at < LIMIT_S


def test_scopes_limit_what_a_key_can_do(keyed):
    api, keys = keyed
    file = api.client(keys["all"]).files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    reader = api.client(keys["reader"])
    assert reader.files.retrieve(file.id).id == file.id
    for call in (
        lambda: reader.files.delete(file.id),
        lambda: reader.models.list(),
        lambda: reader.fine_tuning.jobs.list(),
        lambda: reader.files.create(file=("a.jsonl", ROWS), purpose="fine-tune"),
    ):
        with pytest.raises(openai.PermissionDeniedError, match="Missing scopes"):
            call()
    for key in ("x", "wrong", keys["all"][:-1], keys["all"].lower()):
        response = httpx.get(f"{api.url}/files", headers={"Authorization": f"Bearer {key}"})
        assert response.status_code == 401
        assert response.json()["error"]["code"] in ("invalid_api_key", "missing_api_key")
    assert httpx.get(f"{api.url}/files").status_code == 401


def test_organizations_are_isolated(keyed):
    api, keys = keyed
    mine, other = api.client(keys["all"]), api.client(keys["other"])
    file = mine.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    assert not list(other.files.list())
    for call in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)
    with pytest.raises(openai.BadRequestError):
        other.files.list(after=file.id)


def test_a_revoked_key_is_rejected_at_once(keyed):
    api, keys = keyed
    client = api.client(keys["revoked"])
    client.files.list()
    assert "revoked" in api.keys("revoke", "revoked")
    with pytest.raises(openai.AuthenticationError):
        client.files.list()
    listed = {row["name"]: row for row in json.loads(api.keys("list", "--json"))}
    assert listed["revoked"]["revoked_at"]
    assert listed["all"]["ends_in"] == keys["all"][-4:]


def test_keys_and_secrets_are_not_stored(keyed):
    api, keys = keyed
    api.client(keys["all"]).files.list()
    httpx.get(f"{api.url}/files?api_key={keys['all']}", headers={"Authorization": f"Bearer {keys['all']}"})
    secrets = [key.encode() for key in keys.values()] + [b"c2VjcmV0IHRoYXQgbm9ib2R5IHNlZXM="]
    files = [path for path in (*api.home.rglob("*"), api.log) if path.is_file()]
    assert any("audit" in path.name for path in files)
    assert any(path.name == "store.sqlite3" for path in files)
    for path in files:
        assert not [secret for secret in secrets if secret in path.read_bytes()], path
    command = subprocess.run(["ps", "-eo", "args"], capture_output=True, check=True).stdout
    assert not [secret for secret in secrets if secret in command]


def test_the_audit_log_records_who_did_what(keyed):
    api, keys = keyed
    file = api.client(keys["all"]).files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    api.client(keys["all"]).files.delete(file.id)
    lines = [json.loads(line) for path in (api.home / "logs").glob("audit-*") for line in path.read_text().splitlines()]
    entry = next(line for line in lines if line["path"] == f"/v1/files/{file.id}" and line["method"] == "DELETE")
    ids = {row["name"]: row["id"] for row in json.loads(api.keys("list", "--json"))}
    assert (entry["status"], entry["organization"], entry["key"]) == (200, "local", ids["all"])


@pytest.mark.rerun(reason="a limit of requests per minute: requests that take 12 s are not limited")
def test_rate_limit_errors_have_retry_after(start_api):
    api = start_api(limits={"requests_per_minute": 5})
    with api.http() as http:
        codes = [http.get("/files").status_code for _ in range(6)]
        assert codes == [200] * 5 + [429]
        rejected = http.get("/files")
        assert 1 <= int(rejected.headers["retry-after"]) <= 12
        assert rejected.json()["error"]["code"] == "rate_limit_exceeded"
    started_at = time.monotonic()
    assert api.client(max_retries=2).files.list().data == []  # the client waits for Retry-After
    assert time.monotonic() - started_at > 5


def test_listening_beyond_loopback_requires_a_key(tmp_path):
    command = [*COMMAND, "serve", "--home", str(tmp_path), "--host", "0.0.0.0", "--port", "0"]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert completed.returncode == 2
    assert "tunesmith keys create" in completed.stderr
    assert "Traceback" not in completed.stderr


def test_a_port_in_use_and_invalid_settings_are_reported(api, tmp_path):
    command = [*COMMAND, "serve", "--home", str(tmp_path), "--port", str(api.port)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (completed.returncode, "Traceback" in completed.stderr) == (2, False)
    config = tmp_path / "server.yaml"
    config.write_text("prot: 1\nbases:\n  a:b: /nowhere\n")
    completed = subprocess.run(
        [*COMMAND, "serve", "--config", str(config)], capture_output=True, text=True, timeout=300
    )
    assert completed.returncode == 2
    assert "server.yaml:1" in completed.stderr
    assert "no such key" in completed.stderr


def test_an_invalid_webhook_secret_is_reported_at_startup(tmp_path):
    config = tmp_path / "server.yaml"
    config.write_text('webhooks: [{url: "http://127.0.0.1:9/hook", secret: "whsec_not-base64-at-all"}]\n')
    with pytest.raises(InputError, match=r"server.yaml:1.*base64"):
        load_settings(config)


@pytest.mark.parametrize(
    "header",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},  # its name resolves to 127.0.0.1 (DNS rebinding)
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost:{port}@evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "https://localhost.evil.example"},
        {"Origin": "null"},  # a sandboxed frame or a local file
        {"Sec-Fetch-Site": "cross-site"},  # an image, a script or a form of another site
    ],
)
def test_without_keys_requests_of_other_sites_are_rejected(api, header):
    """Also those that a browser sends without asking the server first."""
    sent = {name: value.format(port=api.port) for name, value in header.items()}
    simple = {"Content-Type": "text/plain", **sent}
    for response in (
        httpx.get(f"{api.url}/files", headers=sent),
        httpx.post(
            f"{api.url}/fine_tuning/jobs", headers=simple, content=b'{"model": "tiny", "training_file": "file-1"}'
        ),
        httpx.post(f"{api.url}/fine_tuning/jobs/ftjob-x/cancel", headers=simple),
        httpx.options(f"{api.url}/files", headers={**sent, "Access-Control-Request-Method": "POST"}),
    ):
        assert response.status_code in (400, 403), response.text
        assert not [name for name in response.headers if name.startswith("access-control-")]
    own = ({"Origin": f"http://localhost:{api.port}"}, {"Host": "[::1]"}, {"Sec-Fetch-Site": "same-origin"}, {})
    for allowed in own:
        assert httpx.get(f"{api.url}/files", headers=allowed).status_code == 200


def test_a_repeated_post_is_processed_once(api):
    client, header = api.client(), {"Idempotency-Key": os.urandom(8).hex()}
    request = {"bytes": 5, "filename": "a.jsonl", "mime_type": "t", "purpose": "fine-tune", "extra_headers": header}
    first = client.uploads.create(**request)
    assert client.uploads.create(**request) == first
    with pytest.raises(openai.BadRequestError) as raised:
        client.uploads.create(**{**request, "bytes": 6})
    assert raised.value.code == "idempotency_key_reused"
    twice = [client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune", extra_headers=header) for _ in range(2)]
    assert twice[0].id == twice[1].id


def test_concurrent_requests_with_one_key_create_one_job(api):
    client, header = api.client(max_retries=5), {"Idempotency-Key": os.urandom(8).hex()}
    file = client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    job_ids: list[str] = []

    def create():
        job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, extra_headers=header)
        job_ids.append(job.id)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(job_ids) == 6
    assert len(set(job_ids)) == 1


def test_tls(start_api, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    api = start_api(tls_cert=str(certificate), tls_key=str(key))
    client = api.client(http_client=httpx.Client(verify=str(certificate)))
    assert client.files.list().data == []


def test_accepted_connections_send_small_packets_at_once(tmp_path):
    """Otherwise the kernel holds back the end of a response for up to 40 ms, and streams arrive in one piece."""

    async def options_of_a_connection() -> int:
        accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        with listen(Settings(home=tmp_path, port=0)) as listening:
            server = await asyncio.start_server(lambda _, writer: accepted.put_nowait(writer), sock=listening)
            async with server:
                _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
                inside = await accepted.get()
                value = inside.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                writer.close()
                inside.close()
                return value

    assert asyncio.run(options_of_a_connection()) == 1


LISTS = ("files", "fine_tuning/jobs", "fine_tuning/jobs/{job}/events", "fine_tuning/jobs/{job}/checkpoints")


@pytest.fixture(scope="module")
def labelled(api) -> dict[str, str]:
    """Two jobs, by the team in their metadata."""
    client = api.client()
    file = client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune").id
    return {
        team: client.fine_tuning.jobs.create(model="tiny", training_file=file, metadata={"team": team, "": "no"}).id
        for team in ("day", "night")
    }


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("query", ["statuss=failed", "metadatas=null", "limit=1&limit=2", "team=day"])
def test_an_unknown_filter_does_not_select_everything(api, labelled, path, query):
    response = httpx.get(f"{api.url}/{path.format(job=labelled['day'])}?{query}")
    assert response.status_code == 400, response.text
    assert set(response.json()["error"]) == ERROR_KEYS
    assert response.json()["error"]["param"] == query.partition("=")[0]


@pytest.mark.parametrize(
    ("query", "teams"),
    [
        ("metadata[team]=day", {"day"}),
        ("metadata[team]=day&metadata[team]=day", {"day"}),
        ("metadata[team]=day&metadata[]=no", {"day"}),
        ("metadata[unknown]=day", set()),
        ("metadata[team]=", set()),
        ("metadata[team]=day&metadata[team]=night", None),
        ("metadata[team=day", None),
        ("metadata.team=day", None),
        ("metadata=%7B%22team%22%3A%22day%22%7D", None),
        ("metadata=null&metadata[team]=day", None),
        ("metadata=null&metadata=null", None),
        ("metadata", None),
    ],
)
def test_jobs_are_selected_by_metadata_or_the_filter_is_rejected(api, labelled, query, teams):
    response = httpx.get(f"{api.url}/fine_tuning/jobs?limit=100&{query}")
    if teams is None:
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"].startswith("metadata")
    else:
        assert [job["id"] for job in response.json()["data"]] == [labelled[team] for team in teams]


def test_unknown_parameters_of_other_requests_are_ignored(api, labelled):
    """Clients add their own, such as a version."""
    for path in ("models", f"fine_tuning/jobs/{labelled['day']}"):
        assert httpx.get(f"{api.url}/{path}?client_version=1").status_code == 200
