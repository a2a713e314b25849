"""Files and uploads through the unmodified client, on both databases."""

import hashlib
import json
import os
import socket
import time
from pathlib import Path

import httpx
import openai
import pytest
from starlette.testclient import TestClient

from tests.waiting import wait_for
from tunesmith.errors import InputError
from tunesmith.serving.app import create_app
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.files.expiry import sweep
from tunesmith.serving.home import open_home
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import File

ROWS = b'{"messages": []}\n' * 20


@pytest.fixture
def client(api):
    return api.client()


def upload(client, name="rows.jsonl", content=ROWS, **more):
    return client.files.create(file=(name, content), **{"purpose": "fine-tune", **more})


def test_a_file_is_returned_unchanged(client):
    file = upload(client, "Zeilen ä.jsonl")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(ROWS), "Zeilen ä.jsonl", "fine-tune")
    assert file.id.startswith("file-")
    assert file.expires_at is None
    assert abs(file.created_at - time.time()) < 60
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == ROWS
    deleted = client.files.delete(file.id)
    assert deleted.deleted
    assert deleted.id == file.id
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)


def test_pagination_has_no_gaps_while_files_are_added(client):
    uploaded = [upload(client).id for _ in range(7)]
    seen = []
    for file in client.files.list(limit=2, order="asc", purpose="fine-tune"):
        seen.append(file.id)
        if file.id == uploaded[3]:
            uploaded.append(upload(client).id)
    assert [id for id in seen if id in uploaded] == uploaded
    newest = [file.id for file in client.files.list(limit=3)]
    assert [id for id in newest if id in uploaded] == uploaded[::-1]
    assert len(newest) == len(set(newest))
    other = upload(client, "notes.txt", b"plain", purpose="user_data")
    assert [file.id for file in client.files.list(purpose="user_data")] == [other.id]
    with pytest.raises(openai.BadRequestError) as raised:
        client.files.list(after="file-nothinghere")
    assert raised.value.param == "after"
    with pytest.raises(openai.BadRequestError) as raised:
        client.files.list(limit=0)
    assert raised.value.param == "limit"


@pytest.mark.parametrize(
    ("name", "content", "more", "param", "message"),
    [
        ("rows.jsonl", b"not json\n", {}, "file", "Line 1 is not valid JSON"),
        ("rows.jsonl", ROWS + b"[1]\n", {}, "file", "Line 21 is not a dictionary"),
        ("rows.jsonl", ROWS + b'{"a": NaN}\n', {}, "file", "Line 21 is not valid JSON"),
        ("rows.jsonl", b'{"a": "\xff"}\n', {}, "file", "Line 1 is not UTF-8"),
        ("rows.jsonl", b"[" * 100_000, {}, "file", "Line 1 is not valid JSON"),
        ("rows.jsonl", b'{"a": [' + b"[]," * 300_000 + b"1]}\n", {}, "file", "lists and objects"),
        ("rows.jsonl", b"", {}, "file", "empty"),
        ("rows.csv", ROWS, {}, "file", "Must be .jsonl"),
        ("rows.jsonl", ROWS, {"purpose": "fun"}, "purpose", "fun"),
        (
            "rows.jsonl",
            ROWS,
            {"expires_after": {"anchor": "created_at", "seconds": 60}},
            "expires_after.seconds",
            "3600",
        ),
        (
            "rows.jsonl",
            ROWS,
            {"expires_after": {"anchor": "now", "seconds": 7200}},
            "expires_after.anchor",
            "created_at",
        ),
    ],
)
def test_rejected_files_are_not_stored(api, client, name, content, more, param, message):
    before = api.blobs()
    with pytest.raises(openai.BadRequestError, match=message) as raised:
        upload(client, name, content, **more)
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"
    assert api.blobs() == before


def test_a_file_that_is_too_large_is_rejected(api, client):
    before = api.blobs()
    with pytest.raises(openai.APIStatusError) as raised:
        upload(client, content=ROWS * 70_000)  # 1.1 MiB
    assert raised.value.status_code == 413
    chunked = (b"x" * 4096 for _ in range(400))  # without Content-Length
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = httpx.post(f"{api.url}/files", content=chunked, headers=headers)
    assert response.status_code in (400, 413)
    assert "error" in response.json()
    assert api.blobs() == before


@pytest.mark.parametrize("cut", ["disconnects", "stalls"])
def test_an_interrupted_upload_is_not_stored(api, cut):
    before = api.blobs()
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + ROWS
    head = f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1:{api.port}\r\nContent-Length: 90000\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    with socket.create_connection(("127.0.0.1", api.port), 20) as connection:
        connection.sendall(head.encode() + form)
        time.sleep(0.3)
        if cut == "stalls":
            response = b""
            while chunk := connection.recv(4096):  # head and body may arrive separately
                response += chunk
            assert b" 408 " in response.split(b"\r\n")[0]
            assert b"request_timeout" in response
    wait_for(lambda: api.blobs() == before, explain=api.blobs)


def test_names_cannot_escape_the_directory(api, client):
    before = sorted(path.name for path in api.home.parent.iterdir())
    file = upload(client, "../../../evil\\..\\x.jsonl")
    assert file.filename == "x.jsonl"
    client.files.delete(file.id)
    with api.http() as http:
        for path in ("..%2f..%2fstore.sqlite3", "%2e%2e", "file-..%2fx", "%00", "a%00b", "%ff%fe"):
            for url in (f"/files/{path}", f"/files/{path}/content", f"/models/{path}", f"/uploads/{path}/cancel"):
                response = http.post(url) if "upload" in url else http.get(url)
                assert response.status_code in (400, 404, 405), (url, response.text)
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert sorted(path.name for path in api.home.parent.iterdir()) == before


def test_files_expire(api, client):
    file = upload(client, expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600
    store = Store(json.loads(api.config.read_text())["database_url"])
    with store.begin() as session:
        row = session.query(File).filter_by(id=file.id).one()
        row.expires_at = int(time.time()) - 1
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert file.id not in [other.id for other in client.files.list()]
    assert file.id in api.blobs()
    assert sweep(store, Blobs(str(api.home / "files"))) == 1
    assert file.id not in api.blobs()
    store.close()


def test_unreferenced_blobs_are_deleted(tmp_path):
    store, blobs = Store(f"sqlite:///{tmp_path}/s.db"), Blobs(str(tmp_path / "files"))
    blobs.write("file-abandoned1", b"x")
    (tmp_path / "files" / ".incoming" / "file-halfwritten").write_bytes(b"x")
    assert sweep(store, blobs) == 0
    assert sweep(store, blobs, orphan_s=0) == 2
    assert not [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    store.close()


def test_concurrent_copies_are_complete(tmp_path):
    blobs, name = Blobs(str(tmp_path / "files")), "file-copiedtwice1"
    blobs.write(name, b"x" * (3 << 20))
    sizes, to = [], tmp_path / "job" / "training.jsonl"

    def copy_during(read):
        def slowly(size):
            if not sizes:
                sizes.append(0)
                Blobs(str(tmp_path / "files")).local_copy(name, to)
                sizes.append(to.stat().st_size)
            return read(size)

        return slowly

    slow = blobs.open(name)
    slow.read, blobs.open = copy_during(slow.read), lambda _: slow
    blobs.local_copy(name, to)
    assert (sizes[1], to.stat().st_size) == (3 << 20, 3 << 20)
    assert [path.name for path in to.parent.iterdir()] == [to.name]


def test_an_pending(api, client):
    half = len(ROWS) // 2
    pending = client.uploads.create(bytes=len(ROWS), filename="big.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    assert pending.status == "pending"
    assert pending.expires_at > time.time()
    second = client.uploads.parts.create(pending.id, data=ROWS[half:])
    first = client.uploads.parts.create(pending.id, data=ROWS[:half])
    with pytest.raises(openai.BadRequestError, match="bytes"):
        client.uploads.complete(pending.id, part_ids=[first.id])
    with pytest.raises(openai.BadRequestError, match="twice"):
        client.uploads.complete(pending.id, part_ids=[first.id, first.id])
    with pytest.raises(openai.BadRequestError, match="no part"):
        client.uploads.complete(pending.id, part_ids=[first.id, "part_other"])
    with pytest.raises(openai.BadRequestError, match="md5"):
        client.uploads.complete(pending.id, part_ids=[first.id, second.id], md5="0" * 32)
    with pytest.raises(openai.BadRequestError, match="more bytes"):
        client.uploads.parts.create(pending.id, data=b"x")
    digest = hashlib.md5(ROWS).hexdigest()
    done = client.uploads.complete(pending.id, part_ids=[first.id, second.id], md5=digest)
    assert done.status == "completed"
    assert client.files.content(done.file.id).read() == ROWS
    assert not [name for name in api.blobs() if name.startswith("part_")]
    for again in (
        lambda: client.uploads.complete(pending.id, part_ids=[first.id, second.id]),
        lambda: client.uploads.cancel(pending.id),
        lambda: client.uploads.parts.create(pending.id, data=b"x"),
    ):
        with pytest.raises(openai.BadRequestError, match="completed"):
            again()


def test_a_cancelled_or_invalid_upload_is_not_stored(api, client):
    before = api.blobs()
    pending = client.uploads.create(bytes=4, filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    part = client.uploads.parts.create(pending.id, data=b"nope")
    with pytest.raises(openai.BadRequestError, match="JSONL"):
        client.uploads.complete(pending.id, part_ids=[part.id])
    assert client.uploads.cancel(pending.id).status == "cancelled"
    other = client.uploads.create(bytes=1 << 19, filename="a.jsonl", mime_type="t", purpose="fine-tune")
    with pytest.raises(openai.APIStatusError) as raised:
        client.uploads.parts.create(other.id, data=b"x" * ((1 << 18) + 1))
    assert raised.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="larger"):
        client.uploads.create(bytes=1 << 21, filename="a.jsonl", mime_type="t", purpose="fine-tune")
    assert api.blobs() == before


def test_upload_file_chunked(client):
    done = client.uploads.upload_file_chunked(
        file=ROWS, filename="a.jsonl", bytes=len(ROWS), mime_type="t", purpose="fine-tune", part_size=100
    )
    assert client.files.content(done.file.id).read() == ROWS


def test_files_survive_a_restart(api, client):
    file = upload(client)
    listed = [file.id for file in client.files.list()]
    api.stop(9)
    api.start()
    assert [file.id for file in client.files.list()] == listed
    assert client.files.content(file.id).read() == ROWS


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "org/tiny"]
    assert client.models.retrieve("org/tiny").object == "model"
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("ft:tiny:local::abcd1234")
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("tiny")


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o700])
def test_content_of_an_existing_home_is_private(tmp_path, mode, caplog):
    """A home of an earlier version, or created by the user, with the usual modes."""
    home = tmp_path / "home"
    for folder in (home, *(home / name for name in ("jobs", "runs", "files", "logs"))):
        folder.mkdir()
        folder.chmod(mode)
    for name in ("store.sqlite3", "store.sqlite3-wal", "notes.txt"):
        (home / name).touch()
        (home / name).chmod(0o644)
    open_home(home)
    assert home.stat().st_mode & 0o777 == mode  # the user's other files may be meant for others
    modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()}
    assert modes == {
        **dict.fromkeys(("jobs", "runs", "files", "logs"), 0o700),
        **dict.fromkeys(("store.sqlite3", "store.sqlite3-wal"), 0o600),
        "notes.txt": 0o644,
    }
    assert ("jobs was accessible to other users" in caplog.text) is (mode != 0o700)
    assert "notes" not in caplog.text


@pytest.mark.parametrize("umask", [0o022, 0])
def test_everything_in_a_used_home_is_private(tmp_path, umask):
    before = os.umask(umask)
    try:
        settings = Settings(home=tmp_path / "home")
        open_home(settings.home)
        store = Store(settings.store_url)
        app = TestClient(create_app(settings, store), base_url="http://localhost")
        content = b'{"messages": []}\n' * 10
        uploaded = app.post("/v1/files", files={"file": ("rows.jsonl", content)}, data={"purpose": "fine-tune"})
        assert uploaded.status_code == 200
    finally:
        os.umask(before)
    assert any(path.name.startswith("file-") for path in (settings.home / "files").iterdir())
    assert {path.name: oct(path.stat().st_mode & 0o077) for path in settings.home.iterdir()} == dict.fromkeys(
        (path.name for path in settings.home.iterdir()), "0o0"
    )
    store.close()


def test_a_home_that_cannot_be_made_private_is_named(tmp_path, monkeypatch):
    (tmp_path / "jobs").mkdir(mode=0o755)
    (tmp_path / "jobs").chmod(0o755)

    def denied(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", denied)
    with pytest.raises(InputError, match=r"jobs, mode 755"):
        open_home(tmp_path)
