#!/bin/sh
# Runs the numeric tests with PyTorch and oneDNN limited to older instruction sets, to emulate other CPUs.
# Levels that this CPU does not support are equivalent to its newest.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

run_as() {
    echo "== $*"
    env "$@" "$python" -m pytest -q -m "not soak and not weights" -k "not smollm2" --numprocesses=2 --dist=loadgroup \
        tests/kernels/test_cpu_forms.py tests/kernels/test_linear_cross_entropy.py tests/kernels/test_packed_attention.py \
        tests/kernels/test_references.py tests/modeling tests/training tests/evaluation tests/inference
}

run_as ATEN_CPU_CAPABILITY=default
run_as ATEN_CPU_CAPABILITY=avx2
run_as ATEN_CPU_CAPABILITY=avx512
run_as ONEDNN_MAX_CPU_ISA=AVX2
run_as ONEDNN_MAX_CPU_ISA=AVX512_CORE
