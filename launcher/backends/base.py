"""What a back end is: where the rows are prepared and the workers run. `open_backend` names all of them."""

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
    """Nothing is connected or started before it is needed, so that a finished run costs no cluster."""

    several_nodes: bool
    """Whether it can use more than one machine."""
    restarts: bool
    """Whether it starts lost workers again by itself."""

    def hardware(self) -> Hardware:
        """Of one machine that trains."""
        ...

    def num_nodes(self) -> int:
        """Machines that are there to train on."""
        ...

    def prepare_shards(
        self, shards: Sequence[Shard], encoder: RowEncoder, cache: Path, workers: int, done: Callable[[Shard], None]
    ) -> list[Path]:
        """The directories of the prepared shards, in order (see data.workers.prepare_shards)."""
        ...

    def run(
        self,
        run: RunDir,
        plan: Plan,
        attempt: int,
        lock_fd: int,
        watch: Callable[[], None],
        on_asked: Callable[[], None],
    ) -> Ending:
        """Run the plan's workers to their end, in the main thread: signals and `run.stop_request` ask them to save.

        watch: called several times a second. on_asked: called once, when they are asked.
        """
        ...

    def close(self) -> None:
        """End what was started for it."""
        ...
