"""`/metrics` for Prometheus. It shows numbers of all organizations, so its key needs a scope of its own."""

from fastapi import APIRouter
from fastapi.responses import Response

from tunesmith.serving.routes.context import ServerDep

router = APIRouter(include_in_schema=False)


@router.get("/metrics")
def get_metrics(server: ServerDep) -> Response:
    text = server.metrics.text(server.store, server.settings, server.engine)
    return Response(text, media_type=server.metrics.content_type)
