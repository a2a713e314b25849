"""Upload and upload part objects of the API."""

from typing import Literal, TypedDict

from tunesmith.serving.objects.file import FileObject, file_object
from tunesmith.serving.store.tables import File, Part, Upload


class UploadObject(TypedDict):
    """file: set once the upload is completed."""

    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: FileObject | None


class UploadPart(TypedDict):
    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str


def upload_object(upload: Upload, file: File | None = None) -> UploadObject:
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": None if file is None else file_object(file),
    }


def part_object(part: Part) -> UploadPart:
    return {"id": part.id, "object": "upload.part", "created_at": part.created_at, "upload_id": part.upload_id}
