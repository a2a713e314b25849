#!/bin/sh
# Runs the numeric tests as other kinds of CPU would: with PyTorch's and oneDNN's instructions limited to older ones.
# The kinds that this CPU does not have are the same as its own newest.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

run_as() {
    echo "== $*"
    env "$@" "$python" -m pytest -q -m "not soak" --numprocesses=2 --dist=loadgroup \
        tests/kernels/test_cpu_forms.py tests/kernels/test_linear_cross_entropy.py tests/kernels/test_packed_attention.py \
        tests/kernels/test_references.py tests/modeling tests/training tests/evaluation tests/inference
}

run_as ATEN_CPU_CAPABILITY=default
run_as ATEN_CPU_CAPABILITY=avx2
run_as ATEN_CPU_CAPABILITY=avx512
run_as ONEDNN_MAX_CPU_ISA=AVX2
run_as ONEDNN_MAX_CPU_ISA=AVX512_CORE
