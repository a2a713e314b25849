"""/v1/files: training and validation files, and result files of jobs."""

from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from tunesmith.serving.errors import ApiError
from tunesmith.serving.files.expiry import delete_file
from tunesmith.serving.files.form import Form, read_form
from tunesmith.serving.files.incoming import Incoming, check_expiry, check_purpose, clean_name
from tunesmith.serving.objects.file import FileObject, file_object
from tunesmith.serving.objects.list_page import Deleted, ListPage
from tunesmith.serving.paging import cursor, limit_of, page
from tunesmith.serving.routes.context import Caller, CallerDep, KnownQuery, Server, ServerDep, or_404
from tunesmith.serving.routes.object_route import ObjectRoute
from tunesmith.serving.store.tables import File

router = APIRouter(prefix="/v1", tags=["files"], route_class=ObjectRoute)
MAX_LIMIT = 10_000
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string"},
                        "expires_after[anchor]": {"type": "string"},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}


@router.post("/files", openapi_extra=FORM)
async def create_file(request: Request, server: ServerDep, caller: CallerDep) -> FileObject:
    """Upload a file. For the purpose `fine-tune` it must be `.jsonl`, and every line is validated."""
    incoming = await to_thread.run_sync(Incoming, server.blobs, server.settings.limits.max_file_bytes)
    try:
        form = await read_form(request.stream(), request.headers.get("content-type"), "file", incoming.feed)
        return await to_thread.run_sync(_save, server, caller, incoming, form)
    except ClientDisconnect:
        raise ApiError("The client disconnected", status=400) from None
    finally:
        incoming.discard()


def _save(server: Server, caller: Caller, incoming: Incoming, form: Form) -> FileObject:
    if form.filename is None:
        raise ApiError("Missing required parameter: 'file'", param="file")
    filename = clean_name(form.filename)
    purpose = check_purpose(form.fields.get("purpose"), filename)
    expires = check_expiry(form.fields.get("expires_after[anchor]"), form.fields.get("expires_after[seconds]"))
    if purpose == "fine-tune":
        incoming.require_jsonl()
    incoming.commit()
    return file_object(server.store.files.add(incoming.row(caller.organization, filename, purpose, expires)))


@router.get("/files", dependencies=[KnownQuery])
def list_files(
    server: ServerDep,
    caller: CallerDep,
    after: str | None = None,
    limit: int = MAX_LIMIT,
    order: Annotated[Literal["asc", "desc"], Query()] = "desc",
    purpose: str | None = None,
) -> ListPage[FileObject]:
    files, organization = server.store.files, caller.organization
    start = cursor(after, lambda id: files.get(id, organization, also_expired=True))
    newest_first = order == "desc"
    rows = files.list(organization, start, limit_of(limit, MAX_LIMIT), newest_first=newest_first, purpose=purpose)
    return page(rows, file_object)


@router.get("/files/{file_id}")
def retrieve_file(file_id: str, server: ServerDep, caller: CallerDep) -> FileObject:
    return file_object(_file(server, caller, file_id))


@router.delete("/files/{file_id}")
def delete(file_id: str, server: ServerDep, caller: CallerDep) -> Deleted:
    """Delete a file, unless an unfinished job needs it."""
    file = _file(server, caller, file_id)
    if (job := delete_file(server.store, server.blobs, file)) is not None:
        raise ApiError(f"The file {file.id} is used by the unfinished job {job}", code="file_in_use")
    return {"id": file.id, "object": "file", "deleted": True}


@router.get("/files/{file_id}/content", response_class=StreamingResponse)
def content(file_id: str, server: ServerDep, caller: CallerDep) -> StreamingResponse:
    file = _file(server, caller, file_id)
    chunks = server.blobs.chunks(file.blob)
    try:
        first = next(chunks, b"")
    except FileNotFoundError:
        raise ApiError(f"The content of {file.id} was deleted", status=404, code="file_not_found") from None

    def body() -> Iterator[bytes]:
        yield first
        yield from chunks

    headers = {
        "Content-Length": str(file.bytes),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
    }
    return StreamingResponse(body(), media_type="application/octet-stream", headers=headers)


def _file(server: Server, caller: Caller, file_id: str) -> File:
    row = server.store.files.get(file_id, caller.organization)
    return or_404(row, f"No such File object: {file_id[:80]}", param="id")
