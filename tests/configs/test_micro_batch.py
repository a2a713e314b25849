"""Halving the micro-batch of a plan."""

import pytest

from tests.training.engine.zero_ranks import Setup, plan_of
from tunesmith.configs.micro_batch import described, halved
from tunesmith.configs.plan import Choice, Plan


@pytest.fixture
def plan(tmp_path) -> Plan:
    """Two ranks, 5 sequences per step, at most 2 per pass: 3 per rank."""
    plan = plan_of(Setup(1), tmp_path, 2)
    choices = [
        Choice(key="micro_batch_size", value=2, reason="the largest that fits in memory", num_bytes=5),
        Choice(key="grad_accum_steps", value=2, reason="global_batch_size 5"),
        Choice(key="total_steps", value=1, reason="one"),
    ]
    split = plan.data.train.model_copy(update={"num_samples": 50})
    data = plan.data.model_copy(update={"train": split})
    return plan.model_copy(update={"choices": choices, "data": data})


def test_halving_divides_sequences_then_their_documents(plan):
    assert described(plan) == "2 sequences per pass"
    sizes = []
    for _ in range(3):
        plan = halved(plan, "memory ran out on rank 1")
        batch = plan.batch
        sizes.append((batch.micro_batch_size, batch.passes_per_sequence, batch.grad_accum_steps))
    # min_world_size is 1: a rank may have to train all 5 sequences of a step.
    assert sizes == [(1, 1, 5), (1, 2, 10), (1, 4, 20)]
    assert described(plan) == "1/4 of a sequence per pass"
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_choices_and_deepspeed_configuration_agree_with_the_halved_plan(plan):
    after = halved(plan, "memory ran out on rank 1")
    size, accumulation, steps = after.choices
    assert (size.value, size.num_bytes) == (1, None)
    assert size.reason == "halved from 2 sequences per pass, because memory ran out on rank 1"
    assert accumulation.value == after.batch.grad_accum_steps
    assert steps == plan.choices[2]
    config = after.parallelism.deepspeed
    assert config is not None
    assert config["train_micro_batch_size_per_gpu"] == 1
    assert config["gradient_accumulation_steps"] == after.batch.grad_accum_steps
    assert config["zero_optimization"] == (plan.parallelism.deepspeed or {})["zero_optimization"]
