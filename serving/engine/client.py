"""Client of the embedded engine: starts, monitors and restarts the inference process.

Requests and responses go over a socket pair shared by the two processes. If the process exits (a crash, a kill, out of
memory), requests in flight fail with EngineUnavailable, and the next request starts a new process. A process that hangs
(`heartbeat.py`) is killed.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.inference import rendering
from tunesmith.inference.types import Chunk, Sampling, Target, TokenLogprob
from tunesmith.serving.engine.frames import HEARTBEAT_ID, BrokenFrame, Message, encode, read_frame_async
from tunesmith.serving.engine.heartbeat import BEAT_S, Pulse
from tunesmith.serving.engine.protocol import EngineBusy, EngineOptions, EngineRejected, EngineUnavailable
from tunesmith.serving.engine.rejections import engine_rejections
from tunesmith.serving.engine.wire import chunk_from_json, logprob_from_json, sampling_to_json, target_to_json
from tunesmith.threads import thread_environment

PROCESS = "tunesmith.serving.engine.process"
CLOSE_S = 5.0
"""Grace period for the process to exit after its socket is closed."""
MIN_UPTIME_S = 5.0
MAX_DELAY_S = 30.0
"""A process that exits within MIN_UPTIME_S is restarted after a delay, which doubles up to this maximum."""

_log = logging.getLogger("tunesmith.serving.engine")


class _Connection:
    """A running inference process and its pending requests."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        hang_s: float,
    ):
        self.process, self.reader, self.writer, self.pulse = process, reader, writer, Pulse(hang_s)
        self.inboxes: dict[int, asyncio.Queue[Message]] = {}
        self.started = asyncio.get_running_loop().time()
        self.is_closed = False
        self.end = "exited"
        """What happened to the process, for the error messages of its requests."""

    async def deliver(self) -> None:
        """Distribute messages until the process exits."""
        try:
            while (message := await read_frame_async(self.reader)) is not None:
                if message["id"] == HEARTBEAT_ID:
                    self.pulse.hear(message["beat"])
                elif inbox := self.inboxes.get(message["id"]):
                    inbox.put_nowait(message)
        except BrokenFrame:
            _log.exception("the inference process sent an invalid message")
        self.is_closed = True
        self.writer.close()
        for inbox in self.inboxes.values():
            inbox.put_nowait({"exited": self.end})

    async def kill_if_hanging(self) -> None:
        """Check the heartbeats until the process exits, and kill it if it hangs."""
        while not self.is_closed:
            await asyncio.sleep(BEAT_S)
            # Counted, not measured: while this process is suspended, the other one does not count as silent.
            if (fault := self.pulse.fault(BEAT_S)) is not None and not self.is_closed:
                _log.error("the inference process is killed and restarted: it %s", fault)
                self.end = "stopped responding"
                self.process.kill()
                return

    def post(self, message: Message) -> None:
        if self.is_closed or self.writer.is_closing():
            raise EngineUnavailable("The inference process has exited; it is being restarted.")
        self.writer.write(encode(message))


class EmbeddedEngine:
    """`Engine` with an inference process. Use it only from the event loop of `start` or of the first request."""

    def __init__(self, options: EngineOptions | None = None):
        self.options = options or EngineOptions()
        self._connection: _Connection | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._number = 0
        self._delay_s = 0.0
        self._next_start = 0.0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id of the inference process; None if it is not running."""
        return None if self._connection is None or self._connection.is_closed else self._connection.process.pid

    @property
    def is_running(self) -> bool:
        return self.pid is not None

    async def start(self) -> None:
        """Start the process now instead of with the first request."""
        await self._connected()

    async def render(
        self,
        target: Target,
        messages: Sequence[dict[str, Any]],
        tools: list[Any] | None,
        values: Mapping[str, Any] | None = None,
    ) -> list[int]:
        with engine_rejections():
            splits = self.options.split_special_tokens
            return await asyncio.to_thread(
                rendering.render_target, target, messages, tools, split_special_tokens=splits, values=values
            )

    async def tokenize(self, target: Target, text: str) -> list[int]:
        context, splits = rendering.context_of(target.base), self.options.split_special_tokens
        with engine_rejections():
            directory = rendering.tokenizer_dir(target)
            return await asyncio.to_thread(rendering.tokenize, directory, text, context, split_special_tokens=splits)

    async def generate(
        self, target: Target, prompt: Sequence[int], sampling: Sampling, caller: str = ""
    ) -> AsyncGenerator[Chunk, None]:
        request = {"target": target_to_json(target), "prompt": list(prompt), "sampling": sampling_to_json(sampling)}
        async with contextlib.aclosing(self._ask("generate", {**request, "caller": caller})) as responses:
            async for message in responses:
                chunk = chunk_from_json(message["piece"])
                yield chunk
                if chunk.finish is not None:
                    return

    async def prompt_logprobs(
        self, target: Target, prompt: Sequence[int], top: int, caller: str = ""
    ) -> list[TokenLogprob]:
        request = {"target": target_to_json(target), "prompt": list(prompt), "top": top, "caller": caller}
        message = await self._first("read", request)
        return [logprob_from_json(value) for value in message["read"]]

    async def unload(self, adapter: Path) -> None:
        rendering.evict(adapter)
        if self._connection is not None and not self._connection.is_closed:  # without a process, no adapter is loaded
            with contextlib.suppress(EngineUnavailable):
                await self._first("forget", {"adapter": str(adapter)})

    async def facts(self) -> dict[str, Any]:
        """Memory usage and load of the process; see `Service.facts`."""
        return (await self._first("facts", {}))["facts"]

    async def close(self) -> None:
        """Stop the process; requests in flight fail with EngineUnavailable."""
        self._closed = True
        async with self._starting:
            connection, watcher = self._connection, self._watcher
        if connection is None or watcher is None:
            return
        connection.writer.close()
        try:
            await asyncio.wait_for(connection.process.wait(), CLOSE_S)
        except TimeoutError:
            connection.process.kill()
        await watcher

    async def _first(self, kind: str, request: Message) -> Message:
        async with contextlib.aclosing(self._ask(kind, request)) as responses:
            async for message in responses:
                return message
        raise EngineUnavailable("The inference process did not respond.")

    async def _ask(self, kind: str, request: Message) -> AsyncGenerator[Message, None]:
        """Yield the responses to a message. If the caller stops early, the request is cancelled."""
        connection = await self._connected()
        self._number += 1
        number, inbox = self._number, asyncio.Queue[Message]()
        connection.inboxes[number] = inbox
        is_complete = False
        try:
            connection.post({"kind": kind, "id": number, **request})
            while True:
                message = await inbox.get()
                is_complete = "piece" not in message or message["piece"]["finish"] is not None
                _raise_if_failed(message)
                yield message
        finally:
            del connection.inboxes[number]
            if not is_complete and not connection.is_closed:
                with contextlib.suppress(EngineUnavailable):
                    connection.post({"kind": "cancel", "number": number})

    async def _connected(self) -> _Connection:
        """The running process, or a new one. Raises EngineUnavailable during the restart delay."""
        async with self._starting:
            if self._closed:
                raise EngineUnavailable("The server is shutting down.")
            if self._connection is not None and not self._connection.is_closed:
                return self._connection
            if asyncio.get_running_loop().time() < self._next_start:
                raise EngineUnavailable("The inference process exits at startup; it will be retried shortly.")
            self._connection = await self._start()
            self._watcher = asyncio.create_task(self._watch(self._connection))
            return self._connection

    async def _start(self) -> _Connection:
        local, remote = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", PROCESS, str(remote.fileno()), json.dumps(asdict(self.options))),
                pass_fds=(remote.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **thread_environment()},
                start_new_session=True,
            )
            reader, writer = await asyncio.open_unix_connection(sock=local)
        except BaseException:
            local.close()
            raise
        finally:
            remote.close()
        _log.info("inference process started, pid %d", process.pid)
        return _Connection(process, reader, writer, self.options.hang_s)

    async def _watch(self, connection: _Connection) -> None:
        monitor = asyncio.create_task(connection.kill_if_hanging())
        await connection.deliver()
        monitor.cancel()
        code = await connection.process.wait()
        if self._closed:
            return
        now = asyncio.get_running_loop().time()
        is_short = now - connection.started < MIN_UPTIME_S
        self._delay_s = min(MAX_DELAY_S, 2 * self._delay_s or 0.5) if is_short else 0.0
        self._next_start = now + self._delay_s
        _log.error("the inference process exited (%s); the next request restarts it", _exit_reason(code))


def _raise_if_failed(message: Message) -> None:
    if "exited" in message:
        text = f"The inference process {message['exited']} during the request; it is being restarted. Please try again."
        raise EngineUnavailable(text)
    if "unavailable" in message:
        raise EngineUnavailable(message["unavailable"])
    if "busy" in message:
        raise EngineBusy(f"{message['busy']} requests are already waiting.")
    if "refused" in message:
        raise EngineRejected(message["refused"], message["code"], message["param"])


def _exit_reason(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
