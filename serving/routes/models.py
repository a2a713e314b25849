"""/v1/models: base models and the models fine-tuned from them."""

import shutil
from pathlib import Path

from anyio import to_thread
from fastapi import APIRouter

from tunesmith.serving.errors import ApiError
from tunesmith.serving.objects.list_page import Deleted, ListPage
from tunesmith.serving.objects.model import ModelObject, base_model_object, tuned_model_object
from tunesmith.serving.paging import page_of
from tunesmith.serving.routes.context import Caller, CallerDep, Server, ServerDep
from tunesmith.serving.routes.object_route import ObjectRoute
from tunesmith.serving.store.tables import Model
from tunesmith.serving.targets import no_such_model

router = APIRouter(prefix="/v1", tags=["models"], route_class=ObjectRoute)


@router.get("/models")
def list_models(server: ServerDep, caller: CallerDep) -> ListPage[ModelObject]:
    """All models in one page, as in the hosted API: bases first, then tuned models, without checkpoints."""
    bases = [base_model_object(name, path) for name, path in server.settings.bases.items()]
    return page_of([*bases, *(tuned_model_object(model) for model in server.store.models.list(caller.organization))])


@router.get("/models/{name:path}")
def retrieve_model(name: str, server: ServerDep, caller: CallerDep) -> ModelObject:
    if (base := server.settings.bases.get(name)) is not None:
        return base_model_object(name, base)
    if (model := server.store.models.get(name, caller.organization)) is None:
        raise no_such_model(name)
    return tuned_model_object(model)


@router.delete("/models/{name:path}")
async def delete_model(name: str, server: ServerDep, caller: CallerDep) -> Deleted:
    """Delete a tuned model with its checkpoints, or one checkpoint: its name, its files, and the loaded adapter."""
    deleted = await to_thread.run_sync(_delete_rows, server, caller, name)
    for model in deleted:
        if server.engine is not None:
            await server.engine.unload(Path(model.adapter))
        await to_thread.run_sync(_delete_files, server, Path(model.adapter))
    return {"id": name, "object": "model", "deleted": True}


def _delete_rows(server: Server, caller: Caller, name: str) -> list[Model]:
    if name in server.settings.bases:
        raise ApiError(f"'{name}' is a base model and cannot be deleted through the API", status=403, param="model")
    with server.store.begin() as session:
        if server.store.models.get(name, caller.organization, session) is None:
            raise no_such_model(name)
        for job in server.store.jobs.stacked_on(name, session):
            raise ApiError(f"The unfinished job {job} continues from '{name}'", param="model", code="model_in_use")
        return list(server.store.models.delete(name, session))


def _delete_files(server: Server, adapter: Path) -> None:
    """Delete an adapter directory, if it is inside the server's home."""
    home = server.settings.home.resolve()
    if home in adapter.resolve().parents:
        shutil.rmtree(adapter, ignore_errors=True)
