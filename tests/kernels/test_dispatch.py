"""The table of implementations: every operation has one for every tensor, and the first that fits is taken."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tunesmith.kernels import dispatch
from tunesmith.kernels.packed_attention import packed_attention

KERNELS = Path(dispatch.__file__).parent


@pytest.mark.parametrize("operation", list(dispatch.TABLE))
def test_the_last_implementation_takes_everything(operation):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for device in ("cpu", "meta"):
            tensor = torch.empty(0, dtype=dtype, device=device)
            assert dispatch.TABLE[operation][-1].accepts(tensor)
            assert callable(dispatch.choose(operation, tensor))


def test_the_first_that_fits_is_taken(monkeypatch):
    half_only = dispatch.Implementation("half", lambda: "half", lambda tensor: tensor.dtype == torch.float16)
    monkeypatch.setitem(dispatch.TABLE, "packed_attention", [half_only, *dispatch.TABLE["packed_attention"]])
    assert dispatch.choose("packed_attention", torch.empty(1, dtype=torch.float16)) is half_only.function
    assert dispatch.choose("packed_attention", torch.empty(1)) is packed_attention
    assert dispatch.describe(torch.empty(1, dtype=torch.float16))["packed_attention"] == "half"


def test_every_kernel_file_is_in_the_table():
    assert {path.stem for path in KERNELS.glob("*.py")} - {"dispatch"} == set(dispatch.TABLE)


def test_the_folder_is_no_regular_package_and_transformers_still_imports_beside_it():
    """transformers imports any regular package called `kernels` that it finds, and fails."""
    assert not (KERNELS / "__init__.py").exists()
    script = "import sys; sys.path.insert(0, sys.argv[1]); import transformers.modeling_utils"
    subprocess.run([sys.executable, "-c", script, str(KERNELS.parent)], check=True)
