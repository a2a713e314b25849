"""Framing of messages between the API and the inference process: a length of four bytes, then JSON."""

import asyncio
import json
import socket
import struct
from typing import Any

MAX_BYTES = 256 * 1024 * 1024
"""A prompt of a million token ids is about 8 MB; a longer message is an error of the sender."""
HEARTBEAT_ID = 0
"""`id` of heartbeats; requests have positive ids."""
_LENGTH = struct.Struct(">I")

Message = dict[str, Any]


class BrokenFrame(Exception):
    """The received data is not a valid message."""


def encode(message: Message) -> bytes:
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return _LENGTH.pack(len(body)) + body


def read_frame(connection: socket.socket) -> Message | None:
    """The next message; None if the connection is closed, even in the middle of a message."""
    head = _read_exactly(connection, _LENGTH.size)
    if head is None:
        return None
    body = _read_exactly(connection, _length(head))
    return None if body is None else _decoded(body)


async def read_frame_async(reader: asyncio.StreamReader) -> Message | None:
    """Asynchronous version of `read_frame`."""
    try:
        head = await reader.readexactly(_LENGTH.size)
        return _decoded(await reader.readexactly(_length(head)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _length(head: bytes) -> int:
    (length,) = _LENGTH.unpack(head)
    if length > MAX_BYTES:
        raise BrokenFrame(f"a message of {length} bytes")
    return length


def _decoded(body: bytes) -> Message:
    try:
        message = json.loads(body.decode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise BrokenFrame(str(error)) from error
    if not isinstance(message, dict):
        raise BrokenFrame("a message that is not an object")
    return message


def _read_exactly(connection: socket.socket, num_bytes: int) -> bytes | None:
    parts, left = [], num_bytes
    while left:
        try:
            part = connection.recv(min(left, 1 << 20))
        except ConnectionError:
            return None
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
