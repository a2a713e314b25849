"""Hardware detection with trees of system files, as in containers and batch jobs, and with output of nvidia-smi."""

import os
from pathlib import Path

import pytest

from tunesmith.launcher import cgroup, hardware
from tunesmith.launcher.hardware import (
    count_cores,
    cpu_flags,
    detect_hardware,
    find_gpus,
    free_memory,
    parse_gpus,
    parse_torch_gpus,
    query_architectures,
    torch_is_built_for_cuda,
)

GIB = 1 << 30


@pytest.fixture
def root(tmp_path):
    """root({"proc/meminfo": "..."}) -> a directory that replaces `/`"""

    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


MEMINFO = f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable:   {48 * GIB // 1024} kB\n"


def test_this_machine_has_cores_and_memory():
    hardware = detect_hardware()
    assert 1 <= hardware.cores <= len(os.sched_getaffinity(0))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 64 << 20 < hardware.memory_bytes <= physical


def test_memory_is_the_available_memory_without_a_limit(root):
    assert free_memory(root({"proc/meminfo": MEMINFO})) == (48 * GIB, "free on this machine")


def test_memory_is_limited_by_a_version_2_control_group(root):
    """Version 2: the limit of an outer group applies as well; file cache counts as free."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/memory.max": f"{10 * GIB}\n",
        "sys/fs/cgroup/user/memory.current": f"{6 * GIB}\n",
        "sys/fs/cgroup/user/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
    }
    assert free_memory(root(files)) == (6 * GIB, "left below the limit of the control group")


def test_memory_is_limited_by_a_version_1_control_group(root):
    base = "sys/fs/cgroup/memory/docker/abc"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu:/\n",
        f"{base}/memory.limit_in_bytes": f"{8 * GIB}\n",
        f"{base}/memory.usage_in_bytes": f"{3 * GIB}\n",
        f"{base}/memory.stat": f"total_inactive_file {GIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert free_memory(root(files))[0] == 6 * GIB


def test_the_mount_root_counts_if_the_path_of_the_group_does_not_exist(root):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/kubepods/pod1\n",
        "sys/fs/cgroup/memory.max": f"{4 * GIB}",
        "sys/fs/cgroup/memory.current": f"{GIB}",
    }
    assert free_memory(root(files))[0] == 3 * GIB


def test_a_cpu_quota_limits_the_cores(root):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}
    assert cgroup.cpu_quota(root(files)) == 0.5
    assert count_cores(root(files)) == (1, "CPU quota of the control group")


def test_a_version_1_cpu_quota_limits_the_cores(root):
    files = {
        "proc/self/cgroup": "2:cpu,cpuacct:/job\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    assert cgroup.cpu_quota(root(files)) == 2.5


def test_hardware_threads_of_a_core_count_once(root):
    files = {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": "0-511\n" for n in os.sched_getaffinity(0)}
    assert count_cores(root(files))[0] == 1


def test_without_control_groups_there_are_no_limits(root):
    assert cgroup.cpu_quota(root({})) is None
    assert cgroup.memory_left(root({})) is None
    assert cgroup.oom_kills(root({})) == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("proc/vmstat", "nr_free_pages 1\noom_kill 3\n"),
        ("sys/fs/cgroup/job/memory.events", "low 0\noom 1\noom_kill 3\n"),
        ("sys/fs/cgroup/memory/job/memory.oom_control", "under_oom 0\noom_kill 3\n"),
    ],
)
def test_oom_kills_are_counted(root, name, text):
    assert cgroup.oom_kills(root({"proc/self/cgroup": "4:memory:/job\n0::/job\n", name: text})) == 3


def test_instruction_sets_are_read_from_the_first_core(root):
    text = "processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    assert cpu_flags(root({"proc/cpuinfo": text})) == {"fpu", "avx2", "amx_bf16"}
    assert cpu_flags(root({"proc/cpuinfo": "Features : asimd"})) == frozenset()


SMI = """\
0, GPU-aaaa1111, NVIDIA H200, 143771, 143000, 9.0, Disabled
1, GPU-bbbb2222, Tesla T4, 15360, 15000, 7.5, [N/A]
2, GPU-cccc3333, Broken, [N/A], [N/A], 8.0, [N/A]
"""


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA H200", "Tesla T4"]),
        ("1,0", ["Tesla T4", "NVIDIA H200"]),
        ("GPU-bbbb", ["Tesla T4"]),
        ("", []),
        ("-1", []),
        ("0,7,1", ["NVIDIA H200"]),  # an unknown device hides the following ones, as in CUDA
    ],
)
def test_gpus_are_selected_and_ordered_like_in_cuda(visible, names):
    assert [gpu.name for gpu in parse_gpus(SMI, visible)] == names


def test_memory_and_capability_of_a_gpu_are_parsed():
    (gpu,) = parse_gpus(SMI, "0")
    assert (gpu.memory_bytes, gpu.free_bytes, gpu.capability) == (143771 << 20, 143000 << 20, (9, 0))


def test_parts_of_a_gpu_are_read_from_torch():
    text = 'a warning\n["NVIDIA A100 MIG 3g.40gb", 42140172288, 41000000000, [8, 0]]\n'
    (gpu,) = parse_torch_gpus(text)
    assert (gpu.name, gpu.memory_bytes, gpu.capability) == ("NVIDIA A100 MIG 3g.40gb", 42140172288, (8, 0))


@pytest.mark.parametrize(
    ("visible", "mode", "whole"),
    [(None, "Disabled", True), (None, "Enabled", False), ("MIG-1234", "Enabled", False), ("0", "[N/A]", True)],
)
def test_whole_gpus_are_planned_only_without_mig(tmp_path, monkeypatch, visible, mode, whole):
    """torch finds no GPU here; nvidia-smi is a script."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '0, GPU-aaaa1111, NVIDIA A100, 81920, 81000, 8.0, {mode}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in find_gpus()] == (["NVIDIA A100"] if whole else [])


def test_modules_of_the_working_directory_are_not_imported(tmp_path, monkeypatch):
    """The process that queries torch starts where the user is: a torch.py or json.py there is not run."""
    planted = """print('["planted", 1, 1, [8, 0]]')"""
    (tmp_path / "planted.py").write_text(planted)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-aaaa1111, NVIDIA A100, 81920, 81000, 8.0, Enabled'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tunesmith.launcher.hardware.TORCH_QUERY", planted)
    assert [gpu.name for gpu in find_gpus()] == ["planted"]
    monkeypatch.setattr("tunesmith.launcher.hardware.TORCH_QUERY", "import planted")
    assert find_gpus() == []


def test_cuda_support_of_torch_is_detected_without_importing_it():
    import torch

    assert torch_is_built_for_cuda() == (torch.version.cuda is not None)


def test_the_architectures_of_torch_are_queried_in_a_process_of_its_own():
    """A CPU build has none."""
    import torch

    assert query_architectures() == tuple(torch.cuda.get_arch_list())


@pytest.mark.parametrize(("capability", "queried"), [((7, 5), True), ((9, 0), False)])
def test_architectures_are_queried_for_older_gpus_only(monkeypatch, capability, queried):
    gpu = hardware.Gpu("some GPU", 16 * GIB, 15 * GIB, capability)
    monkeypatch.setattr(hardware, "find_gpus", lambda: [gpu])
    monkeypatch.setattr(hardware, "torch_is_built_for_cuda", lambda: True)
    monkeypatch.setattr(hardware, "query_architectures", lambda: ("sm_75",))
    assert detect_hardware().torch_architectures == (("sm_75",) if queried else ())
