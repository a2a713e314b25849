"""The plan's arithmetic holds for any numbers, and every choice that depends on the hardware has a reason."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.configs.plan import Plan, read_plan
from tunesmith.errors import InputError
from tunesmith.launcher.hardware import Gpu, Hardware
from tunesmith.launcher.planning.disk import checkpoint_bytes, export_bytes
from tunesmith.launcher.planning.memory import feed_forward_width, footprint
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.planning.world import World
from tunesmith.launcher.product_rates import ProductRates

GIB = 1 << 30
CPU = Hardware(2, "cores of this machine", 20 * GIB, "free on this machine", frozenset({"avx2"}))
AMX = Hardware(
    8,
    "cores of this machine",
    64 * GIB,
    "free on this machine",
    frozenset({"avx2", "amx_bf16"}),
    product_rates=ProductRates(fp32=118.0, bf16=371.0),
)
H200 = Gpu("NVIDIA H200", 140 * GIB, 139 * GIB, (9, 0))
T4 = Gpu("Tesla T4", 15 * GIB, 14 * GIB, (7, 5))
P100 = Gpu("Tesla P100", 16 * GIB, 15 * GIB, (6, 0))


def with_gpus(*gpus: Gpu, torch_has_cuda: bool = True) -> Hardware:
    return Hardware(16, "cores of this machine", 128 * GIB, "free on this machine", frozenset(), gpus, torch_has_cuda)


def with_rates(fp32: float, bf16: float) -> Hardware:
    return replace(AMX, cpu_flags=frozenset({"avx512_bf16"}), product_rates=ProductRates(fp32, bf16))


def reason(plan: Plan, key: str) -> str:
    return next(choice.reason for choice in plan.choices if choice.key == key)


# --- steps


@given(
    samples=st.integers(1, 10**6),
    epochs=st.integers(1, 50),
    batch=st.integers(1, 512),
    max_steps=st.none() | st.integers(1, 10**4),
    fraction=st.floats(0, 0.999),
)
def test_step_counts_follow_from_samples_epochs_and_batch_size(
    a_recipe, a_model, some_data, samples, epochs, batch, max_steps, fraction
):
    recipe = a_recipe(
        f"optimization.epochs={epochs}",
        f"optimization.global_batch_size={batch}",
        f"optimization.max_steps={'null' if max_steps is None else max_steps}",
        f"optimization.warmup_fraction={fraction}",
    )
    plan = make_plan(recipe, a_model(), some_data(samples), CPU)
    planned = -(-samples * epochs // batch)
    assert plan.batch.total_steps == min(planned, max_steps or planned)
    assert plan.batch.steps_per_epoch == samples / batch
    assert 0 <= plan.batch.warmup_steps < plan.batch.total_steps
    assert plan.batch.warmup_steps <= math.ceil(fraction * plan.batch.total_steps)
    assert plan.batch.warmup_steps >= min(plan.batch.total_steps - 1, fraction * plan.batch.total_steps - 1e-6)
    assert 1 <= plan.batch.checkpoint_every_steps <= plan.batch.total_steps


@pytest.mark.parametrize(("fraction", "steps", "warmup"), [(0.03, 100, 3), (0.07, 100, 7), (0.03, 10, 1), (0, 9, 0)])
def test_rounding_does_not_lengthen_the_warmup(a_recipe, a_model, some_data, fraction, steps, warmup):
    recipe = a_recipe(f"optimization.warmup_fraction={fraction}", "optimization.global_batch_size=1")
    assert make_plan(recipe, a_model(), some_data(steps), CPU).batch.warmup_steps == warmup


def test_checkpoints_are_written_once_per_epoch_by_default(a_recipe, a_model, some_data):
    plan = make_plan(a_recipe("optimization.epochs=3"), a_model(), some_data(100), CPU)
    assert plan.batch.checkpoint_every_steps == 13
    assert "once per epoch" in reason(plan, "checkpoint_every_steps")
    plan = make_plan(a_recipe("checkpoint.every_steps=20"), a_model(), some_data(100), CPU)
    assert plan.batch.checkpoint_every_steps == 20


def test_the_evaluation_interval_follows_from_recipe_and_rows(a_recipe, a_model, some_data):
    def every(data, *overrides):
        return make_plan(a_recipe(*overrides), a_model(), data, CPU).batch.evaluation_every_steps

    assert every(some_data()) is None
    assert every(some_data(), "evaluation.every_steps=5") == 5
    assert every(some_data(validation=0), "evaluation.every_steps=5") is None
    interval = every(some_data(800), "evaluation.early_stopping={}")
    assert interval is not None
    assert 1 <= interval <= 10  # of 100 steps: at least ten chances to stop


def test_early_stopping_needs_validation_rows(a_recipe, a_model, some_data):
    with pytest.raises(InputError, match="early_stopping needs validation rows") as caught:
        make_plan(a_recipe("evaluation.early_stopping={}"), a_model(), some_data(validation=0), CPU)
    assert "data.validation" in (caught.value.where or "")


def test_a_few_shot_comparison_needs_validation_rows(a_recipe, a_model, some_data):
    with pytest.raises(InputError, match="few_shot needs validation rows"):
        make_plan(a_recipe("evaluation.few_shot=3"), a_model(), some_data(validation=0), CPU)


def test_an_empty_training_set_is_rejected(a_recipe, a_model, some_data):
    with pytest.raises(InputError, match="no training rows"):
        make_plan(a_recipe(), a_model(), some_data(0), CPU)


# --- batching


@given(
    samples=st.integers(1, 5000),
    batch=st.integers(1, 256),
    longest=st.integers(8, 8192),
    share=st.floats(0.05, 1),
    memory_gib=st.floats(3, 200),
    world_size=st.sampled_from([1, 2, 3, 8]),
    requested=st.none() | st.integers(1, 64),
)
def test_batches_fit_in_memory_and_cover_the_step(
    a_recipe, a_model, some_data, samples, batch, longest, share, memory_gib, world_size, requested
):
    recipe = a_recipe(
        f"optimization.global_batch_size={batch}",
        f"optimization.micro_batch_size={'null' if requested is None else requested}",
    )
    data = some_data(samples, longest, max(1, int(share * longest)))
    hardware = Hardware(8, "", int(memory_gib * GIB * world_size), "", frozenset())
    largest_share = math.ceil(min(batch, samples) / world_size)
    smallest = min(requested, largest_share) if requested else 1
    needed = footprint(recipe, a_model(), bf16=False, device="cpu").peak(smallest * longest, True)
    if needed > hardware.memory_bytes // world_size:
        with pytest.raises(InputError, match="of memory, but"):
            make_plan(recipe, a_model(), data, hardware, world=World(world_size, world_size))
        return
    plan = make_plan(recipe, a_model(), data, hardware, world=World(world_size, world_size))
    micro, passes = plan.batch.micro_batch_size, plan.batch.grad_accum_steps
    assert 1 <= micro <= largest_share
    assert micro * passes >= largest_share > micro * (passes - 1)
    assert plan.compute.estimated_peak_bytes <= plan.compute.memory_bytes
    if requested is None:
        assert micro == 1 or micro * (data.train.num_tokens // samples) <= 512
    else:
        assert micro == min(requested, largest_share)


@given(longest=st.integers(64, 2500), batch=st.integers(1, 64))
def test_a_gpu_gets_the_largest_batch_that_fits(a_recipe, a_model, some_data, longest, batch):
    """One more sequence would not fit or does not exist; the number of equal passes is minimal."""
    gpu = Gpu("GPU", 8 * GIB, 4 * GIB, (8, 0))
    recipe = a_recipe(f"optimization.global_batch_size={batch}", "optimization.gradient_checkpointing=false")
    shape = footprint(recipe, a_model(), bf16=True)
    fitting = int((0.9 * 4 * GIB - shape.fixed) // (shape.token * longest))
    plan = make_plan(recipe, a_model(), some_data(10_000, longest, longest), with_gpus(gpu))
    saturating = max(1, 32_768 // longest)
    assert plan.batch.grad_accum_steps == math.ceil(batch / min(batch, fitting, saturating))


def test_a_gpu_gets_no_more_tokens_than_saturate_it(a_recipe, a_model, some_data):
    recipe = a_recipe("optimization.global_batch_size=512")
    plan = make_plan(recipe, a_model(), some_data(10_000, 512, 512), with_gpus(H200))
    assert (plan.batch.micro_batch_size, plan.batch.grad_accum_steps) == (64, 8)
    assert "32,768 tokens saturate a GPU" in reason(plan, "micro_batch_size")


def test_a_cpu_gets_no_more_tokens_than_saturate_it(a_recipe, a_model, some_data):
    plan = make_plan(a_recipe("optimization.global_batch_size=64"), a_model(), some_data(100, 256, 256), CPU)
    assert plan.batch.micro_batch_size == 2
    assert plan.batch.grad_accum_steps == 32
    assert "512 tokens saturate a CPU" in reason(plan, "micro_batch_size")


def test_packed_sequences_have_the_maximum_length_of_the_recipe(a_recipe, a_model, some_data):
    """With packing, the longest sequence does not depend on the longest row."""
    data = some_data(100, longest_tokens=40, mean_tokens=500)
    packed = make_plan(a_recipe("data.packing=true"), a_model(), data, CPU).compute.estimated_peak_bytes
    single = make_plan(a_recipe("data.packing=false"), a_model(), data, CPU).compute.estimated_peak_bytes
    token = footprint(a_recipe(), a_model(), bf16=False, device="cpu").token
    assert packed - single == (512 - 40) * token


def test_passes_have_equal_size(a_recipe, a_model, some_data):
    """Nine sequences in passes of up to four: three passes of three, not four, four and one."""
    data = some_data(100, 125, 125)
    plan = make_plan(a_recipe("optimization.global_batch_size=9"), a_model(), data, CPU)
    assert (plan.batch.micro_batch_size, plan.batch.grad_accum_steps) == (3, 3)


def test_a_micro_batch_size_of_the_recipe_is_used_or_the_reason_is_given(a_recipe, a_model, some_data):
    kept = make_plan(a_recipe("optimization.micro_batch_size=3"), a_model(), some_data(), CPU)
    assert (kept.batch.micro_batch_size, kept.batch.grad_accum_steps) == (3, 3)
    assert reason(kept, "micro_batch_size") == "set in the recipe"
    cut = make_plan(a_recipe("optimization.micro_batch_size=99"), a_model(), some_data(), CPU)
    assert cut.batch.micro_batch_size == 8
    assert "set higher in the recipe" in reason(cut, "micro_batch_size")


def test_gradient_checkpointing_is_used_only_if_memory_requires_it(a_recipe, a_model, some_data):
    model, data = a_model(), some_data(100, 4096, 4096)
    roomy = make_plan(a_recipe(), model, data, CPU)
    assert not roomy.compute.gradient_checkpointing
    assert "all activations fit" in reason(roomy, "gradient_checkpointing")
    tight = make_plan(a_recipe(), model, data, Hardware(2, "", 5 * GIB, "", frozenset()))
    assert tight.compute.gradient_checkpointing
    assert "does not fit" in reason(tight, "gradient_checkpointing")
    forced = make_plan(a_recipe("optimization.gradient_checkpointing=true"), model, data, CPU)
    assert forced.compute.gradient_checkpointing
    assert reason(forced, "gradient_checkpointing") == "set in the recipe"


def test_a_run_that_does_not_fit_is_rejected_with_numbers_and_remedies(a_recipe, a_model, some_data):
    small = Hardware(2, "", 3 * GIB, "", frozenset())
    model = a_model(num_trained_params=a_model().num_params)
    with pytest.raises(InputError, match=r"needs about 3\.4 GiB of memory, but 3\.0 GiB are free") as caught:
        make_plan(a_recipe("method.kind=full"), model, some_data(100, 4096, 4096), small)
    assert "gradients and optimizer" in (caught.value.where or "")
    assert "method.kind=lora" in (caught.value.remedy or "")
    with pytest.raises(InputError) as caught:
        make_plan(a_recipe("optimization.gradient_checkpointing=false"), a_model(), some_data(100, 4096, 4096), small)
    assert "remove optimization.gradient_checkpointing" in (caught.value.remedy or "")


def test_the_error_names_a_sequence_length_that_fits(a_recipe, a_model, some_data):
    small = Hardware(2, "", 3 * GIB, "", frozenset())
    with pytest.raises(InputError) as caught:
        make_plan(a_recipe(), a_model(), some_data(100, 65536, 65536), small)
    length = int((caught.value.remedy or "").split("data.max_seq_len to ")[1].split()[0])
    assert make_plan(a_recipe(), a_model(), some_data(100, length, length), small).batch.micro_batch_size == 1


# --- memory


@given(
    hidden=st.sampled_from([256, 576, 1024, 4096]),
    ratio=st.floats(1.5, 4),
    layers=st.integers(1, 80),
    tied=st.booleans(),
)
def test_the_feed_forward_width_follows_from_the_number_of_weights(a_model, hidden, ratio, layers, tied):
    """Exact for grouped-query attention with few key heads, and never below the true width."""
    width = int(ratio * hidden)
    heads = 2 * hidden**2 + 2 * hidden * (hidden // 4)
    params = layers * (heads + 3 * hidden * width + 2 * hidden) + 49152 * hidden * (1 if tied else 2) + hidden
    model = a_model(num_layers=layers, hidden_size=hidden, num_params=params, tied_embeddings=tied)
    assert width <= feed_forward_width(model) <= width + 0.25 * hidden


def test_the_footprint_counts_every_part_once(a_recipe, a_model):
    model = a_model()
    full = footprint(a_recipe("method.kind=full"), a_model(num_trained_params=model.num_params), bf16=False)
    assert (full.weights, full.gradients, full.optimizer) == tuple(n * model.num_params for n in (4, 4, 8))
    lora = footprint(a_recipe(), model, bf16=False)
    assert lora.weights == 4 * model.num_params
    assert lora.optimizer == 8 * model.num_trained_params
    half = footprint(a_recipe(), model, bf16=True)
    frozen = model.num_params - model.num_trained_params
    assert half.weights == 2 * frozen + 6 * model.num_trained_params
    assert half.token < lora.token < 2.1 * half.token
    assert lora.token_checkpointed < 0.13 * lora.token


def test_recomputing_blocks_keep_fewer_activations(a_recipe, a_model):
    fast = footprint(a_recipe(), a_model(), bf16=False, device="cpu").token
    slow = footprint(a_recipe("kernels=off"), a_model(), bf16=False, device="cpu").token
    assert 0.45 < fast / slow < 0.7
    for overrides in (["method.lora_dropout=0.1"], ["method.use_dora=true"], ["method.target_modules=[q_proj]"]):
        assert footprint(a_recipe(*overrides), a_model(), bf16=False, device="cpu").token >= slow
    assert footprint(a_recipe(), a_model(model_type="gpt2"), bf16=False, device="cpu").token == slow
    gpu = footprint(a_recipe(), a_model(model_type="gpt2"), bf16=False, device="cuda").token
    assert 0.95 * slow < gpu < 1.05 * slow  # a model whose blocks were not counted


def test_only_blocks_with_a_gradient_keep_activations(a_recipe, a_model):
    overrides = ["method.kind=last_layers", "method.num_layers=3"]
    last = footprint(a_recipe(*overrides), a_model(), bf16=False, device="cpu")
    every = footprint(a_recipe("method.kind=full"), a_model(), bf16=False, device="cpu")
    block = (every.token - last.token) / 27
    assert 2.5 * block < last.token < 5 * block  # three blocks, and the gradients of one
    assert every.token == pytest.approx(last.token + 27 * block)


def test_file_sizes_follow_from_the_trained_weights(a_recipe, a_model):
    model = a_model()
    assert checkpoint_bytes(model) == pytest.approx(12 * model.num_trained_params, rel=0.01)
    assert export_bytes(a_recipe("export.form=merged"), model) > 4 * model.num_params
    assert export_bytes(a_recipe(), model) < 0.1 * model.num_params * 4


# --- device and precision


@pytest.mark.parametrize(
    ("hardware", "device", "precision", "why"),
    [
        (CPU, "cpu", "fp32", "no bf16 instructions"),
        (AMX, "cpu", "bf16", "371 GFLOP/s in bf16, 118 in fp32"),
        (with_rates(100.0, 110.0), "cpu", "fp32", "110 GFLOP/s in bf16, 100 in fp32; bf16 needs 1.25 times"),
        (with_rates(100.0, 50.0), "cpu", "fp32", "50 GFLOP/s in bf16, 100 in fp32"),
        (replace(AMX, product_rates=None), "cpu", "fp32", "not measured"),
        (with_gpus(H200), "cuda", "bf16", "9.0 has bf16"),
        (with_gpus(T4), "cuda", "fp16", "7.5 lacks bf16 tensor cores and has fp16 ones; the loss is scaled"),
        (with_gpus(P100), "cuda", "fp32", "6.0 lacks bf16 and fp16"),
        (with_gpus(H200, torch_has_cuda=False), "cpu", "fp32", "no bf16 instructions"),
    ],
)
def test_precision_follows_the_hardware_with_a_reason(a_recipe, a_model, some_data, hardware, device, precision, why):
    plan = make_plan(a_recipe(), a_model(), some_data(), hardware)
    assert (plan.compute.device, plan.compute.precision) == (device, precision)
    assert why in reason(plan, "precision")


def test_precision_of_the_recipe_is_used_with_a_note_on_its_cost(a_recipe, a_model, some_data):
    plan = make_plan(a_recipe("precision=bf16"), a_model(), some_data(), CPU)
    assert plan.compute.precision == "bf16"
    assert "set in the recipe" in reason(plan, "precision")
    assert "many times slower" in reason(plan, "precision")


@pytest.mark.parametrize("requested", ["auto", "bf16"])
def test_a_resumed_run_keeps_its_precision_whatever_this_cpu_would_choose(a_recipe, a_model, some_data, requested):
    earlier = make_plan(a_recipe(f"precision={requested}"), a_model(), some_data(), AMX)
    recipe = a_recipe(f"precision={requested}", "resources.workers=2")
    resumed = make_plan(recipe, a_model(), some_data(), CPU, world=World(2, 2), earlier=earlier)
    assert resumed.compute.precision == "bf16"
    assert reason(resumed, "precision") == reason(earlier, "precision")
    moved = make_plan(recipe, a_model(), some_data(), with_gpus(T4), earlier=earlier)
    assert moved.compute.precision == ("fp16" if requested == "auto" else "bf16")
    assert "7.5" in reason(moved, "precision")


def test_a_gpu_that_torch_cannot_use_is_reported(a_recipe, a_model, some_data):
    plan = make_plan(a_recipe(), a_model(), some_data(), with_gpus(H200, torch_has_cuda=False))
    assert "built without CUDA" in reason(plan, "device")
    assert plan.compute.memory_bytes == 128 * GIB


def test_processes_share_cores_and_memory(a_recipe, a_model, some_data):
    plan = make_plan(a_recipe(), a_model(), some_data(), AMX, world=World(4, 4))
    assert plan.compute.threads_per_rank == 2
    assert plan.compute.memory_bytes == 16 * GIB
    with pytest.raises(InputError, match="2 processes need 2 GPUs, but 1"):
        make_plan(a_recipe(), a_model(), some_data(), with_gpus(H200), world=World(2, 2))


def test_parts_of_a_gpu_take_one_process(a_recipe, a_model, some_data):
    part = Gpu("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 40 * GIB, 39 * GIB, (9, 0))
    assert make_plan(a_recipe(), a_model(), some_data(), with_gpus(part)).compute.memory_bytes == 39 * GIB
    with pytest.raises(InputError) as refused:
        make_plan(a_recipe(), a_model(), some_data(), with_gpus(part), world=World(2, 2))
    assert "NCCL connects no two" in refused.value.remedy


def test_threads_set_by_the_user_are_kept(a_recipe, a_model, some_data):
    plan = make_plan(a_recipe(), a_model(), some_data(), AMX, threads=3)
    assert plan.compute.threads_per_rank == 3
    assert reason(plan, "threads_per_rank") == "OMP_NUM_THREADS"


def test_every_choice_has_a_reason_and_the_plan_round_trips(a_recipe, a_model, some_data, tmp_path):
    plan = make_plan(a_recipe(), a_model(), some_data(), CPU, recipe_file=tmp_path / "r.yaml", working_dir=tmp_path)
    assert all(choice.reason for choice in plan.choices)
    assert len({choice.key for choice in plan.choices}) == len(plan.choices)
    plan.write(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    assert plan.recipe_file == str(tmp_path / "r.yaml")


def test_rows_longer_than_the_models_positions_are_rejected(a_recipe, a_model, some_data):
    bert = a_model(max_positions=128)
    make_plan(a_recipe(), bert, some_data(64, longest_tokens=128), CPU)
    with pytest.raises(InputError, match="128") as caught:
        make_plan(a_recipe(), bert, some_data(64, longest_tokens=129), CPU)
    assert "max_seq_len to 128" in caught.value.remedy


def test_the_plan_gives_a_reason_if_rows_are_not_packed(a_recipe, a_model, some_data):
    for task, expected in (("preference", "without padding"), ("seq2seq", "padded to the longest")):
        plan = make_plan(a_recipe(f"task={task}", "data.packing=true"), a_model(), some_data(64), CPU)
        assert expected in reason(plan, "packing")
    plan = make_plan(a_recipe("data.packing=true"), a_model(), some_data(64), CPU)
    assert not any(choice.key == "packing" for choice in plan.choices)


def test_a_batch_of_one_row_is_rejected_for_tasks_that_compare_rows(a_recipe, a_model, some_data):
    make_plan(a_recipe("task=kto", "optimization.global_batch_size=2"), a_model(), some_data(64), CPU)
    make_plan(a_recipe("task=preference", "optimization.global_batch_size=1"), a_model(), some_data(64), CPU)
    with pytest.raises(InputError, match="the batch has only one row") as caught:
        make_plan(a_recipe("task=kto", "optimization.global_batch_size=1"), a_model(), some_data(64), CPU)
    assert "optimization.global_batch_size" in (caught.value.where or "")


@pytest.mark.parametrize("key", ["retain=general.jsonl", "few_shot=2"])
@pytest.mark.parametrize("task", ["classification", "preference"])
def test_token_loss_comparisons_are_rejected_for_tasks_without_token_loss(a_recipe, a_model, some_data, task, key):
    recipe = a_recipe(f"task={task}", f"evaluation.{key}")
    with pytest.raises(InputError, match=f"token loss, which task {task} does not have"):
        make_plan(recipe, a_model(), some_data(), AMX)
