"""Disks, limits, shared memory, ports, interfaces, clock and clusters that are really broken."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.launcher.doctor.clocks import check_clock
from tunesmith.launcher.doctor.clusters import check_ray, check_slurm
from tunesmith.launcher.doctor.disk import check_disk
from tunesmith.launcher.doctor.limits import check_limits, check_shared_memory
from tunesmith.launcher.doctor.network import check_interfaces, check_ports

ROOT = Path(__file__).resolve().parents[3]


def whats(result, severity: str) -> str:
    return "; ".join(finding.what for finding in result.findings if finding.severity == severity)


def test_a_disk_with_little_space_is_an_error(small_disk):
    place = small_disk("size=4m")
    assert f"GB free in {place}" in whats(check_disk(place / "runs" / "new"), "error")
    assert list(place.iterdir()) == []


def test_a_full_disk_is_an_error(small_disk):
    place = small_disk("size=4m")
    (place / "full").write_bytes(bytes(4 << 20))
    assert "only 0.0 GB free" in whats(check_disk(place), "error")


def test_a_read_only_disk_is_an_error(small_disk):
    assert "cannot be written: Read-only file system" in whats(check_disk(small_disk("ro,size=4m")), "error")


def test_a_disk_without_free_inodes_is_found(small_disk):
    place = small_disk("size=4m,nr_inodes=1")
    result = check_disk(place)
    assert "only 0 files (inodes) can be created" in whats(result, "warning")


def test_a_slow_disk_is_a_warning(tmp_path):
    assert "MB/s" in whats(check_disk(tmp_path, slow_bytes_per_s=1e15), "warning")
    assert "MB/s" not in whats(check_disk(tmp_path, slow_bytes_per_s=1.0), "warning")


LIMITED = """
import json, pathlib, resource, sys
from tunesmith.launcher.doctor.limits import check_limits
name, value, infiniband = sys.argv[1:]
resource.setrlimit(getattr(resource, name), (int(value), int(value)))
print(json.dumps([[f.severity, f.what] for f in check_limits(pathlib.Path(infiniband)).findings]))
"""


@pytest.mark.parametrize(
    ("limit", "value", "severity", "what"),
    [
        ("RLIMIT_NOFILE", 512, "error", "only 512 open files are allowed"),
        ("RLIMIT_NOFILE", 2048, "warning", "only 2,048 open files are allowed"),
        ("RLIMIT_NPROC", 1000, "warning", "only 1,000 processes and threads are allowed"),
        ("RLIMIT_MEMLOCK", 65536, "warning", "locked memory is limited to 64 KiB"),
    ],
)
def test_a_low_limit_is_found(tmp_path, limit, value, severity, what):
    (tmp_path / "mlx5_0").mkdir()
    current = resource.getrlimit(getattr(resource, limit))[1]
    if current not in (resource.RLIM_INFINITY,) and current < value:
        pytest.skip(f"the limit of this machine is lower: {current}")
    command = [sys.executable, "-c", LIMITED, limit, str(value), str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert [severity, what] in json.loads(output)


def test_locked_memory_does_not_matter_without_infiniband(tmp_path):
    assert "locked memory" not in whats(check_limits(tmp_path), "warning")


@pytest.mark.parametrize(("size", "severity"), [("64m", "error"), ("512m", "warning")])
def test_small_shared_memory_is_found(small_disk, size, severity):
    assert "MiB free" in whats(check_shared_memory(small_disk(f"size={size}")), severity)


def test_missing_shared_memory_is_an_error(tmp_path):
    assert "No such file" in whats(check_shared_memory(tmp_path / "shm"), "error")


def test_a_port_that_another_process_holds_is_an_error():
    script = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        port = int(holder.stdout.readline())
        assert f"port {port} cannot be used: Address already in use" in whats(check_ports([port]), "error")
    finally:
        holder.communicate("\n", timeout=30)
    assert check_ports([port]).findings == ()


@pytest.fixture
def interfaces(tmp_path):
    for name, state in {"lo": "unknown", "eth0": "up", "eth1": "down"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "operstate").write_text(f"{state}\n")
    return tmp_path


@pytest.mark.parametrize("variable", ["NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"])
@pytest.mark.parametrize("name", ["ib0", "eth1"])
def test_a_selected_interface_that_is_missing_or_down_is_an_error(interfaces, variable, name):
    result = check_interfaces({variable: name}, interfaces, "192.0.2.7")
    assert f"{variable} selects {name}" in whats(result, "error")
    assert check_interfaces({variable: "eth0"}, interfaces, "192.0.2.7").findings == ()


def test_a_host_name_for_this_host_only_is_a_warning(interfaces):
    assert "the host name localhost is " in whats(check_interfaces({}, interfaces, "localhost"), "warning")


def test_a_host_name_without_address_is_an_error(interfaces):
    assert "has no address" in whats(check_interfaces({}, interfaces, "no-such-host.invalid"), "error")


def test_a_clock_that_is_not_synchronized_is_a_warning(program):
    program("timedatectl", "echo no")
    assert whats(check_clock(), "warning") == "the clock is not synchronized"
    program("timedatectl", "echo yes")
    assert check_clock().findings == ()
    program("timedatectl", "echo 'System has not been booted with systemd' >&2; exit 1")
    assert check_clock().seen == "not known here whether it is synchronized"


def test_an_address_where_no_ray_listens_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert check_ray(address).findings == ()
    assert f"nothing listens at {address}" in whats(check_ray(address), "error")


def test_a_slurm_controller_that_is_down_is_an_error_in_an_allocation(program, monkeypatch, tmp_path):
    program("scontrol", "echo 'Slurmctld(primary) at head is DOWN'; exit 1")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert whats(check_slurm(), "warning") == "Slurm's controller does not respond"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert whats(check_slurm(), "error") == "Slurm's controller does not respond"
    program("scontrol", "echo 'Slurmctld(primary) at head is UP'")
    assert check_slurm().findings == ()
    monkeypatch.setenv("PATH", os.devnull)
    assert check_slurm().seen == "not installed here"
