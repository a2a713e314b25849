"""Chooses the number of processes and nodes from the recipe and the hardware of one node. Pure."""

import math
from dataclasses import dataclass, replace

from tunesmith.configs.plan import Choice
from tunesmith.configs.recipe import Recipe
from tunesmith.errors import InputError
from tunesmith.launcher.hardware import Hardware
from tunesmith.report.wording import plural

RESTARTS = 3


@dataclass(frozen=True)
class World:
    """size: number of processes. min_size: minimum with which the run continues if nodes are lost. nodes: over which
    the processes are evenly distributed."""

    size: int = 1
    min_size: int = 1
    nodes: int = 1

    @property
    def per_node(self) -> int:
        return math.ceil(self.size / self.nodes)


def usable_hardware(recipe: Recipe, hardware: Hardware) -> Hardware:
    """The hardware limited to resources.gpus_per_node GPUs. Raises InputError if there are fewer."""
    requested = recipe.resources.gpus_per_node
    if requested is None:
        return hardware
    if requested > len(hardware.gpus):
        raise InputError(
            f"the recipe requires {plural(requested, 'GPU')} per node, but {len(hardware.gpus)} are visible",
            where="key resources.gpus_per_node",
            remedy="lower it, or check CUDA_VISIBLE_DEVICES",
        )
    return replace(hardware, gpus=hardware.gpus[:requested])


def choose_world(
    recipe: Recipe, hardware: Hardware, *, num_nodes: int = 1, several_nodes: bool = False
) -> tuple[World, Choice]:
    """Choose the processes of a run. hardware: of one node; all nodes are assumed to be equal (see `usable_hardware`).

    num_nodes: nodes available now. several_nodes: whether the back end can use more than one, and wait for more.
    Raises InputError if there are not enough resources.
    """
    resources = recipe.resources
    if resources.nodes is not None and resources.nodes > 1 and not several_nodes:
        raise InputError(
            f"resources.nodes is {resources.nodes}, but this run is limited to one machine",
            where="key resources.nodes",
            remedy="start it with --on ray, or remove resources.nodes",
        )
    on_gpus = bool(hardware.gpus) and hardware.torch_has_cuda
    nodes = resources.nodes or num_nodes
    room = nodes * (len(hardware.gpus) if on_gpus else hardware.cores)
    places = f"{plural(room, 'GPU' if on_gpus else 'core')} on {plural(nodes, 'machine')}"
    if resources.workers is None:
        size = room if on_gpus else nodes
        return World(size, size, nodes), _choice(size, f"one on each of {places}" if on_gpus else "one per machine")
    if isinstance(resources.workers, int):
        size = resources.workers
        if on_gpus and size > room:
            raise _no_room(size, places)
        return World(size, size, min(nodes, size)), _choice(size, "set in the recipe")
    low, high = resources.workers
    if low > high:
        raise InputError(
            f"resources.workers is [{low}, {high}], but the first number must be the minimum",
            where="key resources.workers",
            remedy=f"write [{high}, {low}]",
        )
    if low > room:
        raise _no_room(low, places)
    if several_nodes:
        if on_gpus:  # the nodes that the run will use, not those available now
            nodes = max(nodes, math.ceil(high / len(hardware.gpus)))
        return World(high, low, min(nodes, high)), _choice(
            high, f"elastic: {low} to {high}, depending on the available machines"
        )
    size = min(high, room)
    return World(size, size, 1), _choice(size, f"of {low} to {high}, limited by {places}")


def max_restarts(recipe: Recipe, world_size: int) -> int:
    """How often lost processes are restarted."""
    requested = recipe.resources.max_restarts
    return requested if requested is not None else RESTARTS if world_size > 1 else 0


def _choice(size: int, reason: str) -> Choice:
    return Choice(key="workers", value=size, reason=reason)


def _no_room(size: int, places: str) -> InputError:
    return InputError(
        f"{plural(size, 'process', 'processes')} requested, but only {places} available",
        where="key resources.workers",
        remedy="lower it, add machines (resources.nodes), or check CUDA_VISIBLE_DEVICES",
    )
