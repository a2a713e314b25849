"""The process that sends a run to one tracker: `python -m tunesmith.tracking.process RUN_DIR --tracker KIND`.

It ends when its standard input does: the launcher keeps that open while the run lasts. If the tool then makes no
progress, the process ends itself, so that no launcher leaves one behind.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

from tunesmith.configs.plan import read_plan
from tunesmith.rundir.paths import RunDir
from tunesmith.tracking.configuration import configuration_of
from tunesmith.tracking.follow import follow
from tunesmith.tracking.redaction import without_secrets
from tunesmith.tracking.state import read_state, state_file
from tunesmith.tracking.tracker import Tracked
from tunesmith.tracking.trackers import KINDS, options_of

NICENESS = 10
"""The training on the same machine has precedence."""


def main() -> int:
    parser = argparse.ArgumentParser("python -m tunesmith.tracking.process", description="Send a run to a tracker.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--tracker", choices=KINDS, required=True)
    arguments = parser.parse_args()
    os.nice(NICENESS)
    os.environ.pop("WANDB_SERVICE", None)  # that of a program which uses wandb itself and has started this run
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # the recipe names everything that leaves the machine
    run, kind = RunDir(arguments.run_dir.resolve()), arguments.tracker
    ended = threading.Event()
    threading.Thread(target=_wait_for_end, args=(run, kind, ended), daemon=True).start()
    try:
        plan = read_plan(run.plan)
        working_dir = Path(plan.working_dir) if Path(plan.working_dir).is_dir() else run.root
        os.chdir(working_dir)  # relative paths and MLflow's default database
        tracked = Tracked(run, plan, configuration_of(run, plan), working_dir)
        follow(tracked, options_of(plan.recipe, kind), has_ended=ended.is_set)
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {without_secrets(message)}", flush=True)
        os._exit(1)  # threads of the tool may still wait for its server
    return 0


def _wait_for_end(run: RunDir, kind: str, ended: threading.Event) -> None:
    """Wait until standard input is closed; then end the process when it makes no progress."""
    while sys.stdin.buffer.read(1):
        pass
    ended.set()
    path, ended_at = state_file(run, kind), time.time()
    while True:
        time.sleep(1.0)
        state = read_state(path)
        changed = path.stat().st_mtime if path.is_file() else 0.0
        if time.time() - max(changed, ended_at) > 2 * state.patience_s:
            print(f"error: {kind} does not respond", flush=True)
            os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
