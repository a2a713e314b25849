"""How a rank names itself in an error, and how it ends when its other threads cannot."""

import faulthandler
import os
import socket
import sys
import time

from tunesmith.errors import ExitCode, TunesmithError


def this_rank(rank: int) -> str:
    return f"rank {rank} on {socket.gethostname()}"


def terminate(error: TunesmithError, *, stacks: bool, wait_s: float = 0.0) -> None:
    """End this process, whatever its other threads wait for; the message is the last that it prints.

    stacks: where every thread stands goes before it. wait_s: between the two, for other ranks to do the same.
    """
    if stacks:
        faulthandler.dump_traceback(file=2, all_threads=True)
    time.sleep(wait_s)
    print(error, file=sys.__stderr__, flush=True)
    os._exit(int(error.exit_code) or ExitCode.FAULT)
