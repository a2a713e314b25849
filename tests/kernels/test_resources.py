"""Which kernels a GPU can run, by its registers and shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm_processes.pool import python_path
from tunesmith.kernels import dispatch, resources
from tunesmith.kernels.resources import NEEDS, Need, misfit, misfits

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PLANTED = """
import json, sys
from tunesmith.kernels import language
from tunesmith.kernels.language import jit, tl
import kernel_resources
@jit
def _planted_kernel(a, b, c, steps, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    square = at[:, None] * BLOCK + at[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for step in range(steps):
        total = tl.dot(tl.load(a + step * BLOCK * BLOCK + square), tl.load(b + step * BLOCK * BLOCK + square), total)
    tl.store(c + square, total)
language._planted_kernel = _planted_kernel
case = {"a": "p16", "b": "p16", "c": "p32", "steps": "n", "BLOCK": 64, "num_stages": 8}
kernel_resources.CASES = {"language._planted_kernel": [case]}
needs = kernel_resources.needs(list(kernel_resources.compiled([86, 90], ["language._planted_kernel"])))
print(json.dumps(needs))
"""


def test_every_triton_entry_has_its_kernels_and_figures():
    triton = {name for name, entries in dispatch.TABLE.items() if any(e.name == dispatch.TRITON for e in entries)}
    assert triton == set(resources.KERNELS)
    assert {kernel for kernels in resources.KERNELS.values() for kernel in kernels} == set(NEEDS)
    assert all(set(by_card) == set(resources.SHARED_BYTES) for by_card in NEEDS.values())


@pytest.mark.parametrize(
    "capability", [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)]
)
def test_every_kernel_fits_every_card(capability):
    assert misfits(capability) == {}


def test_cards_that_the_kernels_are_not_compiled_for_use_the_references():
    assert set(misfits((7, 0))) == set(resources.KERNELS)
    assert "7.5 or later, this GPU has 7.0" in misfits((7, 0))["rope"]
    assert misfit("lora_linear", (7, 0)) is None  # no Triton kernel


@pytest.mark.parametrize(
    ("need", "capability", "reason"),
    [
        (Need(32768, 104_448), (8, 6), "104,448 bytes of shared memory, a program on sm_86 may use 101,376"),
        (Need(32768, 101_376), (8, 6), None),
        (Need(32768, 104_448), (8, 7), "sm_87 may use 101,376"),  # not in the table: as the next lower card
        (Need(32768, 104_448), (8, 0), None),
        (Need(32768, 104_448), (12, 1), "sm_121 may use 101,376"),
        (Need(65_537, 0), (9, 0), "65,537 registers, a program on sm_90 may use 65,536"),
    ],
)
def test_a_kernel_that_needs_more_than_the_card_has_is_named(need, capability, reason):
    needs = {**NEEDS, "rope._rope_kernel": dict.fromkeys(resources.SHARED_BYTES, need)}
    actual = misfit("rope", capability, needs)
    assert actual is None if reason is None else reason in (actual or "")


@pytest.mark.slow
def test_a_compiled_kernel_that_is_too_large_for_sm_86_fits_sm_90(tmp_path):
    pytest.importorskip("triton")
    path = python_path(BENCHMARKS)
    script = tmp_path / "planted.py"
    script.write_text(PLANTED, encoding="utf-8")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": path}
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    (by_card,) = json.loads(result.stdout).values()
    needs = {"rope._rope_kernel": {int(card): Need(*need) for card, need in by_card.items()}}
    assert "shared memory" in (misfit("rope", (8, 6), needs) or "")
    assert misfit("rope", (9, 0), needs) is None
