"""Versions that do not fit and a torch that cannot be used."""

import sys

import pytest

from tunesmith.launcher.doctor.packages import check_packages, check_python
from tunesmith.launcher.doctor.torch_build import check_torch
from tunesmith.launcher.hardware import Gpu

NEW_GPU = Gpu("NVIDIA H200", 141 << 30, 140 << 30, (9, 0))
OLD_GPU = Gpu("Tesla K80", 11 << 30, 11 << 30, (3, 7))


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """distribution(name, version, *lines): metadata of a package that comes first on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def create(name: str, version: str, *lines: str) -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
        (folder / "METADATA").write_text(text + "\n")

    return create


def test_the_installed_python_and_packages_fit():
    assert check_python().findings == ()
    result = check_packages()
    assert [finding for finding in result.findings if finding.severity == "error"] == []
    assert int(result.seen.split()[0]) > 15


def test_an_older_python_is_an_error():
    (finding,) = check_python("3.9.18").findings
    assert finding.severity == "error"
    assert "3.9.18" in finding.what
    assert ">=3.11" in finding.what_to_do


def test_a_required_package_outside_its_bounds_is_an_error(distribution):
    distribution("peft", "0.1.0")
    (finding,) = [finding for finding in check_packages().findings if "peft" in finding.what]
    assert finding.severity == "error"
    assert finding.what.startswith("peft 0.1.0, required: ")
    assert finding.what_to_do.startswith("pip install 'peft")


def test_a_package_of_an_extra_outside_its_bounds_is_a_warning(distribution):
    distribution("gguf", "0.1.0")
    assert [f.severity for f in check_packages().findings if f.what.startswith("gguf 0.1.0")] == ["warning"]


def test_a_required_package_that_is_missing_is_an_error_and_an_optional_one_is_none(distribution):
    requirements = ("no-such-package-a>=1", 'no-such-package-b>=1; extra == "more"')
    distribution("an_app", "1.0", *(f"Requires-Dist: {each}" for each in requirements), "Provides-Extra: more")
    (finding,) = check_packages("an_app").findings
    assert (finding.severity, "no-such-package-a" in finding.what) == ("error", True)


def test_packages_of_the_development_extra_are_not_compared(distribution):
    distribution("ruff", "0.0.1")
    assert not any("ruff" in finding.what for finding in check_packages().findings)


def test_missing_metadata_is_a_warning():
    assert [f.severity for f in check_packages("no-such-distribution").findings] == ["warning"]


@pytest.fixture
def torch_module(tmp_path, monkeypatch):
    """torch_module(source): a module `torch` that processes started from now on import."""

    def create(source: str) -> None:
        (tmp_path / "torch.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return create


# What the query of a torch built for CUDA answers; no test machine has a GPU.
CUDA_BUILD = """
import types
__version__ = "2.13.0+cu130"
version = types.SimpleNamespace(cuda="13.0")
cuda = types.SimpleNamespace(is_available=lambda: {available}, get_arch_list=lambda: ["sm_75", "sm_90", "compute_90"])
class ones:
    def __init__(self, *shape, device=None): pass
    def __matmul__(self, other): return self
    def sum(self): return 8.0
"""


def test_the_installed_torch_can_be_used(warm_python):
    result = check_torch((), warm_python)
    assert result.findings == ()
    assert result.seen.startswith("torch 2.")


def test_a_torch_that_cannot_be_imported_is_an_error(torch_module):
    torch_module("raise ImportError('libcudart.so.13: cannot open shared object file')")
    (finding,) = check_torch(()).findings
    assert finding.severity == "error"
    assert "libcudart.so.13" in finding.what


def test_an_import_that_hangs_is_bounded(torch_module):
    torch_module("import time; time.sleep(600)")
    (finding,) = check_torch((), sys.executable, timeout_s=0.5).findings
    assert "did not respond within 0.5 s" in finding.what


def test_a_cpu_build_on_a_machine_with_gpus_is_an_error(torch_module):
    torch_module(CUDA_BUILD.format(available=False).replace('"13.0"', "None"))
    (finding,) = check_torch([NEW_GPU]).findings
    assert "has 1 GPUs" in finding.what
    assert "CUDA build" in finding.what_to_do


def test_a_driver_too_old_for_torch_is_an_error(torch_module):
    torch_module(CUDA_BUILD.format(available=False))
    (finding,) = check_torch([NEW_GPU]).findings
    assert "cannot use the GPUs" in finding.what
    assert "CUDA 13.0" in finding.what_to_do


def test_a_gpu_that_torch_was_not_built_for_is_an_error(torch_module):
    torch_module(CUDA_BUILD.format(available=True))
    assert check_torch([NEW_GPU]).findings == ()
    (finding,) = check_torch([NEW_GPU, OLD_GPU]).findings
    assert "does not support Tesla K80 (capability 3.7)" in finding.what
