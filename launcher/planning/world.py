"""How many processes train and on how many machines, from the recipe and from what one machine has. Pure."""

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
    """size: processes in all; min_size: so few go on when machines are lost. They stand evenly on `nodes` machines."""

    size: int = 1
    min_size: int = 1
    nodes: int = 1

    @property
    def per_node(self) -> int:
        return math.ceil(self.size / self.nodes)


def usable_hardware(recipe: Recipe, hardware: Hardware) -> Hardware:
    """The machine without the GPUs that the recipe leaves alone. InputError where it asks for more than there are."""
    wanted = recipe.resources.gpus_per_node
    if wanted is None:
        return hardware
    if wanted > len(hardware.gpus):
        raise InputError(
            f"the recipe asks for {plural(wanted, 'GPU')} a machine, and {len(hardware.gpus)} can be seen",
            where="key resources.gpus_per_node",
            remedy="lower it, or check CUDA_VISIBLE_DEVICES",
        )
    return replace(hardware, gpus=hardware.gpus[:wanted])


def choose_world(
    recipe: Recipe, hardware: Hardware, *, num_nodes: int = 1, several_nodes: bool = False
) -> tuple[World, Choice]:
    """The processes of a run. hardware: of one machine, all are taken to be like it (see `usable_hardware`).

    num_nodes: machines that are there now. several_nodes: whether the back end can use more than one, and wait for
    some. Raises InputError where there is no room.
    """
    wanted = recipe.resources
    if wanted.nodes is not None and wanted.nodes > 1 and not several_nodes:
        raise InputError(
            f"resources.nodes is {wanted.nodes}, and this run stays on one machine",
            where="key resources.nodes",
            remedy="start it with --on ray, or leave resources.nodes out",
        )
    on_gpus = bool(hardware.gpus) and hardware.torch_has_cuda
    nodes = wanted.nodes or num_nodes
    room = nodes * (len(hardware.gpus) if on_gpus else hardware.cores)
    places = f"{plural(room, 'GPU' if on_gpus else 'core')} on {plural(nodes, 'machine')}"
    if wanted.workers is None:
        size = room if on_gpus else nodes
        return World(size, size, nodes), _choice(size, f"one on each of {places}" if on_gpus else "one a machine")
    if isinstance(wanted.workers, int):
        size = wanted.workers
        if on_gpus and size > room:
            raise _no_room(size, places)
        return World(size, size, min(nodes, size)), _choice(size, "set in the recipe")
    low, high = wanted.workers
    if low > high:
        raise InputError(
            f"resources.workers is [{low}, {high}]: the first number is the smallest that goes on",
            where="key resources.workers",
            remedy=f"write [{high}, {low}]",
        )
    if low > room:
        raise _no_room(low, places)
    if several_nodes:
        if on_gpus:  # as many machines as they will stand on, not as are there now
            nodes = max(nodes, math.ceil(high / len(hardware.gpus)))
        return World(high, low, min(nodes, high)), _choice(high, f"{low} to {high}, as machines come and go")
    size = min(high, room)
    return World(size, size, 1), _choice(size, f"of {low} to {high}, as {places} have room for")


def max_restarts(recipe: Recipe, world_size: int) -> int:
    """Times that lost processes are started again."""
    wanted = recipe.resources.max_restarts
    return wanted if wanted is not None else RESTARTS if world_size > 1 else 0


def _choice(size: int, reason: str) -> Choice:
    return Choice(key="workers", value=size, reason=reason)


def _no_room(wanted: int, places: str) -> InputError:
    return InputError(
        f"{plural(wanted, 'process', 'processes')} need as many places, and there are {places}",
        where="key resources.workers",
        remedy="lower it, add machines (resources.nodes), or check CUDA_VISIBLE_DEVICES",
    )
