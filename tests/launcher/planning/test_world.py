"""The number of processes and nodes, chosen from the recipe and the hardware."""

import pytest

from tunesmith.errors import InputError
from tunesmith.launcher.hardware import Gpu, Hardware
from tunesmith.launcher.planning.world import World, choose_world, max_restarts, usable_hardware

CPU = Hardware(8, "cores of this machine", 64 << 30, "free on this machine", frozenset())
GPU = Gpu("NVIDIA H100", 80 << 30, 80 << 30, (9, 0))
GPUS = Hardware(64, "cores of this machine", 64 << 30, "free", frozenset(), (GPU,) * 4, True)


@pytest.mark.parametrize(
    ("hardware", "workers", "cluster", "world"),
    [
        (CPU, "null", {}, World(1, 1, 1)),
        (CPU, "2", {}, World(2, 2, 1)),
        (CPU, "16", {}, World(16, 16, 1)),
        (CPU, "[1, 4]", {}, World(4, 4, 1)),
        (CPU, "[2, 99]", {}, World(8, 8, 1)),
        (GPUS, "null", {}, World(4, 4, 1)),
        (GPUS, "2", {}, World(2, 2, 1)),
        (GPUS, "null", {"num_nodes": 3, "several_nodes": True}, World(12, 12, 3)),
        (GPUS, "[4, 16]", {"num_nodes": 2, "several_nodes": True}, World(16, 4, 4)),
        (GPUS, "[1, 8]", {"num_nodes": 1, "several_nodes": True}, World(8, 1, 2)),
        (CPU, "null", {"num_nodes": 3, "several_nodes": True}, World(3, 3, 3)),
        (CPU, "2", {"num_nodes": 5, "several_nodes": True}, World(2, 2, 2)),
    ],
)
def test_number_of_processes_and_nodes(a_recipe, hardware, workers, cluster, world):
    chosen, choice = choose_world(a_recipe(f"resources.workers={workers}"), hardware, **cluster)
    assert chosen == world
    assert choice.value == world.size
    assert choice.reason


@pytest.mark.parametrize(
    ("overrides", "hardware", "message"),
    [
        (["resources.workers=5"], GPUS, "5 processes requested, but only 4 GPUs on 1 machine available"),
        (["resources.workers=[9, 12]"], CPU, "9 processes requested, but only 8 cores on 1 machine available"),
        (["resources.workers=[4, 2]"], CPU, "the first number must be the minimum"),
        (["resources.nodes=2"], CPU, "limited to one machine"),
    ],
)
def test_insufficient_resources_are_reported_with_what_is_available(a_recipe, overrides, hardware, message):
    with pytest.raises(InputError, match=message):
        choose_world(a_recipe(*overrides), hardware)


def test_a_recipe_may_use_fewer_gpus_but_not_more_than_are_visible(a_recipe):
    assert usable_hardware(a_recipe(), GPUS) == GPUS
    assert len(usable_hardware(a_recipe("resources.gpus_per_node=2"), GPUS).gpus) == 2
    world, _ = choose_world(a_recipe(), usable_hardware(a_recipe("resources.gpus_per_node=0"), GPUS))
    assert world == World(1, 1, 1)
    with pytest.raises(InputError, match="requires 5 GPUs per node, but 4 are visible"):
        usable_hardware(a_recipe("resources.gpus_per_node=5"), GPUS)


def test_lost_processes_are_restarted_by_default_if_there_are_several(a_recipe):
    assert [max_restarts(a_recipe(), size) for size in (1, 2)] == [0, 3]
    assert max_restarts(a_recipe("resources.max_restarts=0"), 2) == 0
    assert max_restarts(a_recipe("resources.max_restarts=5"), 1) == 5
