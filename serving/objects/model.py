"""The API's model object: a base model of this server, or a tuned one."""

from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from tunesmith.serving.store.tables import Model


class ModelObject(TypedDict):
    """parent: of a tuned model, what it was tuned from."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: NotRequired[str | None]


def base_model_object(name: str, path: Path) -> ModelObject:
    """path: of its weights, whose last change is its time of creation; 0 where they cannot be read."""
    try:
        created = int(path.stat().st_mtime)
    except OSError:
        created = 0
    return {"id": name, "object": "model", "created": created, "owned_by": "system"}


def tuned_model_object(model: Model) -> ModelObject:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_at,
        "owned_by": model.organization,
        "parent": model.parent,
    }
