"""Every Triton kernel compiles for the cards in use and fits them, without a GPU. Correctness is tested in
interpreted/, speed in benchmarks/."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm_processes.pool import python_path
from tunesmith.kernels import language
from tunesmith.kernels.language import jit, triton
from tunesmith.kernels.resources import NEEDS, SHARED_BYTES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
import kernel_resources  # noqa: E402  # pyright: ignore[reportMissingImports]

CARDS = (80, 90)
"""All cards of `resources.SHARED_BYTES` are compiled in `make soak`."""
REGISTERS = {
    # 65,536 registers of a multiprocessor / threads of a program: at least four programs (two with a trained weight).
    "rms_norm._forward_kernel": 64,
    "rms_norm._backward_kernel": 128,
    "layer_norm._forward_kernel": 64,
    "layer_norm._backward_kernel": 128,
    "rope._rope_kernel": 80,  # 4 warps: six programs
    "swiglu._forward_kernel": 64,
    "swiglu._backward_kernel": 64,
    "cross_entropy._forward_kernel": 64,
    "cross_entropy._backward_kernel": 64,
    "nf4._dequantise_kernel": 64,
    "adamw._adamw_kernel": 64,
    "adamw._adamw_8bit_kernel": 64,
}
"""Limit of registers per thread, on which the number of programs that run at a time depends."""
SPILLED = {("rms_norm._backward_kernel", 16): 256}
"""Bytes per thread that may spill, by kernel and warps: rows of 16,384 values with a trained weight."""
BY_BYTE = {"nf4._dequantise_kernel", "adamw._adamw_8bit_kernel"}
"""Kernels that read codes of one byte."""
SCRIPT = """
import json, sys
import kernel_resources
cases, cards, common = kernel_resources.CASES, *json.loads(sys.argv[1])
if common:
    cases.update({name: list(filter(kernel_resources.is_common, of_kernel)) for name, of_kernel in cases.items()})
for one in kernel_resources.compiled(cards):
    print(json.dumps(one))
"""


def compile_all(cards, cache, *, common=False) -> list[kernel_resources.Resources]:
    """In one process of its own: the compiler holds hundreds of megabytes."""
    pytest.importorskip("triton")
    path = python_path(BENCHMARKS)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": path}
    command = [sys.executable, "-c", SCRIPT, json.dumps([list(cards), common])]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    return [kernel_resources.Resources(*json.loads(line)) for line in result.stdout.splitlines()]


def require_fitting(results, cards, name, num_cases):
    of_kernel = [one for one in results if one.name == name]
    assert len(of_kernel) == num_cases * len(cards) > 0
    for one in of_kernel:
        assert one.shared <= SHARED_BYTES[one.card], one
        assert one.spilled <= SPILLED.get((name, one.warps), 0), one
        assert one.registers <= REGISTERS[name], one
        assert one.vectorized or name in BY_BYTE, one


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_all(CARDS, tmp_path_factory.mktemp("triton"), common=True)


@pytest.mark.parametrize("name", list(kernel_resources.CASES))
def test_fits_the_common_cards(name, compiled):
    require_fitting(compiled, CARDS, name, len(list(filter(kernel_resources.is_common, kernel_resources.CASES[name]))))
    for card, need in kernel_resources.needs(compiled)[name].items():
        assert need.registers <= NEEDS[name][card].registers
        assert need.shared_bytes <= NEEDS[name][card].shared_bytes


def test_nf4_reads_a_scale_once_per_block(compiled):
    """Eight bytes per thread: two table values each, the bytes in one load, and a scale in three loads (its code, its
    value and the scale of the scale) and an offset."""
    of_kernel = [one for one in compiled if one.name == "nf4._dequantise_kernel"]
    assert of_kernel
    assert all(one.loads <= 16 + 1 + 4 for one in of_kernel)


@pytest.mark.soak
def test_fits_every_card_and_the_documented_figures_are_current(tmp_path):
    cards = list(SHARED_BYTES)
    results = compile_all(cards, tmp_path)
    for name in kernel_resources.CASES:
        require_fitting(results, cards, name, len(kernel_resources.CASES[name]))
    assert kernel_resources.needs(results) == NEEDS, "run `python benchmarks/kernel_resources.py --needs`"
    page = (BENCHMARKS.parent / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert kernel_resources.table(results) in page, "run `python benchmarks/kernel_resources.py`"


def test_every_kernel_has_a_compile_case():
    launched = {
        f"{path.stem}.{line.split('def ')[1].split('(')[0]}"
        for path in Path(language.__file__).parent.glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("def _") and line.split("(")[0].endswith("_kernel")
    }
    assert launched == set(kernel_resources.CASES)


def test_jit_returns_the_function_without_triton():
    def function(x):
        return x

    assert (jit(function) is function) == (triton is None)
