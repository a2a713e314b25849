"""Errors of a Ray cluster that is slow or too small name the cause and what to do."""

import pytest

from tunesmith.errors import ExitCode, RunFault
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.planning.world import World
from tunesmith.launcher.ray.backend import RayBackend
from tunesmith.launcher.ray.faults import no_room, not_inspected

HARDWARE = Hardware(2, "cores of this machine", 16 << 30, "free on this machine", frozenset())


class SlowRay:
    """Stands for the ray module on a busy machine: it gives up on its own processes `failures` times."""

    def __init__(self, failures: int):
        self.failures, self.num_shut_down = failures, 0

    def init(self, **_options) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("The current node timed out during startup. This could happen because the raylet failed")

    def shutdown(self) -> None:
        self.num_shut_down += 1


def test_a_slow_start_of_ray_is_repeated_and_is_no_error_of_the_user():
    ray = SlowRay(1)
    RayBackend("")._start(ray)
    assert ray.num_shut_down == 1
    with pytest.raises(RunFault, match="Ray did not start on this machine: The current node timed out") as caught:
        RayBackend("")._start(SlowRay(5))
    assert caught.value.exit_code == ExitCode.FAULT
    remedy = str(caught.value.remedy)
    assert "busy" in remedy
    assert "TOKEN" not in remedy
    assert "--address" not in remedy


def test_a_slow_first_task_is_not_taken_for_a_wrong_installation():
    exceptions = pytest.importorskip("ray.exceptions")
    slow = not_inspected(exceptions.GetTimeoutError("Get timed out"), 60.0, "a, b")
    assert "within 60 s" in slow.what
    assert "install" not in str(slow.remedy)
    broken = not_inspected(ImportError("No module named 'tunesmith'"), 60.0, "a, b")
    assert "install the same version" in str(broken.remedy)


def test_nodes_beyond_the_cluster_are_named_with_what_it_has(a_recipe, a_model, some_data):
    data = some_data(80)
    plan = make_plan(a_recipe("resources.nodes=4"), a_model(), data, HARDWARE, world=World(4, 4, 4))
    fault = no_room(plan, 2, [{"CPU": 2.0}, {"CPU": 2.0}], {"CPU": 2}, 60.0)
    assert fault.what == "the run needs 4 machines, but the cluster has 2 after 60 s"
    assert "--nodes 2" in str(fault.remedy)
    plan = make_plan(a_recipe("resources.workers=4"), a_model(), data, HARDWARE, world=World(4, 4, 2))
    assert "room for 2 of 4 processes" in no_room(plan, 2, [{"CPU": 2.0}] * 2, {"CPU": 2}, 60.0).what
