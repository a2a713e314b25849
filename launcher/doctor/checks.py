"""The checks of this machine, in the order of their output."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.launcher.doctor.clocks import check_clock
from tunesmith.launcher.doctor.clusters import check_ray, check_slurm
from tunesmith.launcher.doctor.disk import check_disk
from tunesmith.launcher.doctor.finding import Result
from tunesmith.launcher.doctor.gpus import check_gpus, check_topology
from tunesmith.launcher.doctor.limits import check_limits, check_shared_memory
from tunesmith.launcher.doctor.network import check_interfaces, check_ports
from tunesmith.launcher.doctor.packages import check_packages, check_python
from tunesmith.launcher.doctor.torch_build import check_torch
from tunesmith.launcher.hardware import find_gpus


@dataclass(frozen=True)
class Subject:
    """What the user wants examined. address: of a Ray cluster; may be empty."""

    directory: Path
    ports: tuple[int, ...] = ()
    address: str = ""


CHECKS = (
    lambda _: check_python(),
    lambda _: check_packages(),
    lambda _: check_torch(find_gpus()),
    lambda _: check_gpus(),
    lambda _: check_topology(),
    lambda _: check_interfaces(),
    lambda subject: check_ports(subject.ports),
    lambda subject: check_disk(subject.directory),
    lambda _: check_limits(),
    lambda _: check_shared_memory(),
    lambda _: check_clock(),
    lambda subject: check_ray(subject.address or os.environ.get("RAY_ADDRESS", "")),
    lambda _: check_slurm(),
)


def run_checks(subject: Subject) -> Iterator[Result]:
    """Run all checks; each is bounded. Takes some seconds, most of them to import torch."""
    for check in CHECKS:
        yield check(subject)
