"""The script of the toy cluster: runs the commands in a directory. Argument: the directory.

NAME.json is a job, NAME.cancel cancels it while it is pending, `hold` keeps jobs from starting. NAME.state and NAME.log
are written by this script.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    folder, running = Path(sys.argv[1]), {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        while True:
            (folder / "alive").touch()
            poll(folder, running)
            time.sleep(0.1)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()


def poll(folder: Path, running: dict[Path, subprocess.Popen[bytes]]) -> None:
    for job in sorted(folder.glob("*.json")):
        if job.with_suffix(".state").exists():
            continue
        if job.with_suffix(".cancel").exists():
            write_state(job, "ended cancelled")
        elif not (folder / "hold").exists():
            running[job] = start(job)
            write_state(job, "running")
    for job, process in list(running.items()):
        if process.poll() is not None:
            write_state(job, f"ended {running.pop(job).returncode}")


def start(job: Path) -> subprocess.Popen[bytes]:
    request = json.loads(job.read_text())
    with open(job.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            request["command"],
            cwd=request["directory"],
            env={**os.environ, "TUNESMITH_JOB": job.stem},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def write_state(job: Path, text: str) -> None:
    """Replace the file atomically, so that readers never see a partial one."""
    new = job.with_suffix(".new")
    new.write_text(text)
    new.replace(job.with_suffix(".state"))


if __name__ == "__main__":
    main()
