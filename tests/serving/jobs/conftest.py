"""Shared services: their jobs are real runs of a tiny model."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.serving.jobs.service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory, tiny_llama) -> Iterator[Service]:
    patch = pytest.MonkeyPatch()
    patch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.getbasetemp() / "tunesmith-cache"))
    service = Service(tmp_path_factory.mktemp("server"), tiny_llama, max_jobs=2).start()
    yield service
    service.close()
    patch.undo()


@pytest.fixture
def receiver():
    """A real HTTP server that responds with the statuses in `codes`, then 200; it records requests in `received`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            server.received.append((body, dict(self.headers)))
            self.send_response(server.codes.pop(0) if server.codes else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.received, server.codes = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
