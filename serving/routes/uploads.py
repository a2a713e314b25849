"""/v1/uploads: upload of a large file in parts, joined in the order given by the `complete` request."""

import time
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from tunesmith.serving.errors import ApiError
from tunesmith.serving.files.form import read_form
from tunesmith.serving.files.incoming import Incoming, check_expiry, check_purpose, clean_name
from tunesmith.serving.names import make_id
from tunesmith.serving.objects.upload import UploadObject, UploadPart, part_object, upload_object
from tunesmith.serving.routes.context import Caller, CallerDep, Server, ServerDep, or_404
from tunesmith.serving.routes.object_route import ObjectRoute
from tunesmith.serving.store.tables import File, Part, Upload

router = APIRouter(prefix="/v1", tags=["uploads"], route_class=ObjectRoute)
EXPIRES_S = 3600
"""Time to complete an upload."""
MAX_PARTS = 10_000
PART = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


class ExpiresAfter(BaseModel):
    anchor: str
    seconds: int


class CreateUploadRequest(BaseModel):
    bytes: Annotated[int, Field(ge=1)]
    filename: Annotated[str, Field(min_length=1, max_length=1024)]
    mime_type: Annotated[str, Field(max_length=255)]
    purpose: str
    expires_after: ExpiresAfter | None = None


class CompleteUploadRequest(BaseModel):
    part_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_PARTS)]
    md5: str | None = None


@router.post("/uploads")
def create_upload(body: CreateUploadRequest, server: ServerDep, caller: CallerDep) -> UploadObject:
    filename = clean_name(body.filename)
    purpose = check_purpose(body.purpose, filename)
    after = body.expires_after
    expires = check_expiry(after.anchor, after.seconds) if after else None
    if body.bytes > (largest := server.settings.limits.max_file_bytes):
        raise ApiError(f"The file is larger than {largest} bytes", param="bytes", code="file_too_large")
    now = int(time.time())
    upload = Upload(id=make_id("upload_"), organization=caller.organization, created_at=now, expires_at=now + EXPIRES_S)
    upload.bytes, upload.filename, upload.purpose, upload.mime_type = body.bytes, filename, purpose, body.mime_type
    upload.expires_after_s, upload.status, upload.file_id = expires, "pending", None
    return upload_object(server.store.uploads.add(upload))


@router.post("/uploads/{upload_id}/parts", openapi_extra=PART)
async def add_part(upload_id: str, request: Request, server: ServerDep, caller: CallerDep) -> UploadPart:
    await to_thread.run_sync(_pending, server, caller, upload_id)
    part_id, limit = make_id("part_"), server.settings.limits.max_part_bytes
    writer, size = await to_thread.run_sync(server.blobs.writer, part_id), 0

    def sink(chunk: bytes) -> None:
        nonlocal size
        size += len(chunk)
        if size > limit:
            raise ApiError(f"A part must not exceed {limit} bytes", status=413, param="data", code="part_too_large")
        writer.write(chunk)

    try:
        form = await read_form(request.stream(), request.headers.get("content-type"), "data", sink)
        if form.filename is None:
            raise ApiError("Missing required parameter: 'data'", param="data")
        await to_thread.run_sync(writer.commit)
        part = Part(id=part_id, upload_id=upload_id, created_at=int(time.time()), bytes=size, blob=part_id)
        if (reason := await to_thread.run_sync(server.store.uploads.add_part, part, time.time())) is not None:
            await to_thread.run_sync(server.blobs.delete, part_id)
            raise _not_pending(upload_id, reason)
    except ClientDisconnect:
        raise ApiError("The client disconnected", status=400) from None
    finally:
        writer.discard()
    return part_object(part)


@router.post("/uploads/{upload_id}/complete")
def complete(upload_id: str, body: CompleteUploadRequest, server: ServerDep, caller: CallerDep) -> UploadObject:
    """Join the parts in the order of `part_ids`. Their total size must be the `bytes` of the upload."""
    upload = _pending(server, caller, upload_id)
    parts = {part.id: part for part in server.store.uploads.parts(upload_id)}
    if unknown := [id for id in body.part_ids if id not in parts]:
        raise ApiError(f"This upload has no part {unknown[0][:80]!r}", param="part_ids")
    if len(set(body.part_ids)) != len(body.part_ids):
        raise ApiError("A part is listed twice", param="part_ids")
    ordered = [parts[id] for id in body.part_ids]
    if (total := sum(part.bytes for part in ordered)) != upload.bytes:
        raise ApiError(f"The parts have {total} bytes, but the upload was created for {upload.bytes}", param="part_ids")
    incoming = Incoming(server.blobs, server.settings.limits.max_file_bytes)
    try:
        file = _join(server, upload, ordered, incoming, body.md5)
    finally:
        incoming.discard()
    for part in parts.values():
        server.blobs.delete(part.blob)
    upload.status, upload.file_id = "completed", file.id
    return upload_object(upload, file)


@router.post("/uploads/{upload_id}/cancel")
def cancel(upload_id: str, server: ServerDep, caller: CallerDep) -> UploadObject:
    upload = _pending(server, caller, upload_id)
    if not server.store.uploads.finish(upload_id, "cancelled"):
        raise _not_pending(upload_id, "completed")
    for part in server.store.uploads.parts(upload_id):
        server.blobs.delete(part.blob)
    upload.status = "cancelled"
    return upload_object(upload)


def _join(server: Server, upload: Upload, parts: list[Part], incoming: Incoming, md5: str | None) -> File:
    """Join the parts into a file. Raises ApiError if the content is invalid; the upload then stays pending."""
    try:
        for part in parts:
            for chunk in server.blobs.chunks(part.blob):
                incoming.feed(chunk)
    except FileNotFoundError:  # cancelled, completed or expired meanwhile
        raise _not_pending(upload.id, "cancelled") from None
    if md5 is not None and md5.lower() != incoming.md5:
        raise ApiError("The md5 of the joined parts does not match", param="md5", code="md5_mismatch")
    if upload.purpose == "fine-tune":
        incoming.require_jsonl()
    incoming.commit()
    row = incoming.row(upload.organization, upload.filename, upload.purpose, upload.expires_after_s)
    with server.store.begin() as session:
        finished = server.store.uploads.finish(upload.id, "completed", row.id, session=session)
        if finished:
            server.store.files.add(row, session)
    if not finished:  # a concurrent request finished first
        server.blobs.delete(incoming.id)
        raise _not_pending(upload.id, "completed")
    return row


def _pending(server: Server, caller: Caller, upload_id: str) -> Upload:
    row = server.store.uploads.get(upload_id, caller.organization)
    upload = or_404(row, f"No such Upload object: {upload_id[:80]}", param="upload_id")
    if upload.status != "pending" or upload.expires_at <= time.time():
        raise _not_pending(upload_id, "expired" if upload.status == "pending" else upload.status)
    return upload


def _not_pending(upload_id: str, reason: str) -> ApiError:
    if reason == "too large":
        return ApiError("The parts have more bytes than the upload was created for", param="data")
    return ApiError(f"The upload {upload_id[:80]} is {reason}", code=f"upload_{reason}")
