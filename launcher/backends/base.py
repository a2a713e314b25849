"""The back-end protocol: where rows are prepared and workers run. `open_backend` opens one by name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tunesmith.configs.plan import Plan
from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.readers.shard import Shard
from tunesmith.launcher.exit_status import Ending
from tunesmith.launcher.hardware import Hardware
from tunesmith.rundir.paths import RunDir


class Backend(Protocol):
    """Connects and starts lazily, so that a finished run needs no cluster."""

    several_nodes: bool
    """Whether it can use more than one node."""
    restarts: bool
    """Whether it restarts lost workers itself."""

    def hardware(self, *, measure: bool = False) -> Hardware:
        """Hardware of one training node. measure: see `detect_hardware`."""
        ...

    def num_nodes(self) -> int:
        """Number of available nodes."""
        ...

    def prepare_shards(
        self, shards: Sequence[Shard], encoder: RowEncoder, cache: Path, workers: int, done: Callable[[Shard], None]
    ) -> list[Path]:
        """Prepare the shards and return their directories in order (see data.index.workers.prepare_shards)."""
        ...

    def run(
        self,
        run: RunDir,
        plan: Plan,
        attempt: int,
        lock_fd: int,
        watch: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> Ending:
        """Run the workers of the plan until they exit. Must be called in the main thread: signals and
        `run.stop_request` make the workers save and exit.

        watch: called several times per second. on_stop: called once, when a stop is requested.
        """
        ...

    def close(self) -> None:
        """Shut down whatever the back end has started."""
        ...
