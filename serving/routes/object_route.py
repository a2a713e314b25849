"""Routes that answer with an object of `serving/objects/`.

    router = APIRouter(prefix="/v1", route_class=ObjectRoute)

FastAPI would check every answer against a TypedDict and drop what it does not name, also of objects that another
server sent. Here an answer is sent as the function gives it, and the OpenAPI description says "object".
"""

from collections.abc import Callable
from typing import Any, get_type_hints

from fastapi import Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.routing import APIRoute


class ObjectRoute(APIRoute):
    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any):
        answer = get_type_hints(endpoint).get("return")
        is_response = isinstance(answer, type) and issubclass(answer, Response)
        if isinstance(options.get("response_model"), DefaultPlaceholder) and not is_response:
            options["response_model"] = dict[str, Any]
        super().__init__(path, endpoint, **options)
