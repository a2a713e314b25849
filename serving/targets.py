"""Resolve the `model` of a request to weights."""

from pathlib import Path

from tunesmith.inference.types import Target
from tunesmith.serving.errors import ApiError
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store


def find_target(settings: Settings, store: Store, organization: str, name: str) -> Target:
    """Find a base, a tuned model or a checkpoint by name. Raises ApiError (404, `model_not_found`) if it does not
    exist or belongs to another organization."""
    if (base := settings.bases.get(name)) is not None:
        return Target(base)
    model = store.models.get(name, organization)
    if model is None:
        raise no_such_model(name)
    if (base := settings.bases.get(model.base)) is None:
        raise ApiError(
            f"The model '{name}' was fine-tuned from '{model.base}', which is not a base model of this server",
            status=404,
            param="model",
            code="model_not_found",
        )
    return Target(base, Path(model.adapter))


def no_such_model(name: str) -> ApiError:
    message = f"The model '{name[:200]}' does not exist or you do not have access to it"
    return ApiError(message, status=404, param="model", code="model_not_found")
