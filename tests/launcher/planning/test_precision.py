"""Precision by compute capability, and GPUs that the installed torch was not built for."""

import itertools
from dataclasses import replace

import pytest

from tunesmith.errors import InputError
from tunesmith.launcher.hardware import Gpu, Hardware
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.planning.precision import choose_precision, require_supported
from tunesmith.modeling.precision import BF16_CAPABILITY

GIB = 1 << 30
V100 = Gpu("Tesla V100-SXM2-16GB", 16 * GIB, 15 * GIB, (7, 0))
GPU_NODE = Hardware(8, "cores", 64 * GIB, "free", frozenset(), (V100,), True)
CUDA_126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CUDA_130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


@pytest.mark.parametrize(
    ("requested", "capability", "precision", "facts"),
    [
        ("auto", (9, 0), "bf16", ["capability 9.0 has bf16"]),
        ("auto", (8, 0), "bf16", ["capability 8.0 has bf16"]),
        ("auto", (7, 5), "fp16", ["7.5 lacks bf16", "scaled dynamically"]),
        ("auto", (7, 0), "fp16", ["7.0 lacks bf16", "scaled dynamically"]),
        ("auto", (6, 1), "fp32", ["lacks bf16 and fp16"]),
        ("fp16", (9, 0), "fp16", ["set in the recipe", "scaled dynamically"]),
        ("bf16", (7, 5), "bf16", ["set in the recipe", "bf16 is many times slower"]),
        ("fp32", (9, 0), "fp32", ["set in the recipe"]),
    ],
)
def test_precision_follows_the_tensor_cores(a_recipe, requested, capability, precision, facts):
    chosen, why = choose_precision(a_recipe(f"precision={requested}"), GPU_NODE, capability)
    assert chosen == precision
    assert all(fact in why for fact in [*facts, "without TF32"])
    assert ("scaled" in why) == (precision == "fp16")


def test_training_and_inference_agree_on_bf16(a_recipe):
    assert {choose_precision(a_recipe(), GPU_NODE, c)[0] == "bf16" for c in ((8, 0), (9, 0))} == {True}
    assert BF16_CAPABILITY == (8, 0)


@pytest.mark.parametrize(
    ("architectures", "capability", "supported"),
    [
        (CUDA_126, (7, 0), True),
        (CUDA_130, (7, 0), False),
        (CUDA_130, (7, 5), True),
        (CUDA_130, (8, 9), True),  # machine code of sm_86
        (CUDA_130, (12, 1), True),
        (CUDA_130, (13, 0), True),  # compiled from compute_120 when it is loaded
        (("sm_90a",), (9, 0), True),
        (("sm_90a",), (9, 1), False),
        (("sm_80",), (9, 0), False),
        ((), (7, 0), True),  # unknown
    ],
)
def test_the_build_of_torch_decides_which_gpus_it_can_use(architectures, capability, supported):
    gpu = replace(V100, capability=capability)
    if supported:
        require_supported(gpu, architectures)
    else:
        with pytest.raises(InputError, match="was built for"):
            require_supported(gpu, architectures)


def test_a_v100_is_refused_by_a_build_without_it(a_recipe, a_model, some_data):
    hardware = Hardware(8, "cores", 64 * GIB, "free", frozenset(), (V100,), True, CUDA_130)
    with pytest.raises(InputError) as refused:
        make_plan(a_recipe(), a_model(), some_data(), hardware)
    assert "cannot use Tesla V100-SXM2-16GB (sm_70): it was built for sm_75" in refused.value.what
    assert "CUDA 12.6" in refused.value.remedy
    plan = make_plan(a_recipe(), a_model(), some_data(), replace(hardware, torch_architectures=CUDA_126))
    assert (plan.compute.device, plan.compute.precision, plan.compute.deterministic) == ("cuda", "fp16", "warn")
    kernels = next(choice for choice in plan.choices if choice.key == "kernels")
    assert "need compute capability 7.5" in kernels.reason


def test_fp16_takes_the_memory_of_bf16(a_recipe, a_model, some_data):
    gpu = Gpu("NVIDIA H200", 140 * GIB, 139 * GIB, (9, 0))
    hardware = Hardware(16, "cores", 128 * GIB, "free", frozenset(), (gpu,), True)
    peaks = {
        precision: make_plan(
            a_recipe(f"precision={precision}"), a_model(), some_data(), hardware
        ).compute.estimated_peak_bytes
        for precision in ("fp32", "bf16", "fp16")
    }
    assert peaks["fp16"] == peaks["bf16"] < peaks["fp32"]


@pytest.mark.parametrize(("kind", "stage"), itertools.product(["full", "lora"], [1, 2, 3]))
def test_deepspeed_keeps_fp32_weights_in_fp16(a_recipe, a_model, some_data, kind, stage):
    """Its own fp16 mode would keep the scale in files that checkpoints do not have."""
    gpu = Gpu("Tesla T4", 15 * GIB, 14 * GIB, (7, 5))
    hardware = Hardware(16, "cores", 128 * GIB, "free", frozenset(), (gpu,), True)
    recipe = a_recipe(f"method={{kind: {kind}}}", f"parallelism.zero_stage={stage}")
    plan = make_plan(recipe, a_model(), some_data(), hardware)
    assert plan.compute.precision == "fp16"
    assert plan.parallelism.deepspeed is not None
    assert not {"fp16", "bf16"} & plan.parallelism.deepspeed.keys()
