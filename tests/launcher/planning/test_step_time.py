"""The estimate of a step's duration: operations, memory traffic, communication, and where its rates come from."""

from dataclasses import replace

import pytest

from tests.launcher.planning.test_planner import AMX, CPU, H200, with_gpus
from tunesmith.launcher.hardware import Gpu
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.planning.step_time import network_traffic, operations, rates_of
from tunesmith.launcher.planning.world import World
from tunesmith.launcher.product_rates import ProductRates

MEASURED = replace(CPU, product_rates=ProductRates(fp32=60.0, bf16=0.0))


def test_operations_are_those_of_the_model(a_recipe, a_model, some_data):
    """PaLM's appendix B counts 6 per weight and token, and 12 h d per layer for attention without a causal mask; here
    the head is computed for supervised tokens (half), embeddings are looked up."""
    train = some_data(100, 512, 512).train
    model = a_model()
    full = operations(a_recipe("method.kind=full"), model, train, checkpointing=False)
    head, blocks = 49152 * 576, 134_515_008 - 49152 * 576
    assert full == pytest.approx(6 * blocks + 6 * 512 * 576 * 30 + 6 * head / 2)
    again = operations(a_recipe("method.kind=full"), model, train, checkpointing=True)
    assert again - full == pytest.approx(2 * blocks + 2 * 512 * 576 * 30)
    adapters = operations(a_recipe(), model, train, checkpointing=False)
    assert adapters == pytest.approx(full * 2 / 3 + 6 * 4_884_480)
    active = a_model(num_active_params=60_000_000)
    assert operations(a_recipe(), active, train, checkpointing=False) < 0.6 * adapters


def test_communication_of_a_ring(a_recipe, a_model):
    recipe, model = a_recipe("method.kind=full"), a_model(num_trained_params=134_515_008)

    def sent(stage: int, size: int, passes: int = 1) -> float:
        return network_traffic(recipe, model, stage, size, passes, checkpointing=False, element=2)

    params = model.num_params
    assert sent(0, 1) == 0
    assert sent(0, 4) == pytest.approx(2 * 0.75 * 4 * params)
    assert sent(2, 4) == pytest.approx(0.75 * 6 * params)
    assert sent(3, 4) == pytest.approx(0.75 * (2 * 2 + 4) * params)
    assert sent(3, 4, passes=8) == pytest.approx(8 * sent(3, 4))


def estimated(a_recipe, a_model, some_data, hardware, *overrides: str, world=World()):  # noqa: B008
    return make_plan(a_recipe(*overrides), a_model(), some_data(), hardware, world=world)


def test_without_rates_there_is_no_estimate(a_recipe, a_model, some_data):
    plan = estimated(a_recipe, a_model, some_data, CPU)
    assert plan.compute.estimated_step_s is None
    assert not [choice for choice in plan.choices if choice.key == "step time"]
    unknown = Gpu("Some GPU", 80 << 30, 79 << 30, (9, 0))
    assert estimated(a_recipe, a_model, some_data, with_gpus(unknown)).compute.estimated_step_s is None


def test_the_plan_states_the_estimate_and_its_source(a_recipe, a_model, some_data):
    plan = estimated(a_recipe, a_model, some_data, MEASURED)
    (choice,) = (choice for choice in plan.choices if choice.key == "step time")
    assert "60 GFLOP/s measured on this CPU" in choice.reason
    seconds = plan.compute.estimated_step_s
    assert seconds is not None
    operations_s = 8 * 500 * operations(a_recipe(), a_model(), some_data().train, checkpointing=False) / 120e9
    assert operations_s < seconds < 2 * operations_s
    twice = estimated(a_recipe, a_model, some_data, replace(MEASURED, product_rates=ProductRates(120.0, 0.0)))
    assert 0.5 * seconds < (twice.compute.estimated_step_s or 0) < seconds


def test_rates_follow_from_precision_and_gpu(a_recipe, a_model, some_data):
    fp32 = rates_of(AMX, "cpu", "fp32", 8, 1)
    bf16 = rates_of(AMX, "cpu", "bf16", 8, 1)
    assert fp32 is not None
    assert bf16 is not None
    assert bf16.operations_s == pytest.approx(fp32.operations_s * 371 / 118)
    assert rates_of(MEASURED, "cpu", "bf16", 2, 1) is None
    gpu = rates_of(with_gpus(H200), "cuda", "bf16", 8, 1)
    across = rates_of(with_gpus(H200), "cuda", "bf16", 8, 2)
    assert gpu is not None
    assert across is not None
    assert "assumed, not measured" in gpu.source
    assert across.link_bytes_s < gpu.link_bytes_s
    plan = estimated(a_recipe, a_model, some_data, with_gpus(H200))
    assert 0 < (plan.compute.estimated_step_s or 0) < 1


def test_more_processes_shorten_a_step(a_recipe, a_model, some_data):
    alone = estimated(a_recipe, a_model, some_data, with_gpus(H200)).compute.estimated_step_s
    four = estimated(a_recipe, a_model, some_data, with_gpus(*[H200] * 4), world=World(4, 4, 1)).compute
    assert alone is not None
    assert four.estimated_step_s is not None
    assert 0.2 * alone < four.estimated_step_s < 0.6 * alone
