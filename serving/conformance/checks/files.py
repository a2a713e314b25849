"""Files: multipart uploads, lists, contents, and validation at upload."""

import time

from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.pages import paged
from tunesmith.serving.conformance.rows import as_jsonl, chat_rows
from tunesmith.serving.conformance.shapes import expect_error, require_shape

FIELDS = ("id", "bytes", "created_at", "filename", "purpose", "status")


def _object(bench: Bench) -> None:
    content = as_jsonl(chat_rows(10))
    file = bench.file(content, "shape.jsonl")
    require_shape(file, FIELDS)
    require(file.id.startswith("file-"), f"the id is {file.id!r}")
    require_equal((file.bytes, file.filename, file.purpose), (len(content), "shape.jsonl", "fine-tune"), "the file")
    require_equal(require_shape(bench.client.files.retrieve(file.id))["id"], file.id, "the id")


def _content(bench: Bench) -> None:
    content = as_jsonl(chat_rows(300)) + '{"messages": [], "text": "é 漢字 \U0001f3b5"}\n'.encode()
    file = bench.file(content)
    require(bench.client.files.content(file.id).read() == content, "the content differs from the upload")


def _pages(bench: Bench) -> None:
    ids = [bench.file(chat_rows(10, first=n)).id for n in range(3)]
    ascending = paged(bench.client.files.list(purpose="fine-tune", order="asc", limit=1))
    listed = [file.id for file in ascending if file.id in ids]
    require_equal(listed, ids, "the list in ascending order with one file per page")
    newest = [file.id for file in paged(bench.client.files.list(purpose="fine-tune", limit=2))]
    require_equal([id for id in newest if id in ids], ids[::-1], "the list, newest first")
    first = bench.client.files.list(limit=1, order="desc")
    require(first.has_more is True and len(first.data) == 1, "has_more is not true after the first page")
    following = bench.client.files.list(limit=1, order="asc", after=ids[1])
    require_equal(following.data[0].id, ids[2], "the file after the cursor")


def _purpose(bench: Bench) -> None:
    other = bench.file(b"notes", "notes.txt", purpose="user_data").id
    listed = {file.id for file in paged(bench.client.files.list(purpose="fine-tune"))}
    require(other not in listed, "a list filtered by purpose contains files of another purpose")
    require(
        other in {file.id for file in paged(bench.client.files.list(purpose="user_data"))},
        "a list filtered by purpose lacks a file",
    )


def _expiry(bench: Bench) -> None:
    file = bench.file(chat_rows(10), expires_after={"anchor": "created_at", "seconds": 3600})
    require_equal(file.expires_at, file.created_at + 3600, "expires_at")
    too_short = {"anchor": "created_at", "seconds": 1}
    expect_error(
        lambda: bench.strict.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune", expires_after=too_short)  # pyright: ignore
    )


def _not_jsonl(bench: Bench) -> None:
    for content in (b"not json\n", b"[1, 2]\n", b'{"messages": []}\n{"mess\n', b""):
        expect_error(lambda c=content: bench.strict.files.create(file=("a.jsonl", c), purpose="fine-tune"))


def _extension(bench: Bench) -> None:
    content = as_jsonl(chat_rows(10))
    expect_error(lambda: bench.strict.files.create(file=("rows.csv", content), purpose="fine-tune"))


def _delete(bench: Bench) -> None:
    file = bench.file(chat_rows(10))
    deleted = bench.client.files.delete(file.id)
    require_shape(deleted)
    require(deleted.deleted is True and deleted.id == file.id, f"the response is {deleted!r}")
    expect_error(lambda: bench.strict.files.retrieve(file.id), 404)
    expect_error(lambda: bench.strict.files.content(file.id), 404)
    expect_error(lambda: bench.strict.files.delete(file.id), 404)


def _parts(bench: Bench) -> None:
    content = as_jsonl(chat_rows(40))
    upload = bench.upload(bytes=len(content), filename="parts.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    require_shape(upload)
    require_equal(upload.status, "pending", "the status")
    middle = len(content) // 2
    second = bench.client.uploads.parts.create(upload.id, data=content[middle:])
    first = bench.client.uploads.parts.create(upload.id, data=content[:middle])
    require_shape(first)
    done = bench.client.uploads.complete(upload.id, part_ids=[first.id, second.id])
    require_shape(done)
    require(done.status == "completed" and done.file is not None, f"the status is {done.status}, the file {done.file}")
    assert done.file is not None
    bench.will_remove_file(done.file.id)
    require(bench.client.files.content(done.file.id).read() == content, "the parts are not in the order of part_ids")


def _broken_parts(bench: Bench) -> None:
    upload = bench.upload(bytes=100, filename="short.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    part = bench.client.uploads.parts.create(upload.id, data=b'{"a": 1}\n')
    expect_error(lambda: bench.strict.uploads.complete(upload.id, part_ids=[part.id]))
    cancelled = bench.client.uploads.cancel(upload.id)
    require_equal(cancelled.status, "cancelled", "the status")
    expect_error(lambda: bench.strict.uploads.parts.create(upload.id, data=b"{}\n"), (400, 404))


def _created_now(bench: Bench) -> None:
    file = bench.file(chat_rows(10))
    age_s = time.time() - file.created_at
    require(abs(age_s) < 24 * 3600, f"created_at is {age_s:.0f} s ago; it must be in seconds since the epoch")


CHECKS = (
    Check("files: object", "POST, GET /files: id (`file-`), bytes, created_at, filename, purpose, status", _object),
    Check("files: content", "GET /files/{id}/content returns the uploaded bytes", _content),
    Check("files: pages", "GET /files: `after`, `limit`, `order`; `has_more` until the last page", _pages),
    Check("files: purpose", "GET /files: `purpose`", _purpose),
    Check("files: expires_after", "POST /files: `expires_after` sets expires_at", _expiry),
    Check("files: times", "created_at is in seconds since the epoch", _created_now),
    Check("files: not JSONL", "a file that is not JSON Lines returns 400 at upload", _not_jsonl),
    Check("files: extension", "training files must have the extension `.jsonl`", _extension),
    Check("files: delete", "DELETE /files/{id}: deleted, then 404", _delete),
    Check("uploads: parts", "POST /uploads, parts, complete: the file has the order of part_ids", _parts),
    Check(
        "uploads: refused", "an incomplete upload cannot be completed; a cancelled one accepts no parts", _broken_parts
    ),
)
