"""Static files of the web page. They contain no data and need no key; the page gets its data from the API."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tunesmith.serving.errors import ApiError

router = APIRouter(include_in_schema=False)
FOLDER = Path(__file__).resolve().parents[1] / "page"
MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
"""Content Security Policy: scripts, resources and requests only from and to this server; no framing."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""In addition to X-Content-Type-Options, which the middleware sets. no-cache: revalidate with the ETag."""


@dataclass(frozen=True)
class Asset:
    content: bytes
    media: str
    etag: str


def read_assets(folder: Path) -> dict[str, Asset]:
    """The files of the page by name; only types in MEDIA are served."""
    assets = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in MEDIA and path.is_file():
            content = path.read_bytes()
            assets[path.name] = Asset(content, MEDIA[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:20]}"')
    return assets


ASSETS = read_assets(FOLDER)


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    return _response(ASSETS["index.html"], request)


@router.api_route("/favicon.ico", methods=["GET", "HEAD"])
async def icon(request: Request) -> Response:
    return _response(ASSETS["icon.svg"], request)


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def asset(name: str, request: Request) -> Response:
    if name not in ASSETS:
        raise ApiError(f"The page has no file {name[:80]!r}", status=404, code="unknown_url")
    return _response(ASSETS[name], request)


def _response(asset: Asset, request: Request) -> Response:
    headers = {**HEADERS, "ETag": asset.etag}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media, headers=headers)
