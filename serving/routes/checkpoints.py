"""Checkpoint permissions of projects, as in the hosted API."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query

from tunesmith.serving.errors import ApiError
from tunesmith.serving.jobs.creation import require_storable
from tunesmith.serving.names import make_id
from tunesmith.serving.objects.fine_tuning import CheckpointPermission, permission_object
from tunesmith.serving.objects.list_page import Deleted, ListPage
from tunesmith.serving.paging import cursor, limit_of, page, page_of
from tunesmith.serving.routes.context import Caller, CallerDep, KnownQuery, Server, ServerDep, or_404
from tunesmith.serving.routes.object_route import ObjectRoute
from tunesmith.serving.store.tables import Permission

router = APIRouter(prefix="/v1/fine_tuning/checkpoints", tags=["fine-tuning"], route_class=ObjectRoute)
LARGEST_PAGE = 100
MAX_PROJECTS, MAX_PROJECT = 100, 128


@router.post("/{checkpoint}/permissions")
def create_permissions(
    checkpoint: str, server: ServerDep, caller: CallerDep, body: Annotated[Any, Body()] = None
) -> ListPage[CheckpointPermission]:
    """Add permissions: `{"project_ids": [...]}`. Existing permissions are kept."""
    name = _name_of(server, caller, checkpoint)
    rows = []
    for project in _projects(body):
        row = Permission(id=make_id("cp_"), organization=caller.organization, created_at=int(time.time()))
        row.checkpoint, row.project_id = name, project
        rows.append(server.store.permissions.add(row))
    return page_of(permission_object(row) for row in rows)


@router.get("/{checkpoint}/permissions", dependencies=[KnownQuery])
def list_permissions(
    checkpoint: str,
    server: ServerDep,
    caller: CallerDep,
    after: str | None = None,
    limit: Annotated[int, Query()] = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: str | None = None,
) -> ListPage[CheckpointPermission]:
    name = _name_of(server, caller, checkpoint)
    for param, value in (("after", after), ("project_id", project_id)):
        require_storable(value or "", param)
    start = cursor(after, lambda id: server.store.permissions.get(id, name))
    listed = server.store.permissions.list(
        name,
        start,
        limit_of(limit, LARGEST_PAGE),
        newest_first=order == "descending",
        project_id=project_id,
    )
    return page(listed, permission_object)


@router.delete("/{checkpoint}/permissions/{permission_id}")
def delete_permission(checkpoint: str, permission_id: str, server: ServerDep, caller: CallerDep) -> Deleted:
    name = _name_of(server, caller, checkpoint)
    require_storable(permission_id, "permission_id")
    row = or_404(server.store.permissions.get(permission_id, name), f"No such permission: {permission_id[:80]}")
    server.store.permissions.delete(row.id)
    return {"id": row.id, "object": "checkpoint.permission", "deleted": True}


def _name_of(server: Server, caller: Caller, checkpoint: str) -> str:
    """The name of a checkpoint of the caller's organization, given its id or name. Raises ApiError (404)."""
    require_storable(checkpoint, "fine_tuned_model_checkpoint")
    row = server.store.checkpoints.get(checkpoint)
    owner = server.store.jobs.get(row.job_id, caller.organization) if row is not None else None
    name = row.name if row is not None and owner is not None else None
    return or_404(name, f"No such checkpoint: {checkpoint[:200]}", code="checkpoint_not_found")


def _projects(body: Any) -> list[str]:
    projects = body.get("project_ids") if isinstance(body, dict) else None
    if not isinstance(projects, list) or not projects or len(projects) > MAX_PROJECTS:
        raise ApiError(f"`project_ids` must be a list of 1 to {MAX_PROJECTS} ids.", param="project_ids")
    for project in projects:
        if not isinstance(project, str) or not 0 < len(project) <= MAX_PROJECT:
            raise ApiError(
                "`project_ids` contains a value that is not an id.", param="project_ids", code="invalid_type"
            )
        require_storable(project, "project_ids")
    return list(dict.fromkeys(projects))
