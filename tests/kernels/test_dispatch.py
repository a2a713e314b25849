"""The dispatch table: every operation has an implementation for every tensor, and the first match is chosen."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tunesmith.kernels import dispatch, rms_norm
from tunesmith.kernels.packed_attention import packed_attention
from tunesmith.kernels.parity import check
from tunesmith.kernels.parity_examples import EXAMPLES, Sizes

KERNELS = Path(dispatch.__file__).parent


@pytest.mark.parametrize("operation", list(dispatch.TABLE))
def test_the_reference_accepts_every_tensor(operation):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for device in ("cpu", "meta"):
            tensor = torch.empty(0, dtype=dtype, device=device)
            assert dispatch.TABLE[operation][-1].accepts(tensor)
            assert callable(dispatch.choose(operation, tensor))


def test_the_first_matching_entry_is_chosen(monkeypatch):
    half_only = dispatch.Implementation("half", lambda: "half", lambda tensor: tensor.dtype == torch.float16)
    monkeypatch.setitem(dispatch.TABLE, "packed_attention", [half_only, *dispatch.TABLE["packed_attention"]])
    assert dispatch.choose("packed_attention", torch.empty(1, dtype=torch.float16)) is half_only.function
    assert dispatch.choose("packed_attention", torch.empty(1)) is packed_attention


def test_off_and_unnamed_operations_use_the_reference():
    tensor = torch.empty(1)
    assert dispatch.Kernels("auto").choose("rms_norm", tensor) is not rms_norm.rms_norm
    for kernels in (dispatch.Kernels("off"), dispatch.Kernels(["swiglu"])):
        assert kernels.choose("rms_norm", tensor) is rms_norm.rms_norm
    assert dispatch.Kernels(["rms_norm"]).choose("rms_norm", tensor) is rms_norm.rms_norm_cpu
    kernels = dispatch.Kernels()
    kernels.switch_off("rms_norm")
    assert kernels.choose("rms_norm", tensor) is rms_norm.rms_norm
    assert dispatch.choose("rms_norm", tensor) is rms_norm.rms_norm_cpu


def test_triton_is_chosen_only_on_gpus():
    """On a CPU Triton needs the interpreter, which is not enabled in this process."""
    for entries in dispatch.TABLE.values():
        for entry in entries:
            if entry.name == "triton":
                assert not entry.accepts(torch.empty(1, 4))
                assert not entry.accepts(torch.empty(4, dtype=torch.uint8))


def test_every_kernel_file_is_in_the_table():
    """Except files without an operation of their own."""
    in_table = {e.function.__module__.rsplit(".", 1)[-1] for entries in dispatch.TABLE.values() for e in entries}
    assert {path.stem for path in KERNELS.glob("*.py")} - {
        "capped_attention",
        "compute_copy",
        "dispatch",
        "exhausted",
        "gradient_sums",
        "language",
        "parity",
        "parity_examples",
        "query_blocks",
        "resources",
        "trained_rows",
        "varlen_attention",
    } == in_table


def test_the_folder_is_not_a_regular_package_and_transformers_imports():
    """transformers imports any regular package called `kernels`, and would fail."""
    assert not (KERNELS / "__init__.py").exists()
    script = "import sys; sys.path.insert(0, sys.argv[1]); import transformers.modeling_utils"
    subprocess.run([sys.executable, "-c", script, str(KERNELS.parent)], check=True)


@pytest.mark.parametrize("residual", [torch.float32, torch.bfloat16])
def test_no_kernel_is_disabled_because_its_example_has_other_dtypes_than_the_run(residual):
    """Under autocast hidden states between layers are fp32, and what enters the products is bf16."""
    bf16 = torch.bfloat16
    sizes = Sizes(32, 64, 96, 4, 2, 16, 128, 4, bf16, "cpu", torch.float32, residual, trains_head=True)
    faults = {parity.operation: parity.fault for parity in check(dispatch.Kernels("auto"), sizes, EXAMPLES)}
    assert faults
    assert not any(faults.values()), faults
