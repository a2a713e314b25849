"""The errors of a Ray cluster that is slow, too small or set up differently on its machines."""

from collections.abc import Mapping, Sequence

from tunesmith.configs.plan import Plan
from tunesmith.errors import RunFault
from tunesmith.report.wording import plural

START_TRIES = 2
"""Attempts to start a cluster for one run: on a busy machine Ray may give up waiting for its own processes."""


def not_started(error: Exception) -> RunFault:
    """The error of a cluster for this run only that did not start: nothing the user wrote is wrong."""
    return RunFault(
        f"Ray did not start on this machine: {(str(error).strip() or type(error).__name__).splitlines()[0]}",
        where=f"Ray cluster started for this run, {START_TRIES} attempts",
        remedy="the machine is probably too busy or short of memory: run the same command again when it is idle, or "
        "without --on ray, since one machine does not need Ray",
    )


def not_inspected(error: Exception, waited_s: float, hosts: str) -> RunFault:
    """The error of machines that did not run a first task: too slowly, or at all."""
    from ray.exceptions import GetTimeoutError

    if isinstance(error, GetTimeoutError):
        return RunFault(
            f"the machines of the cluster did not run a first task within {waited_s:g} s",
            where=hosts,
            remedy="they are busy or still starting: run the same command again; `ray status` shows their load",
        )
    return RunFault(
        f"a machine of the cluster cannot run Tunesmith: {str(error).strip().splitlines()[-1][:300]}",
        where=hosts,
        remedy="install the same version of Tunesmith in the Python environment of every machine",
    )


def no_room(
    plan: Plan, room: int, machines: Sequence[Mapping[str, float]], each: Mapping[str, float], waited_s: float
) -> RunFault:
    """The error of a cluster that has too few machines, cores or GPUs for the plan. machines: their resources."""
    needed, nodes = plan.compute.min_world_size, plan.recipe.resources.nodes
    kind = "GPU" if "GPU" in each else "CPU"
    remedy = "start more machines, or lower resources.workers ([min, max] starts with fewer)"
    what = f"the cluster has room for {room} of {plural(needed, 'process', 'processes')} after {waited_s:g} s"
    if nodes is not None and nodes > len(machines):
        what = f"the run needs {plural(nodes, 'machine')}, but the cluster has {len(machines)} after {waited_s:g} s"
        remedy = f"start more machines, or use --nodes {len(machines)}"
    return RunFault(
        what,
        where=f"{plural(len(machines), 'machine')} with {[machine.get(kind, 0) for machine in machines]} {kind}s, "
        f"each process needs {dict(each)}",
        remedy=remedy,
    )
