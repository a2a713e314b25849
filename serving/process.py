"""The server's processes. The API process runs here and restarts the two others when they exit.

    API process       uvicorn: keys, files, job state, the web page; does not import torch
    supervisor        `serving/jobs/supervisor.py`: claims jobs from the store and monitors their runs
    inference         `serving/engine/`: loads the models

Training runs are detached processes: they keep running when any of these exits.
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

import uvicorn

from tunesmith.errors import InputError
from tunesmith.serving.app import create_app
from tunesmith.serving.engines import build_engine
from tunesmith.serving.files.expiry import sweep
from tunesmith.serving.home import open_home
from tunesmith.serving.http_protocol import HttpProtocol
from tunesmith.serving.routes.context import Server
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store

SUPERVISOR = "tunesmith.serving.jobs.supervisor"
SWEEP_S = 30.0
"""Interval between deletions of expired files and uploads."""
GRACE_S = 10.0
"""Shutdown grace period for responses in progress and for the supervisor."""
MIN_UPTIME_S, MAX_DELAY_S = 5.0, 30.0
"""A supervisor that exits sooner is restarted with exponential backoff, up to MAX_DELAY_S."""
_log = logging.getLogger("tunesmith.serving")


def serve(settings: Settings, print_line: Callable[[str], None]) -> None:
    """Serve until a signal arrives. print_line: receives the startup messages.

    Raises InputError if no key protects a public address, or if the address is in use.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    open_home(settings.home)
    store = Store(settings.store_url)
    try:
        require_keys(settings, store)
        with listen(settings) as listening:
            asyncio.run(_serve(settings, store, listening, print_line))
    finally:
        store.close()


def require_keys(settings: Settings, store: Store) -> None:
    """Raises InputError if the server would listen on a public address without any API key."""
    if not settings.on_loopback and not store.keys.any_valid():
        raise InputError(
            "listening beyond loopback requires an API key",
            where=f"--host {settings.host}",
            remedy=f"create one: tunesmith keys create NAME --home {settings.home}",
        )


def listen(settings: Settings) -> socket.socket:
    """Bind the socket, before anything else starts, so that a port in use is reported at once. Raises InputError."""
    try:
        infos = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, address = infos[0][0], infos[0][4]
        # The protocol is given so that asyncio sets TCP_NODELAY on accepted connections.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.set_inheritable(False)
    except OSError as error:
        raise InputError(
            f"cannot listen on this address: {error.strerror or error}",
            where=f"{settings.host}, port {settings.port}",
            remedy="choose another with --host and --port",
        ) from None
    return listening


class ApiServer(uvicorn.Server):
    """A uvicorn server that calls `ready` once it accepts connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


async def _serve(settings: Settings, store: Store, listening: socket.socket, print_line: Callable[[str], None]) -> None:
    engine = build_engine(settings)
    app = create_app(settings, store, engine)
    scheme = "https" if settings.tls_cert else "http"
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host

    def ready() -> None:
        for line in _welcome(settings, store, f"{scheme}://{shown}:{port}/v1"):
            print_line(line)

    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        log_config=None,
        access_log=False,  # the audit log is more detailed, and omits query strings
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(GRACE_S),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    tasks = [asyncio.create_task(_keep_supervisor(settings)), asyncio.create_task(_keep_sweeping(app.state.server))]
    try:
        await ApiServer(config, ready).serve([listening])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.close()


def _welcome(settings: Settings, store: Store, url: str) -> list[str]:
    lines = [f"serving {url}"]
    if not settings.bases:
        lines.append("no base models are configured, so jobs cannot be created: add one with --base NAME=PATH")
    if not store.keys.any_ever():
        lines.append("no API keys: local programs have full access; create a key with `tunesmith keys create NAME`")
    if not settings.on_loopback and not settings.tls_cert:
        lines.append("without TLS, keys and files are sent unencrypted: set tls_cert and tls_key, or use a TLS proxy")
    return lines


async def _keep_supervisor(settings: Settings) -> None:
    delay_s = 0.5
    while True:
        started_at = time.monotonic()
        try:
            process = await _start_supervisor(settings)
        except OSError:  # no disk space for its settings, or the process limit is reached
            _log.exception("the supervisor could not be started; retrying in %.0f s", MAX_DELAY_S)
            await asyncio.sleep(MAX_DELAY_S)
            continue
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                await asyncio.shield(_stop(process))
        uptime_s = time.monotonic() - started_at
        delay_s = 0.5 if uptime_s >= MIN_UPTIME_S else min(2 * delay_s, MAX_DELAY_S)
        _log.error("the supervisor exited with %d after %.1f s; restarting in %.1f s", code, uptime_s, delay_s)
        await asyncio.sleep(delay_s)


async def _start_supervisor(settings: Settings) -> asyncio.subprocess.Process:
    """Start the supervisor. The settings are passed in an unnamed file: they may contain a database password."""
    with tempfile.TemporaryFile() as file:
        file.write(settings.model_dump_json().encode("utf-8"))
        file.seek(0)
        command = (sys.executable, "-P", "-m", SUPERVISOR, "/dev/stdin", "--parent", str(os.getpid()))
        return await asyncio.create_subprocess_exec(*command, stdin=file, start_new_session=True)


async def _stop(process: asyncio.subprocess.Process) -> None:
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
        except Exception:  # the store or the bucket may be unreachable for a while
            _log.exception("expired files could not be deleted; retrying in %.0f s", SWEEP_S)
        await asyncio.sleep(SWEEP_S)
