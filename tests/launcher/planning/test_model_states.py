"""Weights, gradients and optimizer state on GPUs: as DeepSpeed's estimators count them, and as published runs fit."""

import pytest

from tunesmith.configs.load import load_recipe_text
from tunesmith.launcher.planning.batching import DoesNotFit
from tunesmith.launcher.planning.machines import parse_machines
from tunesmith.launcher.planning.memory import footprint
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.planning.sharding import choose_sharding
from tunesmith.launcher.planning.world import World

GIB = 1 << 30
RECIPE = """\
name: large
model: {base: models/some}
method: {kind: full}
data: {train: [support.jsonl], max_seq_len: 2048}
"""
SHAPES = {
    "Llama 3 8B": (32, 4096, 14336, 128256, 8_030_261_248),
    "Llama 2 13B": (40, 5120, 13824, 32000, 13_015_864_320),
    "Llama 3 70B": (80, 8192, 28672, 128256, 70_553_706_496),
    "Mixtral 8x7B": (32, 4096, 14336, 32000, 46_702_792_704),
}


@pytest.fixture
def shaped(a_model):
    def model(name: str, trained: int | None = None):
        layers, hidden, width, vocabulary, params = SHAPES[name]
        return a_model(
            num_layers=layers, hidden_size=hidden, feed_forward_size=width, vocab_size=vocabulary, num_params=params,
            num_trained_params=trained or params, tied_embeddings=False, key_value_size=1024,
        )  # fmt: skip

    return model


def states(model, world_size: int, *overrides: str):
    recipe = load_recipe_text(RECIPE, overrides=overrides)
    return choose_sharding(
        recipe, model, footprint(recipe, model, bf16=True, world_size=world_size), longest_tokens=2048,
        memory_bytes=1 << 50, world_size=world_size, device="cuda", precision="bf16",
    ).shape  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("num_nodes", [1, 4])
def test_model_states_are_those_of_deepspeeds_estimators(shaped, name, num_nodes):
    stage_1_and_2 = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2")
    stage3 = pytest.importorskip("deepspeed.runtime.zero.stage3")
    model = shaped(name)
    params, size = model.num_params, 8 * num_nodes
    _, expected = stage_1_and_2.estimate_zero2_model_states_mem_needs(params, 8, num_nodes, cpu_offload=False)
    # The estimator adds up 2 + 4 bytes of gradients and 12 of optimizer state per weight.
    assert states(model, size, "parallelism.zero_stage=2").model_states == pytest.approx(expected, rel=1e-6)
    _, expected = stage_1_and_2.estimate_zero2_model_states_mem_needs(params, 8, num_nodes, cpu_offload=True)
    offloaded = states(model, size, "parallelism.zero_stage=2", "parallelism.offload_optimizer=cpu")
    assert offloaded.model_states == pytest.approx(expected, rel=1e-6)

    def stage_3(**offload: bool) -> int:
        _, memory, largest = stage3.estimate_zero3_model_states_mem_needs(params, 0, 8, num_nodes, **offload)
        assert largest == 0
        return memory

    three = "parallelism.zero_stage=3"
    expected = stage_3(cpu_offload=False, cpu_offload_params=False)
    assert states(model, size, three).model_states == pytest.approx(expected, rel=1e-6)
    expected = stage_3(cpu_offload=True, cpu_offload_params=False)
    offloaded = states(model, size, three, "parallelism.offload_optimizer=cpu")
    assert offloaded.model_states == pytest.approx(expected, rel=1e-6)
    everything = states(model, size, three, "parallelism.offload_optimizer=cpu", "parallelism.offload_params=cpu")
    assert everything.model_states == stage_3(cpu_offload=True, cpu_offload_params=True) == 0


def test_offloaded_state_is_in_cpu_memory(shaped):
    model = shaped("Llama 3 8B")
    kept = states(model, 8, "parallelism.zero_stage=3")
    offloaded = states(
        model, 8, "parallelism.zero_stage=3", "parallelism.offload_optimizer=cpu", "parallelism.offload_params=cpu"
    )
    assert kept.host == 0
    assert offloaded.host == kept.model_states


def planned(recipe, model, data, machines: str):
    place = parse_machines(machines)
    world = World(place.nodes * place.gpus_per_node, place.nodes * place.gpus_per_node, place.nodes)
    return make_plan(recipe, model, data, place.hardware(), world=world)


def test_published_runs_fit(shaped, a_model, some_data):
    """QLoRA of LLaMA-65B on one GPU with 48 GB (Dettmers et al. 2023, arXiv:2305.14314), full fine-tuning of a 7B model
    with ZeRO-3 on eight with 80 GB (published by many, such as the alignment handbook's recipes)."""
    llama_65b = a_model(
        num_layers=80, hidden_size=8192, feed_forward_size=22016, vocab_size=32000, num_params=65_285_660_672,
        num_trained_params=399_769_600, tied_embeddings=False,
    )  # fmt: skip
    qlora = ("method.kind=qlora", "method.lora_rank=32", "data.max_seq_len=512", "optimization.optimizer=adamw_8bit")
    recipe = load_recipe_text(RECIPE, overrides=qlora)
    plan = planned(recipe, llama_65b, some_data(1000, 512, 512), "A6000")
    assert plan.compute.estimated_peak_bytes < 46.5 * GIB
    with pytest.raises(DoesNotFit):
        planned(load_recipe_text(RECIPE, overrides=("method.kind=lora",)), llama_65b, some_data(), "A6000")
    llama_7b = a_model(
        num_layers=32, hidden_size=4096, feed_forward_size=11008, vocab_size=32000, num_params=6_738_415_616,
        num_trained_params=6_738_415_616, tied_embeddings=False,
    )  # fmt: skip
    recipe = load_recipe_text(RECIPE, overrides=("parallelism.zero_stage=3", "optimization.global_batch_size=64"))
    plan = planned(recipe, llama_7b, some_data(1000, 2048, 2048), "8x80GB")
    assert plan.parallelism.zero_stage == 3
    assert plan.compute.estimated_peak_bytes < 77 * GIB
    with pytest.raises(DoesNotFit):  # 16 bytes per weight on each GPU
        planned(load_recipe_text(RECIPE, overrides=("parallelism.zero_stage=0",)), llama_7b, some_data(), "8x80GB")
