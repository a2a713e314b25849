"""What `tunesmith doctor` starts on every host: prints facts as one JSON line, then its clock for each line of input.

Usage: python -m tunesmith.launcher.doctor.agent FILE. FILE was written by another host into the shared directory.
"""

import json
import socket
import sys
import time
from pathlib import Path

from tunesmith.launcher.ray.versions import versions

READ_AGAIN_S = 5.0
"""Time to retry: a network file system may show a new file late."""


def read_shared(path: Path) -> str:
    until = time.monotonic() + READ_AGAIN_S
    while True:
        try:
            return path.read_text(encoding="ascii")
        except OSError:
            if time.monotonic() >= until:
                return ""
        time.sleep(0.1)


def main() -> None:
    facts = {"host": socket.gethostname(), "shared": read_shared(Path(sys.argv[1])), "versions": versions()}
    with socket.create_server(("", 0)) as server:
        facts["port"] = server.getsockname()[1]
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        print(time.time(), flush=True)


if __name__ == "__main__":
    main()
