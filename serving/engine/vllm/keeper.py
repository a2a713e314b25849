"""Runs a command until standard input is closed: `python -P -m ...keeper COMMAND ...`.

A vLLM server would outlive a killed parent and keep the GPU memory allocated. The API holds the other end of the pipe:
when it is closed, for any reason, the command and its child processes are terminated.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

GRACE_S = 10.0
"""Time for the command to exit after SIGTERM."""


def main(command: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    code = process.wait()
    _signal_all(process, signal.SIGKILL)  # remaining child processes
    return code if code >= 0 else 128 - code


def _end_with_input(process: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 4096):
        pass
    _signal_all(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    _signal_all(process, signal.SIGKILL)


def _signal_all(process: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
