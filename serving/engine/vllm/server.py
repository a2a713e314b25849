"""The vLLM server of one base: started here and kept running, or one that somebody else runs; and its adapters."""

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

from tunesmith.serving.engine.protocol import EngineRejected, EngineUnavailable
from tunesmith.serving.engine.vllm.messages import Json, failure

KEEPER = "tunesmith.serving.engine.vllm.keeper"
START_S = 900.0
"""In which a started server must answer: it reads weights and captures graphs first."""
POLL_S = 0.25
SHORT_LIFE_S, MAX_DELAY_S = 30.0, 60.0
"""A server that lived shorter is started again after a delay, doubled each time up to this."""
MAX_RANK = 64
"""Largest rank of an adapter, unless `engine_arguments` say another `--max-lora-rank`: vLLM reserves memory for it."""

_log = logging.getLogger("tunesmith.serving.engine")


@dataclass(frozen=True)
class VllmOptions:
    """command: what starts vLLM. arguments: added to it. logs: a directory. max_adapters: known to one server at once;
    those used longest ago go. max_places: answers written at once by one server."""

    command: tuple[str, ...]
    logs: Path
    arguments: tuple[str, ...] = ()
    max_places: int = 32
    max_waiting: int = 1024
    max_adapters: int = 64


class VllmServer:
    """url: of a server that runs already; None: it is started here. Raises EngineUnavailable if it is unreachable."""

    def __init__(self, base: Path, options: VllmOptions, url: str | None = None):
        self.base, self.options, self.url = base, options, url
        self.model, self.context = str(base), 0
        """The name that the server gives to the base, and its longest sequence in tokens."""
        self.process: asyncio.subprocess.Process | None = None
        self.loaded: OrderedDict[str, Path] = OrderedDict()
        """Adapters that the server knows, by the name they have there; the least recently used first."""
        self._uses: Counter[str] = Counter()
        self._http: httpx.AsyncClient | None = None
        self._reaching: asyncio.Task[httpx.AsyncClient] | None = None
        self._loading = asyncio.Lock()
        self._delay_s = self._next_start = 0.0
        self._closed = False

    @contextlib.asynccontextmanager
    async def using(self, adapter: Path | None) -> AsyncGenerator[str, None]:
        """The name of the base or of an adapter, which the server knows by then, and keeps as long. Raises
        EngineRejected where it does not take the adapter."""
        http = await self.living()
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

    async def events(self, asked: Json) -> AsyncGenerator[Json, None]:
        """What the server streams as an answer. Closing it early lets vLLM give the answer up."""
        http = await self.living()
        try:
            async with http.stream("POST", "/v1/completions", json=asked) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise self._failed(response, asked["model"])
                async for data in _data_lines(response):
                    if data == "[DONE]":
                        return
                    event = json.loads(data)
                    if "error" in event:
                        raise failure(int(event["error"].get("code") or 500), event)
                    yield event
        except (httpx.HTTPError, ValueError) as error:
            raise _gone(error) from error

    async def answer(self, asked: Json) -> Json:
        """A whole answer."""
        http = await self.living()
        try:
            response = await http.post("/v1/completions", json=asked)
            if response.status_code != 200:
                raise self._failed(response, asked["model"])
            return response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise _gone(error) from error

    async def unload(self, adapter: Path) -> None:
        """Whatever names the adapter had, the server does not know them any more."""
        for name in [name for name, path in self.loaded.items() if path == adapter]:
            await self._unload(name)

    async def living(self) -> httpx.AsyncClient:
        """A client of the server, which answers; started where it does not run."""
        if self._closed:
            raise EngineUnavailable("The server is being shut down.")
        if self._http is not None:
            return self._http
        if self._reaching is None or self._reaching.done():
            self._reaching = asyncio.create_task(self._reach())
        return await asyncio.shield(self._reaching)  # a caller that leaves does not undo what the next one needs

    async def close(self) -> None:
        self._closed = True
        if self._reaching is not None:
            self._reaching.cancel()
            await asyncio.gather(self._reaching, return_exceptions=True)
        if self._http is not None:
            await self._http.aclose()
        await self._end()

    async def _reach(self) -> httpx.AsyncClient:
        if self.url is not None:
            self._http = await self._connected(self.url, os.environ.get("VLLM_API_KEY", ""))
            return self._http
        loop = asyncio.get_running_loop()
        if loop.time() < self._next_start:
            raise EngineUnavailable("The inference server exits at startup; it will be retried shortly.")
        began = loop.time()
        key, port = secrets.token_urlsafe(32), _free_port()
        self.process = await self._start(port, key)
        try:
            self._http = await self._connected(f"http://127.0.0.1:{port}", key)
        except BaseException:
            await self._end()
            self._pause(began)
            raise
        self._watcher = asyncio.create_task(self._watch(self.process, began))
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
        _log.info("vLLM is started for %s, pid %d; its words go to %s", self.base, process.pid, log)
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

    async def _connected(self, url: str, key: str) -> httpx.AsyncClient:
        """Raises EngineUnavailable where it does not answer in time, or its process ends."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(None, connect=10.0)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.options.max_places)
        http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, limits=limits, trust_env=False)
        try:
            async with asyncio.timeout(START_S):
                while not await self._answers(http):
                    if self.url is not None:
                        raise EngineUnavailable(f"The inference server at {url} does not answer.")
                    if self.process is None or self.process.returncode is not None:
                        raise EngineUnavailable("The inference server ended while it was started; its log says why.")
                    await asyncio.sleep(POLL_S)
        except BaseException as error:
            await http.aclose()
            if isinstance(error, TimeoutError):
                raise EngineUnavailable(f"The inference server did not answer within {START_S:g} s.") from error
            raise
        return http

    async def _answers(self, http: httpx.AsyncClient) -> bool:
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

    async def _watch(self, process: asyncio.subprocess.Process, began: float) -> None:
        code = await process.wait()
        if self._closed:
            return
        http, self._http = self._http, None
        self.loaded.clear()
        self._pause(began)
        if http is not None:
            await http.aclose()
        _log.error("the inference server of %s ended with %d; the next request starts it again", self.base, code)

    def _pause(self, began: float) -> None:
        now = asyncio.get_running_loop().time()
        self._delay_s = min(MAX_DELAY_S, 2 * self._delay_s or 0.5) if now - began < SHORT_LIFE_S else 0.0
        self._next_start = now + self._delay_s

    async def _end(self) -> None:
        if self.process is not None and self.process.returncode is None:
            assert self.process.stdin is not None
            self.process.stdin.close()  # the keeper ends it
            await self.process.wait()

    async def _load(self, http: httpx.AsyncClient, name: str, adapter: Path) -> None:
        async with self._loading:
            if name in self.loaded:
                self.loaded.move_to_end(name)
                return
            asked = {"lora_name": name, "lora_path": str(adapter)}
            try:
                response = await http.post("/v1/load_lora_adapter", json=asked)
            except httpx.HTTPError as error:
                raise _gone(error) from error
            if response.status_code != 200:
                failed = failure(response.status_code, _json(response))
                if not isinstance(failed, EngineRejected) or "already been loaded" not in failed.message:
                    # vLLM answers 500 for what it does not know, such as DoRA or a rank beyond its limit.
                    raise EngineRejected(f"vLLM does not serve this adapter: {failed}") from failed
            self.loaded[name] = adapter
            for spare in [one for one in self.loaded if not self._uses[one]][: self._excess()]:
                await self._unload(spare)

    def _excess(self) -> int:
        return max(0, len(self.loaded) - self.options.max_adapters)

    async def _unload(self, name: str) -> None:
        self.loaded.pop(name, None)
        if self._http is not None:
            with contextlib.suppress(httpx.HTTPError):  # a server that is gone has forgotten everything
                await self._http.post("/v1/unload_lora_adapter", json={"lora_name": name})

    def _failed(self, response: httpx.Response, model: str) -> Exception:
        if response.status_code == 404:
            self.loaded.pop(model, None)  # it was restarted by whoever runs it; the next request brings the adapter
            return EngineUnavailable("The inference server has unloaded this model; it will be loaded again.")
        return failure(response.status_code, _json(response))


def name_of(adapter: Path) -> str:
    """Under which vLLM knows an adapter: another one where its files change."""
    try:
        changed = (adapter / "adapter_model.safetensors").stat().st_mtime_ns
    except OSError:
        changed = 0
    return f"adapter-{hashlib.sha256(f'{adapter} {changed}'.encode()).hexdigest()[:24]}"


async def _data_lines(response: httpx.Response) -> AsyncGenerator[str, None]:
    """What stands behind `data:`. Lines end with a line feed alone: a text may hold other separators."""
    held = b""
    async for piece in response.aiter_bytes():
        *lines, held = (held + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].decode("utf-8").strip()


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return {"message": response.text[:500]}


def _gone(error: Exception) -> EngineUnavailable:
    return EngineUnavailable(f"The inference server ended while it answered ({type(error).__name__}).")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
