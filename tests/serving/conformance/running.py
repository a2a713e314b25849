"""`tunesmith serve` in a separate process with the tiny model, and a proxy that injects faults."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from tests.warm_processes.pool import python_path

ROOT = Path(__file__).resolve().parents[3]
COMMAND = (sys.executable, "-P", "-m", "tunesmith.cli.main")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(cache: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": python_path(ROOT), "TUNESMITH_CACHE": str(cache), **more}


def run_cli(*arguments: str, timeout_s: float = 500, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=env or {**os.environ, "PYTHONPATH": python_path(ROOT)},
    )


@contextmanager
def serving(home: Path, base: Path, cache: Path, name: str = "org/tiny") -> Iterator[str]:
    """Run a server. Yields its URL, `http://.../v1`. name: of the base model."""
    port, home = free_port(), home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "settings.yaml"
    settings.write_text(
        f"home: {home}\nport: {port}\nbases:\n  {name}: {base}\nlimits:\n  requests_per_minute: 100000\n"
    )
    with open(home / "serve.log", "w") as log:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--config", str(settings)],
            env=environment(cache),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{address}/healthz", timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None, (home / "serve.log").read_text()
                time.sleep(0.1)
        yield f"{address}/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(300)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@dataclass
class Response:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass
class Request:
    method: str
    path: str
    query: bytes
    headers: dict[str, str]
    body: bytes
    response: Response | None = None
    """Set by a fault that replaces the response; the request is then not forwarded."""


@dataclass
class Fault:
    """A fault of a server. method, path: of the affected requests."""

    method: str
    path: str
    response: Callable[[Response], None] = lambda _: None
    request: Callable[[Request], None] = lambda _: None
    state: dict[str, Any] = field(default_factory=dict)

    def matches(self, request: Request) -> bool:
        return request.method == self.method and re.fullmatch(self.path, request.path) is not None


class Proxy:
    """An ASGI proxy that applies `fault` to requests and responses."""

    def __init__(self, origin: str):
        self.origin, self.fault = origin.removesuffix("/v1"), None

    fault: Fault | None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = await self._read(scope, receive)
        fault = self.fault if self.fault and self.fault.matches(request) else None
        if fault:
            fault.request(request)
        response = request.response or await self._forward(request)
        if fault:
            fault.response(response)
        headers = [(k, v) for k, v in response.headers if k not in (b"content-length", b"transfer-encoding")]
        headers.append((b"content-length", str(len(response.body)).encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    async def _read(self, scope: Any, receive: Any) -> Request:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {k.decode(): v.decode() for k, v in scope["headers"] if k not in (b"host", b"content-length")}
        return Request(scope["method"], scope["path"], scope["query_string"], headers, body)

    async def _forward(self, request: Request) -> Response:
        url = f"{self.origin}{request.path}?{request.query.decode()}"
        async with httpx.AsyncClient(timeout=300) as http:
            response = await http.request(
                request.method, url, headers={**request.headers, "accept-encoding": "identity"}, content=request.body
            )
        headers = [(k.lower(), v) for k, v in response.headers.raw]
        return Response(response.status_code, headers, response.content)


@contextmanager
def proxied(origin: str) -> Iterator[tuple[Proxy, str]]:
    """Run a proxy in front of a server. Yields the proxy and its URL."""
    proxy, port = Proxy(origin), free_port()
    server = uvicorn.Server(uvicorn.Config(proxy, port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield proxy, f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join(30)
