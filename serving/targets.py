"""From the `model` of a request to the weights that it means."""

from pathlib import Path

from tunesmith.inference.types import Target
from tunesmith.serving.errors import ApiError
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store


def find_target(settings: Settings, store: Store, organization: str, name: str) -> Target:
    """A base, a tuned model or a checkpoint by its name. Raises ApiError (404, `model_not_found`) where there
    is none, or it is another organization's."""
    if (base := settings.bases.get(name)) is not None:
        return Target(base)
    model = store.models.get(name, organization)
    if model is None:
        raise no_such_model(name)
    if (base := settings.bases.get(model.base)) is None:
        raise ApiError(
            f"The model '{name}' was tuned from '{model.base}', which this server does not have",
            status=404,
            param="model",
            code="model_not_found",
        )
    return Target(base, Path(model.adapter))


def no_such_model(name: str) -> ApiError:
    message = f"The model '{name[:200]}' does not exist or you do not have access to it"
    return ApiError(message, status=404, param="model", code="model_not_found")
