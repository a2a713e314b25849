"""Runs a command for as long as somebody holds its standard input: `python -P -m ...keeper COMMAND ...`.

A server of vLLM outlives a parent that was killed, and holds the GPU's memory. The API holds the other end of the pipe;
where it closes, for whatever reason, the command and all that it started is ended.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

PATIENCE_S = 10.0
"""For the command to end by itself."""


def main(command: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    code = process.wait()
    _signal_all(process, signal.SIGKILL)  # what it left behind
    return code if code >= 0 else 128 - code


def _end_with_input(process: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 4096):
        pass
    _signal_all(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE_S)
    _signal_all(process, signal.SIGKILL)


def _signal_all(process: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
