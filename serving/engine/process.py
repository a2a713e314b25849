"""The inference process: `python -P -m tunesmith.serving.engine.process FD OPTIONS`, started by client.py.

FD: file descriptor of an inherited socket for messages. When its other end is closed, the process exits, so it never
outlives the API. OPTIONS: `EngineOptions` as JSON. Only this process imports torch.
"""

import json
import queue
import signal
import socket
import sys
import threading

from tunesmith.large_imports import garbage_collection_paused
from tunesmith.serving.engine.frames import HEARTBEAT_ID, Message, encode, read_frame
from tunesmith.serving.engine.heartbeat import Heartbeat, Progress
from tunesmith.serving.engine.protocol import EngineOptions


def main(arguments: list[str]) -> int:
    # The API handles Ctrl-C: it closes the socket after the last responses.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(arguments[0]))
    with garbage_collection_paused():
        from tunesmith.serving.engine.service import Service, best_device

    messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_all, args=(connection, messages), daemon=True)
    reader.start()
    options = EngineOptions(**json.loads(arguments[1]))
    sending, progress = threading.Lock(), Progress()

    def send(message: Message) -> None:
        with sending:
            connection.sendall(encode(message))

    service = Service(options, best_device(), send, progress)
    try:
        Heartbeat(progress, lambda beat: send({"id": HEARTBEAT_ID, "beat": beat})).start()
        service.run(messages)
    except (BrokenPipeError, ConnectionResetError):
        return 0
    return 0


def _read_all(connection: socket.socket, messages: "queue.SimpleQueue[Message | None]") -> None:
    try:
        while (message := read_frame(connection)) is not None:
            messages.put(message)
    finally:
        messages.put(None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
