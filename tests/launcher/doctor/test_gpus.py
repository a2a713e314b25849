"""GPU faults, from programs that print what nvidia-smi prints."""

import pytest

from tunesmith.launcher.doctor.gpus import check_gpus, check_topology

GOOD = "NVIDIA H100 80GB HBM3, 550.54.15, 0, 0, 0, 16, 16"


@pytest.fixture
def gpus(program):
    """gpus(row, ...): an nvidia-smi that lists these GPUs."""
    return lambda *rows: program("nvidia-smi", "\n".join(f"echo '{n}, {row}'" for n, row in enumerate(rows)))


def test_good_gpus_pass(gpus):
    gpus(GOOD, GOOD)
    result = check_gpus()
    assert result.findings == ()
    assert result.seen == "2 GPUs (NVIDIA H100 80GB HBM3), driver 550.54.15"


def test_values_that_a_gpu_does_not_report_pass(gpus):
    gpus("NVIDIA GeForce RTX 4090, 550.54.15, [N/A], [N/A], [N/A], 16, 16")
    assert check_gpus().findings == ()


@pytest.mark.parametrize(
    ("row", "severity", "what"),
    [
        ("NVIDIA H100 80GB HBM3, 550.54.15, 3, 0, 0, 16, 16", "error", "GPU 1 has 3 uncorrected memory errors (ECC)"),
        ("NVIDIA H100 80GB HBM3, 550.54.15, 0, 1, 0, 16, 16", "warning", "will be remapped at its next reset"),
        ("NVIDIA H100 80GB HBM3, 550.54.15, 0, Yes, 0, 16, 16", "warning", "will be remapped at its next reset"),
        ("NVIDIA H100 80GB HBM3, 550.54.15, 0, 1, 1, 16, 16", "error", "could not remap damaged memory rows"),
        ("NVIDIA H100 80GB HBM3, 550.54.15, 0, 0, 0, 8, 16", "warning", "GPU 1 uses 8 of 16 PCIe lanes"),
        ("NVIDIA A100-SXM4-40GB, 550.54.15, 0, 0, 0, 16, 16", "warning", "different GPUs: NVIDIA A100"),
    ],
)
def test_a_faulty_gpu_is_found(gpus, row, severity, what):
    gpus(GOOD, row)
    (finding,) = check_gpus().findings
    assert finding.severity == severity
    assert what in finding.what


def test_a_driver_that_does_not_respond_is_an_error(program):
    program("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    (finding,) = check_gpus().findings
    assert (finding.severity, "version mismatch" in finding.what) == ("error", True)


def test_a_driver_without_nvidia_smi_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_gpus(tmp_path).findings == ()
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version")
    assert [finding.severity for finding in check_gpus(tmp_path).findings] == ["warning"]


HEADER = "\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m"
REST = "NIC0\tPXB\tSYS\tSYS\t X\n\nLegend:\n\n  X    = Self\n  SYS  = Connection traversing PCIe and SMP\n"


def matrix(*rows: str) -> str:
    return "cat <<'EOF'\n" + "\n".join([HEADER, *rows, REST]) + "\nEOF"


def test_gpus_with_equal_connections_pass(program):
    program(
        "nvidia-smi", matrix("GPU0\t X \tNV18\tNV18\tPXB", "GPU1\tNV18\t X \tNV18\tSYS", "GPU2\tNV18\tNV18\t X \tSYS")
    )
    result = check_topology()
    assert (result.seen, result.findings) == ("3 pairs of GPUs, connected by NV18", ())


def test_a_pair_without_nvlink_among_others_is_a_warning(program):
    program(
        "nvidia-smi", matrix("GPU0\t X \tNV18\tNV18\tPXB", "GPU1\tNV18\t X \tSYS\tSYS", "GPU2\tNV18\tSYS\t X \tSYS")
    )
    (finding,) = check_topology().findings
    assert finding.severity == "warning"
    assert "GPU1 and GPU2 have SYS" in finding.what
