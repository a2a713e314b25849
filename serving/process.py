"""The processes of a server: this one answers, and keeps two others at work.

    API process       uvicorn: keys, files, jobs' state, the page; holds no torch
    supervisor        `serving/jobs/supervisor.py`: takes jobs from the store and follows their runs
    inference         `serving/engine/`: holds the models

A child that dies is started again; runs are nobody's children and go on without any of them.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.errors import InputError
from tunesmith.serving.app import create_app
from tunesmith.serving.engines import build_engine
from tunesmith.serving.files.expiry import sweep
from tunesmith.serving.routes.context import Server
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store

SUPERVISOR = "tunesmith.serving.jobs.supervisor"
SWEEP_S = 30.0
"""How often files and uploads are looked at whose time is over."""
GRACE_S = 10.0
"""For answers under way, and for the supervisor, once the server is asked to end."""
SHORT_LIFE_S, MAX_DELAY_S = 5.0, 30.0
"""A supervisor that lived shorter is started again after a pause, doubled each time up to this."""
_log = logging.getLogger("tunesmith.serving")


def serve(settings: Settings, tell: Callable[[str], None]) -> None:
    """Serve until a signal. `tell` gets the lines for whoever started it. Raises InputError where it must not start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Store(settings.store_url)
    try:
        require_keys(settings, store)
        with _listen(settings) as listening:
            asyncio.run(_serve(settings, store, listening, tell))
    finally:
        store.close()


def require_keys(settings: Settings, store: Store) -> None:
    """Raises InputError where others could reach a server that asks nobody for a key."""
    if not settings.on_loopback and not store.keys.any_valid():
        raise InputError(
            "without an API key the server does not listen beyond this machine",
            where=f"--host {settings.host}",
            remedy=f"make a key: tunesmith keys create NAME --home {settings.home}",
        )


def _listen(settings: Settings) -> socket.socket:
    """Bound before anything else is started, so that a taken port costs nothing. Raises InputError."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, address = found[0][0], found[0][4]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.set_inheritable(False)
    except OSError as error:
        raise InputError(
            f"the server cannot listen there: {error.strerror or error}",
            where=f"{settings.host}, port {settings.port}",
            remedy="name another with --host and --port",
        ) from None
    return listening


class ApiServer(uvicorn.Server):
    """Says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


class PatientProtocol(H11Protocol):
    """HTTP whose head must come in time: uvicorn itself waits for one forever."""

    HEAD_S = 20.0
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head = self.loop.call_later(self.HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # a request is under way: its head is here
            self._forget_head()
        elif self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(self.HEAD_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._forget_head()  # uvicorn's own clock of idle connections runs from here
        super().on_response_complete()

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


async def _serve(settings: Settings, store: Store, listening: socket.socket, tell: Callable[[str], None]) -> None:
    engine = build_engine(settings)
    app = create_app(settings, store, engine)
    scheme = "https" if settings.tls_cert else "http"
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host

    def ready() -> None:
        for line in _welcome(settings, store, f"{scheme}://{shown}:{port}/v1"):
            tell(line)

    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,  # the audit log says more, and no queries
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(GRACE_S),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    helpers = [asyncio.create_task(_keep_supervisor(settings)), asyncio.create_task(_keep_sweeping(app.state.server))]
    try:
        await ApiServer(config, ready).serve([listening])
    finally:
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        await engine.close()


def _welcome(settings: Settings, store: Store, url: str) -> list[str]:
    lines = [f"serving {url}"]
    if not settings.bases:
        lines.append("no base is named, so there is nothing to tune yet: --base NAME=PATH")
    if not store.keys.any_ever():
        lines.append("no API keys: this machine's programs may do everything; `tunesmith keys create NAME` makes one")
    if not settings.on_loopback and not settings.tls_cert:
        lines.append(
            "without TLS, keys and files travel in the clear: set tls_cert and tls_key, or put a proxy in front"
        )
    return lines


async def _keep_supervisor(settings: Settings) -> None:
    delay_s = 0.5
    while True:
        began = time.monotonic()
        try:
            process = await _start_supervisor(settings)
        except OSError:  # no room for its settings, or for one more process
            _log.exception("the supervisor could not be started; again in %.0f s", MAX_DELAY_S)
            await asyncio.sleep(MAX_DELAY_S)
            continue
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                await asyncio.shield(_end(process))
        lived_s = time.monotonic() - began
        delay_s = 0.5 if lived_s >= SHORT_LIFE_S else min(2 * delay_s, MAX_DELAY_S)
        _log.error("the supervisor ended with %d after %.1f s; it starts again in %.1f s", code, lived_s, delay_s)
        await asyncio.sleep(delay_s)


async def _start_supervisor(settings: Settings) -> asyncio.subprocess.Process:
    """The settings go over a file that has no name: they may hold a password of the database."""
    with tempfile.TemporaryFile() as file:
        file.write(settings.model_dump_json().encode("utf-8"))
        file.seek(0)
        command = (sys.executable, "-P", "-m", SUPERVISOR, "/dev/stdin", "--parent", str(os.getpid()))
        return await asyncio.create_subprocess_exec(*command, stdin=file, start_new_session=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), GRACE_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _keep_sweeping(server: Server) -> None:
    while True:
        try:
            await asyncio.to_thread(sweep, server.store, server.blobs)
        except Exception:  # a store or a bucket that does not answer comes back
            _log.exception("expired files could not be deleted")
        await asyncio.sleep(SWEEP_S)
