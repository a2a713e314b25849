"""The embedded engine as the API sees it: starts the inference process, watches it, starts it again.

Requests and answers go over a socket pair that only the two processes hold. Where the process ends, by a crash, a kill
or for want of memory, all that is in flight hears EngineUnavailable, and the next request finds a new process.
"""

import asyncio
import contextlib
import json
import logging
import socket
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.inference import rendering
from tunesmith.inference.types import Chunk, Sampling, Target, TokenLogprob
from tunesmith.serving.engine.frames import BrokenFrame, Message, encode, read_frame_async
from tunesmith.serving.engine.protocol import EngineBusy, EngineOptions, EngineRejected, EngineUnavailable
from tunesmith.serving.engine.rejections import engine_rejections
from tunesmith.serving.engine.wire import chunk_from_json, logprob_from_json, sampling_to_json, target_to_json

PROCESS = "tunesmith.serving.engine.process"
CLOSE_S = 5.0
"""How long the process may take to end by itself once its socket is closed."""
SHORT_LIFE_S = 5.0
MAX_DELAY_S = 30.0
"""A process that lived shorter than SHORT_LIFE_S is started again after a delay, doubled each time up to this."""

_log = logging.getLogger("tunesmith.serving.engine")
_GONE: Message = {"gone": True}


class _Life:
    """One inference process, from its start to its end."""

    def __init__(self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.process, self.reader, self.writer = process, reader, writer
        self.inboxes: dict[int, asyncio.Queue[Message]] = {}
        self.started = asyncio.get_running_loop().time()
        self.over = False

    async def deliver(self) -> None:
        """Hand out messages until the process has gone."""
        try:
            while (message := await read_frame_async(self.reader)) is not None:
                if inbox := self.inboxes.get(message["id"]):
                    inbox.put_nowait(message)
        except BrokenFrame:
            _log.exception("the inference process sent what is no message")
        self.over = True
        self.writer.close()
        for inbox in self.inboxes.values():
            inbox.put_nowait(_GONE)

    def post(self, message: Message) -> None:
        if self.over or self.writer.is_closing():
            raise EngineUnavailable("The inference process has just ended; it is being started again.")
        self.writer.write(encode(message))


class EmbeddedEngine:
    """Implements `Engine`. Usable from the event loop on which `start` or the first request ran."""

    def __init__(self, options: EngineOptions | None = None):
        self.options = options or EngineOptions()
        self._life: _Life | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._number = 0
        self._delay_s = 0.0
        self._next_start = 0.0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the inference process; None where none runs."""
        return None if self._life is None or self._life.over else self._life.process.pid

    async def start(self) -> None:
        """Start the process now rather than with the first request."""
        await self._living()

    async def render(self, target: Target, messages: Sequence[dict[str, Any]], tools: list[Any] | None) -> list[int]:
        with engine_rejections():
            return await asyncio.to_thread(rendering.render_target, target, messages, tools)

    async def tokenize(self, target: Target, text: str) -> list[int]:
        most = rendering.context_of(target.base)
        with engine_rejections():
            return await asyncio.to_thread(rendering.tokenize, rendering.tokenizer_dir(target), text, most)

    async def generate(
        self, target: Target, prompt: Sequence[int], sampling: Sampling, caller: str = ""
    ) -> AsyncGenerator[Chunk, None]:
        asked = {"target": target_to_json(target), "prompt": list(prompt), "sampling": sampling_to_json(sampling)}
        async with contextlib.aclosing(self._ask("generate", {**asked, "caller": caller})) as answers:
            async for message in answers:
                chunk = chunk_from_json(message["piece"])
                yield chunk
                if chunk.finish is not None:
                    return

    async def prompt_logprobs(
        self, target: Target, prompt: Sequence[int], top: int, caller: str = ""
    ) -> list[TokenLogprob]:
        asked = {"target": target_to_json(target), "prompt": list(prompt), "top": top, "caller": caller}
        message = await self._first("read", asked)
        return [logprob_from_json(value) for value in message["read"]]

    async def unload(self, adapter: Path) -> None:
        rendering.evict(adapter)
        if self._life is not None and not self._life.over:  # a process that is not there holds no adapter
            with contextlib.suppress(EngineUnavailable):
                await self._first("forget", {"adapter": str(adapter)})

    async def facts(self) -> dict[str, Any]:
        """What the process holds in memory, see `Service.facts`."""
        return (await self._first("facts", {}))["facts"]

    async def close(self) -> None:
        """End the process; what is in flight hears EngineUnavailable."""
        self._closed = True
        async with self._starting:
            life, watcher = self._life, self._watcher
        if life is None or watcher is None:
            return
        life.writer.close()
        try:
            await asyncio.wait_for(life.process.wait(), CLOSE_S)
        except TimeoutError:
            life.process.kill()
        await watcher

    async def _first(self, kind: str, asked: Message) -> Message:
        async with contextlib.aclosing(self._ask(kind, asked)) as answers:
            async for message in answers:
                return message
        raise EngineUnavailable("The inference process did not answer.")

    async def _ask(self, kind: str, asked: Message) -> AsyncGenerator[Message, None]:
        """The answers to a message, as long as somebody takes them; then the process is told to stop."""
        life = await self._living()
        self._number += 1
        number, inbox = self._number, asyncio.Queue[Message]()
        life.inboxes[number] = inbox
        ended = False
        try:
            life.post({"kind": kind, "id": number, **asked})
            while True:
                message = await inbox.get()
                ended = "piece" not in message or message["piece"]["finish"] is not None
                _raise_where_it_failed(message)
                yield message
        finally:
            del life.inboxes[number]
            if not ended and not life.over:
                with contextlib.suppress(EngineUnavailable):
                    life.post({"kind": "cancel", "number": number})

    async def _living(self) -> _Life:
        """The running process, or a new one. Raises EngineUnavailable during the restart delay."""
        async with self._starting:
            if self._closed:
                raise EngineUnavailable("The server is being shut down.")
            if self._life is not None and not self._life.over:
                return self._life
            if asyncio.get_running_loop().time() < self._next_start:
                raise EngineUnavailable("The inference process exits at startup; it will be retried shortly.")
            self._life = await self._start()
            self._watcher = asyncio.create_task(self._watch(self._life))
            return self._life

    async def _start(self) -> _Life:
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", PROCESS, str(theirs.fileno()), json.dumps(asdict(self.options))),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        _log.info("the inference process runs, pid %d", process.pid)
        return _Life(process, reader, writer)

    async def _watch(self, life: _Life) -> None:
        await life.deliver()
        code = await life.process.wait()
        if self._closed:
            return
        now = asyncio.get_running_loop().time()
        short = now - life.started < SHORT_LIFE_S
        self._delay_s = min(MAX_DELAY_S, 2 * self._delay_s or 0.5) if short else 0.0
        self._next_start = now + self._delay_s
        _log.error("the inference process ended (%s); the next request starts it again", _how(code))


def _raise_where_it_failed(message: Message) -> None:
    if "gone" in message:
        raise EngineUnavailable("The inference process ended while it answered; it is being started again.")
    if "busy" in message:
        raise EngineBusy(f"{message['busy']} requests are waiting already.")
    if "refused" in message:
        raise EngineRejected(message["refused"], message["code"], message["param"])


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
