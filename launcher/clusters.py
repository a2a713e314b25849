"""The clusters that Tunesmith knows. A new one is a class (launcher/backends/cluster.py) and its line here."""

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
    """Raises InputError for an unknown name."""
    if (cluster := find_cluster_named(name)) is None:
        raise InputError(f"there is no back end {name!r}", remedy=f"known: {', '.join(NAMES)}")
    return cluster


def cluster_of(run: RunDir, launch: Launch) -> Cluster:
    """The cluster of a run's launch.json. Raises InputError, naming the file, where its name is unknown."""
    if (cluster := find_cluster_named(launch.backend)) is None:
        raise InputError(
            f"the run was started on {launch.backend!r}, which this version does not know",
            where=str(run.launch),
            remedy=f"known: {', '.join(NAMES)}; resume it with --on and one of them",
        )
    return cluster


def starting_place(run: RunDir) -> tuple[Cluster, Launch]:
    """Where the run was started last. Raises InputError where launch.json is damaged, or names an unknown back end."""
    launch = read_launch(run.launch)
    return cluster_of(run, launch), launch


def shown_place(run: RunDir) -> tuple[Cluster, Launch]:
    """The same for those who only report on a run: a damaged launch.json counts as none."""
    launch = launch_or_default(run.launch)
    return cluster_of(run, launch), launch


def require_options(cluster: Cluster, options: SubmitOptions) -> None:
    """Raises InputError where an option was given that the cluster does not take."""
    for name in options.given():
        if name not in cluster.options:
            takers = [each for each in CLUSTERS if name in each.options]
            raise InputError(
                f"--{name} is for {', '.join(each.title for each in takers)}",
                where=f"--{name}",
                remedy=f"add --on {' or '.join(each.name for each in takers)}, or leave it out",
            )


@contextmanager
def open_backend(launch: Launch) -> Iterator["Backend"]:
    """The back end that a run is started on. What it starts, it ends when the block is left."""
    backend = cluster_named(launch.backend).open(launch)
    try:
        yield backend
    finally:
        backend.close()
