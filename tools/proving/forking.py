"""Runs a stage in a forked process with limits on time and memory."""

import json
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from tools.proving.stages import STAGES, Failed

LIMIT_S = 240
"""Of one stage; the slowest takes about a tenth of it."""
MEMORY_BYTES = 24 << 30
"""Limit of the address space, of which torch maps several GB."""


def run_stage(stage: str, name: str, root: Path) -> dict[str, Any]:
    """Return the facts of a stage, or {"failed": reason, "message": text}. Its output goes to `<stage>.log`."""
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _in_child(stage, name, root, write)
    os.close(write)
    try:
        text = _read_until(read, time.monotonic() + LIMIT_S)
    finally:
        os.close(read)
        os.killpg(pid, signal.SIGKILL) if _has_group(pid) else None
        os.waitpid(pid, 0)
    if text is None:
        return {"failed": "timeout", "message": f"more than {LIMIT_S} s"}
    if not text:
        return {"failed": "memory", "message": _tail(root / f"{stage}.log")}
    return json.loads(text)


def _has_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def _read_until(descriptor: int, deadline: float) -> str | None:
    """What the child writes before it closes the pipe; None if it takes too long."""
    pieces = []
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        if not (piece := os.read(descriptor, 1 << 16)):
            return b"".join(pieces).decode()
        pieces.append(piece)


def _in_child(stage: str, name: str, root: Path, write: int) -> NoReturn:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    log = os.open(root / f"{stage}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        facts = STAGES[stage](name, root)
    except Failed as failed:
        facts = {"failed": failed.reason, "message": str(failed)[:2000]}
        traceback.print_exc()
    except MemoryError as error:
        facts = {"failed": "memory", "message": str(error)}
    except BaseException as error:  # of any kind: the result is that the class fails here
        facts = {"failed": "exception", "message": f"{type(error).__name__}: {' '.join(str(error).split())}"[:2000]}
        traceback.print_exc()
    if "failed" in facts and (keep := os.environ.get("PROVE_MODELS_LOGS")):
        sys.stderr.flush()
        shutil.copyfile(root / f"{stage}.log", Path(keep) / f"{name}-{stage}.log")
    os.write(write, json.dumps(facts).encode())
    os._exit(0)


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-500:] if path.is_file() else ""
