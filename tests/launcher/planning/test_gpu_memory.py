"""The plan's memory on a GPU: activations are counted with the GPU's kernels in Triton's interpreter, constants are
those of the code that allocates them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.planning.saved_bytes import CASES, TOKENS, shapes_of
from tests.launcher.planning.test_planner import H200, with_gpus
from tunesmith.kernels.linear_cross_entropy import CUDA_CHUNK_BYTES
from tunesmith.launcher.planning import memory
from tunesmith.launcher.planning.memory import footprint
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.training.engine.plain import _BUCKET_BYTES
from tunesmith.training.optim.flat_adamw import FLAT_VALUES

GIB = 1 << 30
SCRIPT = Path(__file__).parent / "saved_bytes.py"


@pytest.fixture(scope="module")
def saved() -> dict[str, list[int]]:
    """Bytes that autograd saves for one more block, by case and shape."""
    pytest.importorskip("triton")
    root = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES)
def test_a_block_keeps_on_a_gpu_what_autograd_saves(saved, a_recipe, a_model, case):
    """Within 3%: products with A (rank 4, seven layers), scales of norms and log-sum-exps are not in the formula."""
    options, overrides = CASES[case]
    kind = options.get("family", "Llama").lower()
    for shape, num_bytes in zip(shapes_of(case), saved[case], strict=True):
        hidden, keys, width = shape

        def token(blocks: int, hidden=hidden, keys=keys, width=width) -> int:
            model = a_model(
                num_layers=blocks, hidden_size=hidden, key_value_size=keys, feed_forward_size=width, model_type=kind
            )
            return footprint(a_recipe(*overrides), model, bf16=True, device="cuda").token

        expected = (token(2) - token(1)) * TOKENS
        assert 0.97 * num_bytes <= expected <= 1.03 * num_bytes, shape


def test_constants_are_those_of_the_code_that_allocates():
    assert memory.CUDA_CHUNK_BYTES == CUDA_CHUNK_BYTES
    assert memory.UPDATE_BYTES == _BUCKET_BYTES + 4 * FLAT_VALUES


def test_what_a_gpu_holds_besides_the_model_is_planned(a_recipe, a_model):
    alone, several = (footprint(a_recipe(), a_model(), True, "cuda", size).process for size in (1, 2))
    assert several - alone == memory.NCCL_BYTES
    assert alone >= memory.CUDA_BYTES + CUDA_CHUNK_BYTES
    full = footprint(a_recipe("method.kind=full"), a_model(), True, "cuda")
    assert full.process - alone == 4 * 49152 * 576  # the head's gradient, twice while it is accumulated
    on_cpu = footprint(a_recipe(), a_model(), False, "cpu", 2)
    assert on_cpu.process == memory.PROCESS_BYTES + memory.HEAD_BYTES


def test_moments_in_8_bits_take_two_bytes_and_their_scales(a_recipe, a_model):
    model = a_model(num_trained_params=1 << 20)
    assert footprint(a_recipe("optimization.optimizer=adamw_8bit"), model, True).optimizer == (2 << 20) + (8 << 12)
    assert footprint(a_recipe(), model, True).optimizer == 8 << 20


def test_llama_8b_needs_what_the_review_of_its_blocks_counted(a_recipe, a_model):
    """LoRA on LLaMA-3-8B, 8,192 tokens: 32 blocks of 6 * 4096 + 2 * 1024 + 3 * 14336 values, 35% less than before."""
    model = a_model(
        num_layers=32, hidden_size=4096, key_value_size=1024, feed_forward_size=14336, vocab_size=128256,
        num_params=8_030_261_248, num_trained_params=41_943_040, tied_embeddings=False,
    )  # fmt: skip
    shape = footprint(a_recipe(), model, bf16=True)
    blocks = 8192 * 32 * 2 * (6 * 4096 + 2 * 1024 + 3 * 14336)
    assert blocks < shape.activations(8192, checkpointing=False) < 1.06 * blocks
    assert 50 * GIB < shape.peak(8192, checkpointing=False) < 54 * GIB
    assert footprint(a_recipe("kernels=off"), model, bf16=True).token > 1.3 * shape.token


def test_offloaded_activations_of_all_blocks_but_one_are_in_cpu_memory(a_recipe, a_model):
    model = a_model(num_layers=32, hidden_size=4096, key_value_size=1024, feed_forward_size=14336)
    kept = footprint(a_recipe(), model, bf16=True)
    moved = footprint(a_recipe("optimization.offload_activations=true"), model, bf16=True)
    block = 2 * (6 * 4096 + 2 * 1024 + 3 * 14336)
    assert kept.token - moved.token == moved.host_token == 31 * block
    assert kept.token_checkpointed - moved.token_checkpointed == moved.host_token_checkpointed == 31 * 2 * 4096
    assert kept.activations_on_host(8192, checkpointing=False) == 0
    assert moved.activations_on_host(10, checkpointing=True) == 310 * 2 * 4096
    assert kept.fixed == moved.fixed


def test_the_plan_says_where_offloaded_activations_are(a_recipe, a_model, some_data):
    data = some_data(1000, 2048, 2048)
    plan = make_plan(a_recipe("optimization.offload_activations=true"), a_model(), data, with_gpus(H200))
    (choice,) = (choice for choice in plan.choices if choice.key == "offload_activations")
    assert choice.value is True
    assert "pinned CPU memory" in choice.reason
    assert choice.num_bytes > 0
