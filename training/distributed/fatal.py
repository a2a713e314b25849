"""How a rank identifies itself in errors, and how it terminates when other threads are blocked."""

import faulthandler
import os
import socket
import sys
import time

from tunesmith.errors import ExitCode, TunesmithError


def this_rank(rank: int) -> str:
    """Return `rank R on HOST` for messages."""
    return f"rank {rank} on {socket.gethostname()}"


def terminate(error: TunesmithError, *, stacks: bool, wait_s: float = 0.0) -> None:
    """Exit this process immediately, even if other threads are blocked. The error is printed last.

    stacks: print the stack of every thread first. wait_s: delay before the error, so that other ranks can print theirs.
    """
    if stacks:
        faulthandler.dump_traceback(file=2, all_threads=True)
    time.sleep(wait_s)
    print(error, file=sys.__stderr__, flush=True)
    os._exit(int(error.exit_code) or ExitCode.FAULT)
