"""Opens the back end that a run is started on."""

from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.launcher.backends.base import Backend
from tunesmith.rundir.launch import Launch


@contextmanager
def open_backend(launch: Launch) -> Iterator[Backend]:
    """The back end by its name. What it starts, it ends when the block is left."""
    if launch.backend == "ray":
        from tunesmith.launcher.ray.cluster import RayCluster

        backend: Backend = RayCluster(launch.address)
    elif launch.backend == "slurm":
        from tunesmith.launcher.slurm.script import in_allocation

        backend = in_allocation()
    else:
        from tunesmith.launcher.backends.local import Local

        backend = Local()
    try:
        yield backend
    finally:
        backend.close()
