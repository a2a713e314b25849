"""The inference process: `python -P -m tunesmith.serving.engine.process FD OPTIONS`, started by client.py.

FD: number of an inherited socket, on which messages come and go; where its other end closes, the process ends, so it
never outlives the API. OPTIONS: `EngineOptions` as JSON. Nothing but this process loads torch.
"""

import json
import queue
import signal
import socket
import sys
import threading

from tunesmith.serving.engine.frames import Message, encode, read_frame
from tunesmith.serving.engine.protocol import EngineOptions


def main(arguments: list[str]) -> int:
    # Ctrl-C in the terminal is the API's to act upon: it closes the socket when the last answers are out.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(arguments[0]))
    from tunesmith.serving.engine.service import Service, best_device

    messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_all, args=(connection, messages), daemon=True)
    reader.start()
    options = EngineOptions(**json.loads(arguments[1]))
    service = Service(options, best_device(), lambda word: connection.sendall(encode(word)))
    try:
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
