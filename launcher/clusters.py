"""The supported clusters. To add one, write a class (see launcher/backends/cluster.py) and list it here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tunesmith.errors import InputError
from tunesmith.launcher.backends.cluster import Cluster, SubmitOptions
from tunesmith.launcher.backends.local_cluster import LocalCluster
from tunesmith.launcher.ray.cluster import RayCluster
from tunesmith.launcher.slurm.cluster import SlurmCluster
from tunesmith.rundir.launch import Launch, launch_or_default, read_launch
from tunesmith.rundir.paths import RunDir

if TYPE_CHECKING:
    from tunesmith.launcher.backends.base import Backend

CLUSTERS: tuple[Cluster, ...] = (
    LocalCluster(),
    RayCluster(),
    SlurmCluster(),
)
NAMES = tuple(cluster.name for cluster in CLUSTERS)


def find_cluster_named(name: str) -> Cluster | None:
    return next((cluster for cluster in CLUSTERS if cluster.name == name), None)


def cluster_named(name: str) -> Cluster:
    """Return the cluster with this name. Raises InputError for an unknown name."""
    if (cluster := find_cluster_named(name)) is None:
        raise InputError(f"unknown back end {name!r}", remedy=f"use one of {', '.join(NAMES)}")
    return cluster


def cluster_of(run: RunDir, launch: Launch) -> Cluster:
    """The cluster in a run's launch.json. Raises InputError, naming the file, if it is unknown."""
    if (cluster := find_cluster_named(launch.backend)) is None:
        raise InputError(
            f"the run was started on {launch.backend!r}, which this version does not support",
            where=str(run.launch),
            remedy=f"resume it with --on and one of {', '.join(NAMES)}",
        )
    return cluster


def cluster_and_launch(run: RunDir) -> tuple[Cluster, Launch]:
    """Where the run was last started. Raises InputError if launch.json is damaged or names an unknown back end."""
    launch = read_launch(run.launch)
    return cluster_of(run, launch), launch


def cluster_and_launch_or_default(run: RunDir) -> tuple[Cluster, Launch]:
    """The same for callers that only report on a run: a damaged launch.json counts as missing."""
    launch = launch_or_default(run.launch)
    return cluster_of(run, launch), launch


def require_options(cluster: Cluster, options: SubmitOptions) -> None:
    """Raise InputError if an option was given that the cluster does not accept."""
    for name in options.given():
        if name not in cluster.options:
            supporting = [each for each in CLUSTERS if name in each.options]
            raise InputError(
                f"--{name} requires {', '.join(each.title for each in supporting)}",
                where=f"--{name}",
                remedy=f"add --on {' or '.join(each.name for each in supporting)}, or omit it",
            )


@contextmanager
def open_backend(launch: Launch) -> Iterator["Backend"]:
    """Open the back end of a run; at the end of the block it is shut down."""
    backend = cluster_named(launch.backend).open(launch)
    try:
        yield backend
    finally:
        backend.close()
