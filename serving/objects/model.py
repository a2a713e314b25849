"""Model object of the API: a base model of this server, or a fine-tuned model."""

from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from tunesmith.serving.store.tables import Model


class ModelObject(TypedDict):
    """parent: of a fine-tuned model, the model it was trained from."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: NotRequired[str | None]


def base_model_object(name: str, path: Path) -> ModelObject:
    """path: of the weights, whose modification time becomes `created`; 0 if they are unreadable."""
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
