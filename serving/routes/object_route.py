"""Routes that return an object of `serving/objects/`.

    router = APIRouter(prefix="/v1", route_class=ObjectRoute)

FastAPI would validate every response against its TypedDict and drop unknown keys, even from objects of another server.
Here a response is sent as returned, and the OpenAPI schema is "object".
"""

from collections.abc import Callable
from typing import Any, get_type_hints

from fastapi import Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.routing import APIRoute


class ObjectRoute(APIRoute):
    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any):
        returned = get_type_hints(endpoint).get("return")
        is_response = isinstance(returned, type) and issubclass(returned, Response)
        if isinstance(options.get("response_model"), DefaultPlaceholder) and not is_response:
            options["response_model"] = dict[str, Any]
        super().__init__(path, endpoint, **options)
