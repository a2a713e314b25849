"""Compiles every Triton kernel for sm_80 and sm_90, without a GPU. Correctness is tested in interpreted/, speed in
benchmarks/."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.kernels import language
from tunesmith.kernels.language import jit, triton

TYPES = {"p32": "*fp32", "p16": "*bf16", "pi": "*i64", "p8": "*u8", "pb": "*i1", "n": "i32", "f": "fp32"}


NORM = {"HAS_RESIDUAL": True, "BLOCK": 4096}
NF4 = {"VALUES_BLOCK": 64, "SCALE_BLOCK": 256, "DOUBLE": True}
ROPE_POINTERS = dict.fromkeys(["query", "key", "cos", "sin", "query_out", "key_out"], "p16")
ROPE_STRIDES = [f"{t}_{d}" for t in ("query", "key", "query_out", "key_out") for d in ("batch", "head", "token")]
ADAMW = dict.fromkeys(["rate", "beta1", "beta2", "eps", "decay", "correction1", "correction2"], "f")
CASES = {
    "rms_norm._forward_kernel": [
        {
            **dict.fromkeys(["hidden", "residual", "weight", "normed", "summed"], "p16"),
            "scale": "p32",
            **dict.fromkeys(["stride_hidden", "stride_residual", "num_values"], "n"),
            "eps": "f",
            "offset": "f",
            **NORM,
        }
    ],
    "rms_norm._backward_kernel": [
        {
            **dict.fromkeys(["dnormed", "dsummed", "hidden", "weight", "dhidden"], "p16"),
            **dict.fromkeys(["scale", "dweight"], "p32"),
            **dict.fromkeys(["stride_dnormed", "stride_dsummed", "stride_hidden", "num_rows", "num_values"], "n"),
            "rows_each": "n",
            "offset": "f",
            "WANTS_WEIGHT": True,
            **NORM,
        }
    ],
    "layer_norm._forward_kernel": [
        {
            **dict.fromkeys(["hidden", "weight", "bias", "normed"], "p16"),
            "mean": "p32",
            "scale": "p32",
            "stride": "n",
            "num_values": "n",
            "eps": "f",
            "HAS_BIAS": True,
            "BLOCK": 1024,
        }
    ],
    "layer_norm._backward_kernel": [
        {
            **dict.fromkeys(["dnormed", "hidden", "weight", "dhidden"], "p16"),
            **dict.fromkeys(["mean", "scale", "dweight", "dbias"], "p32"),
            **dict.fromkeys(["stride_dnormed", "stride_hidden", "num_rows", "num_values", "rows_each"], "n"),
            "WANTS_WEIGHT": True,
            "BLOCK": 1024,
        }
    ],
    "rope._rope_kernel": [
        {
            **ROPE_POINTERS,
            **dict.fromkeys([*ROPE_STRIDES, "cos_batch", "cos_token", "sin_batch", "sin_token"], "n"),
            **dict.fromkeys(["num_tokens", "num_query_heads", "num_key_heads", "half"], "n"),
            "BACKWARD": backward,
            "QUERY_HEADS": 32,
            "KEY_HEADS": 8,
            "HALF": 64,
        }
        for backward in (False, True)
    ],
    "swiglu._forward_kernel": [
        {
            **dict.fromkeys(["gate", "up", "output"], "p16"),
            **dict.fromkeys(["stride_gate", "stride_up", "num_values"], "n"),
            "ACTIVATION": activation,
            "BLOCK": 1024,
        }
        for activation in (0, 1, 2)
    ],
    "swiglu._backward_kernel": [
        {
            **dict.fromkeys(["doutput", "gate", "up", "dgate", "dup"], "p16"),
            **dict.fromkeys(["stride_doutput", "stride_gate", "stride_up", "stride_gradient", "num_values"], "n"),
            "ACTIVATION": activation,
            "BLOCK": 1024,
        }
        for activation in (0, 1, 2)
    ],
    "cross_entropy._forward_kernel": [
        {
            "logits": "p16",
            "labels": "pi",
            "losses": "p32",
            "correct": "pb",
            "log_totals": "p32",
            "stride": "n",
            "num_logits": "n",
            "smoothing": "f",
            "cap": "f",
            "z_loss": "f",
            "HAS_CAP": cap,
            "IN_PLACE_GRADIENT": in_place,
            "BLOCK": 32768,
            "num_warps": 32,
        }
        for cap, in_place in ((False, True), (True, False))
    ],
    "cross_entropy._backward_kernel": [
        {
            "dlosses": "p32",
            "logits": "p16",
            "labels": "pi",
            "log_totals": "p32",
            "dlogits": "p16",
            "stride_dlosses": "n",
            "stride": "n",
            "num_logits": "n",
            "smoothing": "f",
            "cap": "f",
            "z_loss": "f",
            "HAS_CAP": True,
            "BLOCK": 32768,
            "num_warps": 32,
        }
    ],
    "nf4._dequantise_kernel": [
        {
            "packed": "p8",
            "scales": "p8",
            "table": "p32",
            "scale_table": "p32",
            "scale_scales": "p32",
            "scale_offset": "p32",
            "numbers": "p16",
            "num_bytes": "n",
            "num_values": "n",
            **NF4,
            "BLOCK": 1024,
        }
    ],
    "lora_linear._fused_kernel": [
        {
            "x": "p16",
            "weight": "p8" if nf4 else "p16",
            "bias": "p16",
            "a": "p16",
            "b": "p16",
            "y": "p16",
            "scales": "p8",
            "table": "p32",
            "scale_table": "p32",
            "scale_scales": "p32",
            "scale_offset": "p32",
            "scaling": "f",
            "stride_x": "n",
            "stride_weight": "n",
            "stride_a": "n",
            "stride_b": "n",
            **dict.fromkeys(["num_tokens", "num_inputs", "num_outputs", "rank"], "n"),
            "HAS_BIAS": True,
            "NF4": nf4,
            **NF4,
            "UPCAST": False,
            "BLOCK_T": 64,
            "BLOCK_O": 128,
            "BLOCK_I": 64,
            "BLOCK_R": 16,
            "num_warps": 8,
        }
        for nf4 in (False, True)
    ],
    "adamw._adamw_kernel": [
        {
            **dict.fromkeys(["parameter", "gradient", "first", "second"], "p32"),
            "num_values": "n",
            **ADAMW,
            "BLOCK": 1024,
        }
    ],
    "adamw._adamw_8bit_kernel": [
        {
            "parameter": "p32",
            "gradient": "p16",
            "first": "p8",
            "second": "p8",
            **dict.fromkeys(["first_scales", "second_scales", "first_table", "second_table"], "p32"),
            "first_middles": "p32",
            "second_middles": "p32",
            "num_values": "n",
            **ADAMW,
            "BLOCK": 256,
        }
    ],
}

SCRIPT = """
import importlib, json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
all_cases, type_names = json.loads(sys.argv[1])
for name, cases in all_cases.items():
    module, kernel = name.split(".")
    kernel = getattr(importlib.import_module("tunesmith.kernels." + module), kernel)
    for case in cases:
        options = {"num_warps": case.pop("num_warps", 4)}
        types = {k: type_names[v] if isinstance(v, str) else "constexpr" for k, v in case.items()}
        constants = {k: v for k, v in case.items() if not isinstance(v, str)}
        for architecture in (80, 90):
            source = ASTSource(kernel, {p: types[p] for p in kernel.arg_names}, constexprs=constants)
            compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
            print(name, architecture, len(compiled.asm["cubin"]), compiled.metadata.shared)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> list[list[str]]:
    """Name, architecture, bytes of machine code and of shared memory of every case, compiled in one process."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    command = [sys.executable, "-c", SCRIPT, json.dumps([CASES, TYPES])]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    return [line.split() for line in result.stdout.splitlines()]


@pytest.mark.parametrize("name", list(CASES))
def test_compiles_to_sm_80_and_sm_90(name, compiled):
    results = [(architecture, int(size), int(shared)) for case, architecture, size, shared in compiled if case == name]
    assert [architecture for architecture, _, _ in results] == ["80", "90"] * len(CASES[name])
    assert all(size > 1000 and shared <= 163 << 10 for _, size, shared in results)  # shared memory of an A100


def test_every_kernel_has_a_compile_case():
    launched = {
        f"{path.stem}.{line.split('def ')[1].split('(')[0]}"
        for path in Path(language.__file__).parent.glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("def _") and line.split("(")[0].endswith("_kernel")
    }
    assert launched == set(CASES)


def test_jit_returns_the_function_without_triton():
    def function(x):
        return x

    assert (jit(function) is function) == (triton is None)
