"""Waits in a batch job until every node has joined its Ray.

`python -m tunesmith.launcher.ray.nodes N SECONDS`; RAY_ADDRESS names the cluster. Ends with 0 once N nodes
are alive, with 1 where they are not in time.
"""

import logging
import os
import sys
import time

POLL_S = 0.5


def main() -> int:
    wanted, seconds = int(sys.argv[1]), float(sys.argv[2])
    import ray

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR)
    deadline = time.monotonic() + seconds
    while (there := sum(bool(node["Alive"]) for node in ray.nodes())) < wanted:
        if time.monotonic() > deadline:
            print(f"{there} of {wanted} nodes joined Ray", flush=True)
            return 1
        time.sleep(POLL_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
