"""The lowest ZeRO stage that fits is chosen, with its reason and its bytes."""

import pytest

from tunesmith.configs.load import load_recipe_text
from tunesmith.errors import InputError
from tunesmith.launcher.planning.memory import footprint
from tunesmith.launcher.planning.sharding import choose_sharding

GIB = 1 << 30
FULL = """\
name: large
model: {base: models/some}
method: {kind: full}
data: {train: [support.jsonl], packing: false}
"""


@pytest.fixture
def shard(a_model):
    """shard(memory in GiB, processes, *overrides, ...) -> Sharding of a model with the shape of LLaMA-7B."""
    model = a_model(
        num_layers=32, hidden_size=4096, vocab_size=32000, num_params=6_738_415_616,
        num_trained_params=6_738_415_616, tied_embeddings=False,
    )  # fmt: skip

    def run(memory: float, world_size: int, *overrides: str, model=model, precision="bf16", **keywords):
        recipe = load_recipe_text(FULL, overrides=overrides)
        return choose_sharding(
            recipe,
            model,
            footprint(recipe, model, bf16=precision == "bf16"),
            longest_tokens=1024,
            memory_bytes=int(memory * GIB),
            world_size=world_size,
            device="cuda",
            precision=precision,
            **keywords,
        )

    return run


def test_the_lowest_stage_that_fits_is_chosen(shard):
    assert shard(160, 8).zero_stage == 0
    assert shard(60, 8).zero_stage == 2
    assert shard(24, 16).zero_stage == 3
    (choice,) = shard(60, 8).choices
    assert choice.reason.startswith("the lowest stage that fits in memory; 8 processes shard")
    assert choice.num_bytes < shard(160, 8).choices[0].num_bytes / 3


def test_each_stage_needs_less_memory_than_the_previous_one(shard):
    shapes = [shard(1000, 8, f"parallelism.zero_stage={stage}").shape for stage in (0, 1, 2, 3)]
    assert [shape.fixed for shape in shapes] == sorted((shape.fixed for shape in shapes), reverse=True)
    params = 6_738_415_616
    assert shapes[1].optimizer == pytest.approx(params * 12 / 8, rel=1e-6)  # two moments and the master weights
    assert shapes[1].gradients == shapes[0].gradients == params * 4
    assert shapes[2].gradients == pytest.approx(params * 6 / 8, rel=1e-6)  # in fp32, and the reduced shard in 16 bits
    assert shapes[3].weights < shapes[2].weights / 4
    offloaded = shard(1000, 8, "parallelism.zero_stage=3", "parallelism.offload_optimizer=cpu")
    assert offloaded.shape.optimizer == 0


def test_scales_of_weights_in_4_bits_are_not_sharded(shard, a_model):
    """DeepSpeed shards parameters: of NF4 the codes, not the scales of 64 weights each, in fp32 here."""
    experts, others = 20_000_000_000, 262_144_000
    model = a_model(
        num_layers=32, hidden_size=4096, vocab_size=32000, num_params=experts + others, num_trained_params=4_000_000,
        tied_embeddings=False, num_experts=64, num_expert_params=experts, feed_forward_size=1024,
    )  # fmt: skip
    options = ("method.kind=qlora", "method.double_quantization=false")
    codes, scales = experts / 2, experts / 16
    sizes = [shard(1000, size, "parallelism.zero_stage=3", *options, model=model).shape.weights for size in (2, 4)]
    assert sizes[0] - sizes[1] == pytest.approx((codes + 2 * others + 6 * 4e6) / 4, rel=1e-3)
    assert sizes[1] > scales + codes / 4
    offloaded = ("parallelism.offload_params=cpu", *options)
    assert shard(1000, 4, "parallelism.zero_stage=3", *offloaded, model=model).shape.weights > scales


def test_a_single_process_does_not_shard(shard):
    assert shard(160, 1).zero_stage == 0
    assert "single process" in shard(160, 1).choices[0].reason
    assert shard(160, 1, "parallelism.offload_optimizer=cpu").zero_stage == 2


def test_adapters_use_stage_0_or_stage_3(shard, a_model):
    model = a_model(
        num_layers=80, hidden_size=8192, vocab_size=128_256, num_params=70_553_706_496,
        num_trained_params=200_000_000, tied_embeddings=False,
    )  # fmt: skip
    assert shard(400, 8, "method.kind=lora", model=model).zero_stage == 0
    assert shard(80, 8, "method.kind=lora", model=model).zero_stage == 3
    assert shard(80, 8, "method.kind=qlora", model=model).zero_stage == 0


def test_a_stage_in_the_recipe_or_in_the_deepspeed_file_is_used(shard):
    assert shard(160, 8, "parallelism.zero_stage=1").zero_stage == 1
    user = {"zero_optimization": {"stage": 3}}
    sharding = shard(160, 8, user=user)
    assert sharding.zero_stage == 3
    assert "set in the DeepSpeed configuration" in sharding.choices[0].reason


def test_a_missing_package_is_reported_at_planning(shard):
    assert shard(60, 8, installed=lambda package: False).zero_stage == 0
    with pytest.raises(InputError) as caught:
        shard(160, 8, "parallelism.zero_stage=2", installed=lambda package: package != "deepspeed")
    assert "tunesmith[deepspeed]" in str(caught.value.remedy)
    with pytest.raises(InputError) as caught:
        shard(160, 8, "method.kind=qlora", installed=lambda package: package != "bitsandbytes")
    assert "tunesmith[qlora]" in str(caught.value.remedy)


def test_incompatible_options_are_rejected(shard):
    with pytest.raises(InputError, match="unsupported combination"):
        shard(160, 8, "parallelism.zero_stage=2", "parallelism.offload_params=cpu")


def test_all_activations_are_counted_if_blocks_are_not_replaced(a_model):
    model = a_model(model_type="llama")
    lora = FULL.replace("{kind: full}", "{kind: lora}")

    def shape(text: str):
        return footprint(load_recipe_text(text), model, bf16=False, device="cpu")

    fast = shape(lora)
    plain = shape(lora + "kernels: off\n")
    assert fast.token < plain.token
    assert fast.token_checkpointed == plain.token_checkpointed  # recomputed blocks use the original implementation
    for other in ("task: classification\n", "task: seq2seq\n", "parallelism: {zero_stage: 3}\n"):
        assert shape(lora + other).token == plain.token
    zero_3 = choose_sharding(
        load_recipe_text(lora), model, fast, longest_tokens=64, memory_bytes=1, world_size=2, device="cpu",
        precision="fp32",
    )  # fmt: skip
    assert zero_3.zero_stage == 3
    assert zero_3.shape.token == plain.token


@pytest.mark.parametrize(
    ("kind", "num_layers", "num_params", "measured_bytes"),
    [("full", 4, 47_588_352, 2_778e6), ("full", 8, 94_782_464, 4_398e6), ("lora", 4, 47_588_352, 1_675e6)],
)
def test_zero_3_on_a_cpu_is_not_predicted_below_what_was_measured(
    a_model, kind, num_layers, num_params, measured_bytes
):
    """Two processes with gloo, blocks of 1024 x 2816 in fp32, steps of 512 tokens: peak resident memory of rank 0."""
    model = a_model(
        num_layers=num_layers, hidden_size=1024, vocab_size=384, num_params=num_params,
        num_trained_params=num_params if kind == "full" else 1_196_032,
    )  # fmt: skip
    recipe = load_recipe_text(FULL, overrides=("parallelism.zero_stage=3", f"method.kind={kind}"))

    def peak(user: dict | None = None) -> int:
        sharding = choose_sharding(
            recipe, model, footprint(recipe, model, bf16=False, device="cpu"), longest_tokens=512,
            memory_bytes=16 * GIB, world_size=2, device="cpu", precision="fp32", user=user,
        )  # fmt: skip
        return sharding.shape.peak(512, checkpointing=False)

    assert measured_bytes < peak() < 1.2 * measured_bytes
    assert peak({"zero_optimization": {"stage3_max_live_parameters": 10_000_000}}) < peak() - 8 * num_params
