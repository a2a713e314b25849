"""The time of kernels is measured without the launches, on a simulated device whose kernels take a known time."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import device_time  # pyright: ignore[reportMissingImports]


class SimulatedDevice:
    """A queue of kernels: each starts when it is launched and the one before it has ended."""

    cache_bytes = 1000

    def __init__(self):
        self.free_at = 0.0

    def spin(self, seconds):
        self.launch(seconds)

    def launch(self, seconds):
        self.free_at = max(self.free_at, time.perf_counter()) + seconds

    def mark(self):
        return max(self.free_at, time.perf_counter())

    def has_passed(self, mark):
        return time.perf_counter() >= mark

    def seconds_between(self, first, last):
        while not self.has_passed(last):
            pass
        return last - first


@pytest.mark.parametrize(("kernel_s", "launch_s"), [(0.001, 0.003), (0.003, 0.0005), (0.0002, 0.002)])
def test_a_slow_host_does_not_change_the_time_of_a_kernel(kernel_s, launch_s):
    device = SimulatedDevice()

    def call():
        time.sleep(launch_s)
        device.launch(kernel_s)

    assert device_time.kernel_seconds(device, [call], repeats=10) == pytest.approx(kernel_s, rel=0.02)


def test_events_around_a_call_would_measure_the_launch():
    """The premise of the test above: on an idle device the same events contain the host's time."""
    device = SimulatedDevice()
    first = device.mark()
    time.sleep(0.003)
    device.launch(0.001)
    assert device.seconds_between(first, device.mark()) > 0.0035


def test_calls_take_turns():
    device, order = SimulatedDevice(), []
    calls = [lambda number=number: (order.append(number), device.launch(0.0001)) for number in range(3)]
    device_time.kernel_seconds(device, calls, repeats=5)
    assert order[:8] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_launches_that_outlast_the_device_are_an_error(monkeypatch):
    device = SimulatedDevice()
    monkeypatch.setattr(device, "spin", lambda seconds: None)
    with pytest.raises(RuntimeError, match="repeat fewer"):
        device_time.kernel_seconds(device, [lambda: time.sleep(0.001)], repeats=3)


def test_inputs_exceed_the_cache():
    sets = list(device_time.rotation(lambda: (torch.zeros(100), torch.zeros(25)), cache_bytes=1000))
    assert sum(tensor.nbytes for inputs in sets for tensor in inputs) >= 3000
    assert len({tensor.data_ptr() for inputs in sets for tensor in inputs}) == 2 * len(sets)
