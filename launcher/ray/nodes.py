"""Waits in a batch job until all nodes have joined its Ray cluster.

`python -m tunesmith.launcher.ray.nodes N SECONDS`; RAY_ADDRESS is the address of the cluster. Exits with 0 once N nodes
are alive, with 1 on timeout.
"""

import logging
import os
import sys
import time

POLL_S = 0.5


def main() -> int:
    num_nodes, timeout_s = int(sys.argv[1]), float(sys.argv[2])
    import ray

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR)
    deadline = time.monotonic() + timeout_s
    while (num_alive := sum(bool(node["Alive"]) for node in ray.nodes())) < num_nodes:
        if time.monotonic() > deadline:
            print(f"{num_alive} of {num_nodes} nodes joined Ray", flush=True)
            return 1
        time.sleep(POLL_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
