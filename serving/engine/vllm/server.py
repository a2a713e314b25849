"""The vLLM server of one base model, started here or external, and its adapters."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import socket
import sys
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tunesmith.errors import RunFault
from tunesmith.model_files import require_undamaged
from tunesmith.serving.engine.protocol import EngineRejected, EngineUnavailable
from tunesmith.serving.engine.rejections import as_rejection
from tunesmith.serving.engine.vllm.messages import Json, failure

KEEPER = "tunesmith.serving.engine.vllm.keeper"
START_S = 900.0
"""Startup timeout: the server loads weights and captures CUDA graphs first."""
POLL_S = 0.25
HEALTH_CHECKS = 8
"""Checks of a server's health until it counts as hanging; one answer in time is enough."""
MIN_UPTIME_S, MAX_DELAY_S = 30.0, 60.0
"""A server that exits within MIN_UPTIME_S is restarted after a delay, which doubles up to MAX_DELAY_S."""
MAX_RANK = 64
"""Maximum adapter rank, for which vLLM reserves memory; `--max-lora-rank` in `engine_arguments` overrides it."""

_log = logging.getLogger("tunesmith.serving.engine")


@dataclass(frozen=True)
class VllmOptions:
    """command: starts vLLM. arguments: appended to it. logs: directory. max_adapters: loaded by one server; the least
    recently used are unloaded. max_places: maximum number of concurrent generations of one server. hang_s: a server
    that was started here and does not answer /health for that long is restarted. split_special_tokens: as in a
    recipe."""

    command: tuple[str, ...]
    logs: Path
    arguments: tuple[str, ...] = ()
    max_places: int = 32
    max_waiting: int = 1024
    max_adapters: int = 64
    hang_s: float = 120.0
    split_special_tokens: bool = True


class VllmServer:
    """url: of an external server; None: start one. Raises EngineUnavailable if the server is unreachable."""

    def __init__(self, base: Path, options: VllmOptions, url: str | None = None):
        self.base, self.options, self.url = base, options, url
        self.model, self.context = str(base), 0
        """Name of the base model on the server, and its context length in tokens."""
        self.process: asyncio.subprocess.Process | None = None
        self.loaded: OrderedDict[str, Path] = OrderedDict()
        """Adapters loaded by the server, by their name on it, least recently used first."""
        self._uses: Counter[str] = Counter()
        self._http: httpx.AsyncClient | None = None
        self._connecting: asyncio.Task[httpx.AsyncClient] | None = None
        self._health: asyncio.Task[None] | None = None
        self._loading = asyncio.Lock()
        self._delay_s = self._next_start = 0.0
        self._closed = False

    @property
    def is_connected(self) -> bool:
        """Whether the server has started and has not been found to fail since."""
        return self._http is not None

    @contextlib.asynccontextmanager
    async def using(self, adapter: Path | None) -> AsyncGenerator[str, None]:
        """Name of the base or of an adapter on the server; the adapter stays loaded within the block. Raises
        EngineRejected if the server rejects the adapter."""
        http = await self.connected()
        if adapter is None:
            yield self.model
            return
        name = name_of(adapter)
        self._uses[name] += 1
        try:
            await self._load(http, name, adapter)
            yield name
        finally:
            self._uses[name] -= 1
            if not self._uses[name]:
                del self._uses[name]

    async def events(self, request: Json) -> AsyncGenerator[Json, None]:
        """Stream the events of a completion. Closing the generator early cancels it."""
        http = await self.connected()
        try:
            async with http.stream("POST", "/v1/completions", json=request) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise self._failed(response, request["model"])
                async for data in _data_lines(response):
                    if data == "[DONE]":
                        return
                    event = json.loads(data)
                    if "error" in event:
                        raise failure(int(event["error"].get("code") or 500), event)
                    yield event
        except (httpx.HTTPError, ValueError) as error:
            raise _gone(error) from error

    async def complete(self, request: Json) -> Json:
        """A completion without streaming."""
        http = await self.connected()
        try:
            response = await http.post("/v1/completions", json=request)
            if response.status_code != 200:
                raise self._failed(response, request["model"])
            return response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise _gone(error) from error

    async def unload(self, adapter: Path) -> None:
        """Unload the adapter under all of its names."""
        for name in [name for name, path in self.loaded.items() if path == adapter]:
            await self._unload(name)

    async def connected(self) -> httpx.AsyncClient:
        """A client connected to the server, which is started if necessary."""
        if self._closed:
            raise EngineUnavailable("The server is shutting down.")
        if self._http is not None:
            return self._http
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
        return await asyncio.shield(self._connecting)  # a cancelled caller must not cancel the startup for the next one

    async def close(self) -> None:
        self._closed = True
        if self._health is not None:
            self._health.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._http is not None:
            await self._http.aclose()
        await self._end()

    async def _connect(self) -> httpx.AsyncClient:
        if self.url is not None:
            self._http = await self._wait_until_ready(self.url, os.environ.get("VLLM_API_KEY", ""))
            return self._http
        loop = asyncio.get_running_loop()
        if loop.time() < self._next_start:
            raise EngineUnavailable("The inference server exits at startup; it will be retried shortly.")
        started = loop.time()
        key, port = secrets.token_urlsafe(32), _free_port()
        self.process = await self._start(port, key)
        try:
            self._http = await self._wait_until_ready(f"http://127.0.0.1:{port}", key)
        except BaseException:
            await self._end()
            self._pause(started)
            raise
        self._watcher = asyncio.create_task(self._watch(self.process, started))
        self._health = asyncio.create_task(self._end_if_hanging(self.process, self._http))
        return self._http

    async def _start(self, port: int, key: str) -> asyncio.subprocess.Process:
        self.options.logs.mkdir(parents=True, exist_ok=True)
        log = self.options.logs / f"vllm-{hashlib.sha256(str(self.base).encode()).hexdigest()[:8]}.log"
        variables = {"VLLM_API_KEY": key, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1"}
        with open(log, "ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", KEEPER, *self._command(port)),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **variables},
                start_new_session=True,
            )
        _log.info("starting vLLM for %s, pid %d; log: %s", self.base, process.pid, log)
        return process

    def _command(self, port: int) -> list[str]:
        options = self.options
        return [
            *(*options.command, "serve", str(self.base), "--served-model-name", str(self.base)),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--enable-lora", "--max-lora-rank", str(MAX_RANK), "--max-cpu-loras", str(options.max_adapters)),
            *("--max-loras", "8", "--max-num-seqs", str(options.max_places)),
            *("--generation-config", "vllm", "--structured-outputs-config", '{"backend": "guidance"}'),
            *options.arguments,
        ]

    async def _wait_until_ready(self, url: str, key: str) -> httpx.AsyncClient:
        """A client, once the server responds. Raises EngineUnavailable on timeout, or if the process exits."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(None, connect=10.0)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.options.max_places)
        http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, limits=limits, trust_env=False)
        try:
            async with asyncio.timeout(START_S):
                while not await self._is_ready(http):
                    if self.url is not None:
                        raise EngineUnavailable(f"The inference server at {url} does not respond.")
                    if self.process is None or self.process.returncode is not None:
                        raise EngineUnavailable("The inference server exited during startup; see its log.")
                    await asyncio.sleep(POLL_S)
        except BaseException as error:
            await http.aclose()
            if isinstance(error, TimeoutError):
                raise EngineUnavailable(f"The inference server did not respond within {START_S:g} s.") from error
            raise
        return http

    async def _is_ready(self, http: httpx.AsyncClient) -> bool:
        try:
            if (await http.get("/health")).status_code != 200:
                return False
            response = await http.get("/v1/models")
        except httpx.TransportError:
            return False
        if response.status_code != 200:
            raise failure(response.status_code, _json(response))
        cards = response.json()["data"]
        first = next(card for card in cards if not card.get("parent"))
        self.model, self.context = first["id"], first["max_model_len"]
        self.loaded = OrderedDict((card["id"], Path(card["root"])) for card in cards if card.get("parent"))
        return True

    async def _watch(self, process: asyncio.subprocess.Process, started: float) -> None:
        code = await process.wait()
        if self._closed:
            return
        http, self._http = self._http, None
        self.loaded.clear()
        self._pause(started)
        if http is not None:
            await http.aclose()
        _log.error("the inference server of %s exited with code %d; the next request restarts it", self.base, code)

    async def _end_if_hanging(self, process: asyncio.subprocess.Process, http: httpx.AsyncClient) -> None:
        every_s = self.options.hang_s / HEALTH_CHECKS
        silent_s = 0.0
        while process.returncode is None and not http.is_closed:
            await asyncio.sleep(every_s)
            try:
                await http.get("/health", timeout=every_s)
                silent_s = 0.0
            except (httpx.HTTPError, RuntimeError):  # RuntimeError: closed meanwhile
                silent_s += every_s
            if silent_s >= self.options.hang_s and process is self.process:
                _log.error("the inference server of %s is restarted: no answer for %.0f s", self.base, silent_s)
                await self._end()

    def _pause(self, started: float) -> None:
        now = asyncio.get_running_loop().time()
        self._delay_s = min(MAX_DELAY_S, 2 * self._delay_s or 0.5) if now - started < MIN_UPTIME_S else 0.0
        self._next_start = now + self._delay_s

    async def _end(self) -> None:
        if self.process is not None and self.process.returncode is None:
            assert self.process.stdin is not None
            self.process.stdin.close()  # the keeper terminates the server
            await self.process.wait()

    async def _load(self, http: httpx.AsyncClient, name: str, adapter: Path) -> None:
        async with self._loading:
            if name in self.loaded:
                self.loaded.move_to_end(name)
                return
            try:
                await asyncio.to_thread(require_undamaged, adapter)
            except RunFault as error:
                raise as_rejection(error) from error
            request = {"lora_name": name, "lora_path": str(adapter)}
            try:
                response = await http.post("/v1/load_lora_adapter", json=request)
            except httpx.HTTPError as error:
                raise _gone(error) from error
            if response.status_code != 200:
                error = failure(response.status_code, _json(response))
                if not isinstance(error, EngineRejected) or "already been loaded" not in error.message:
                    # vLLM returns 500 for unsupported adapters, such as DoRA or a rank above its limit.
                    raise EngineRejected(f"vLLM does not support this adapter: {error}") from error
            self.loaded[name] = adapter
            for unused in [other for other in self.loaded if not self._uses[other]][: self._excess()]:
                await self._unload(unused)

    def _excess(self) -> int:
        return max(0, len(self.loaded) - self.options.max_adapters)

    async def _unload(self, name: str) -> None:
        self.loaded.pop(name, None)
        if self._http is not None:
            with contextlib.suppress(httpx.HTTPError):  # a server that has exited has no adapters loaded
                await self._http.post("/v1/unload_lora_adapter", json={"lora_name": name})

    def _failed(self, response: httpx.Response, model: str) -> Exception:
        if response.status_code == 404:
            self.loaded.pop(model, None)  # an external server was restarted; the next request loads the adapter again
            return EngineUnavailable("The inference server has unloaded this model; it will be loaded again.")
        return failure(response.status_code, _json(response))


def name_of(adapter: Path) -> str:
    """Name of an adapter in vLLM, which changes with its files."""
    try:
        changed = (adapter / "adapter_model.safetensors").stat().st_mtime_ns
    except OSError:
        changed = 0
    return f"adapter-{hashlib.sha256(f'{adapter} {changed}'.encode()).hexdigest()[:24]}"


async def _data_lines(response: httpx.Response) -> AsyncGenerator[str, None]:
    """Payloads of `data:` lines. Only a line feed ends a line: text may contain other line separators."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].decode("utf-8").strip()


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return {"message": response.text[:500]}


def _gone(error: Exception) -> EngineUnavailable:
    return EngineUnavailable(f"The inference server failed during the request ({type(error).__name__}).")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
