"""Whether Ray and Slurm respond."""

import os
import shutil

from tunesmith.launcher.doctor.finding import Finding, Result
from tunesmith.launcher.ray.cluster import ANSWER_S, RayCluster
from tunesmith.launcher.slurm.client import is_unreachable


def check_ray(address: str) -> Result:
    """Whether a server listens at the address of a Ray cluster; passes without an address."""
    if not address:
        return Result("ray", "no address given (--address, RAY_ADDRESS)")
    if RayCluster().is_reachable(address):
        return Result("ray", f"{address} is reachable")
    what = f"nothing listens at {address}, or it did not respond within {ANSWER_S:g} s"
    remedy = "start Ray there (`ray start --head`), correct the address, or open the port in the firewall"
    return Result("ray", address, (Finding("ray", "error", what, "runs with --on ray cannot start", remedy),))


def check_slurm() -> Result:
    """Whether Slurm's controller responds; passes where Slurm is not installed. An error in an allocation only: its
    commands may be installed on a machine that does not use it."""
    if shutil.which("scontrol") is None:
        return Result("slurm", "not installed here")
    if not is_unreachable():
        return Result("slurm", "the controller responds")
    what, why = "Slurm's controller does not respond", "jobs can neither be submitted nor followed"
    remedy = "see `scontrol ping` and SlurmctldHost in slurm.conf; ask the administrators of the cluster"
    severity = "error" if os.environ.get("SLURM_JOB_ID") else "warning"
    return Result("slurm", "the controller does not respond", (Finding("slurm", severity, what, why, remedy),))
